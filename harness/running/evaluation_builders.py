"""Evaluation jobs: tasks of a checkpoint, once or again, or the query set, on a kept engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.items import ITEMS_FILE, read_items
from harness.data.pool import Pool
from harness.evaluation.backends import ProgressCallback
from harness.evaluation.settings import Limits, Settings
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running.signals import model_folder, positions_of

if TYPE_CHECKING:
    import pandas as pd

    from harness.evaluation.engine import Engine, EnginePool
    from harness.evaluation.lm_eval_bridge import Task

SAMPLES = "samples.parquet"


@dataclass
class Evaluation:
    """Makes samples and answers.

    `limits`: what this run overrides of the engine's set-up; `attempt`: how often the job was
    begun before, each time with fewer sequences together in case it was memory that ended it.
    """

    store: Store
    host: EnginePool
    device: str
    told: ProgressCallback | None = None
    limits: Limits = field(default_factory=Limits)
    attempt: int = 0
    provenance: Callable[[], Mapping[str, Any]] = dict
    verbose: bool = False

    def samples(self, stages: Sequence[Stage]) -> None:
        """Answer the missing tasks of one checkpoint together; each is stored by itself.

        The whole time is noted with the first of them.
        """
        missing = [stage for stage in stages if not self.store.has(stage.kind, stage.key)]
        if not missing:
            return
        start = time.perf_counter()
        frame, record = self._answered(missing)
        seconds = time.perf_counter() - start
        for stage in missing:
            own = frame[frame["task"] == stage.inputs["task"]]
            facts = {"engine_seconds": seconds if stage is missing[0] else 0.0, "engine": record}
            build = partial(_write, own, facts)
            self.store.make(stage.kind, stage.key, stage.recipe, build, self.provenance)

    def repetition(self, stage: Stage, work: Path) -> dict[str, Any]:
        """All tasks of a checkpoint answered once more, in `work`; accuracy by task."""
        frame, record = self._answered(repeated(stage), stage)
        frame.to_parquet(work / SAMPLES, index=False)
        accuracy = frame.groupby("task", sort=False)["correct"].mean()
        return {"accuracy": accuracy.to_dict(), "engine": record}

    def _answered(
        self, stages: list[Stage], again: Stage | None = None
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Answers of `stages` and the engine's set-up; `again`: the repetition that they are of."""
        from harness.evaluation.settings import Decoding

        inputs = stages[0].inputs  # but for the task and its limit, the same in all
        tasks = [self._task(stage) for stage in stages]
        longest = max(int(stage.inputs["max_tokens"]) for stage in stages)
        decoding = Decoding(
            max_tokens=longest,
            decodes=inputs["decodes"],
            temperature=inputs["temperature"],
            seed=(inputs if again is None else again.inputs).get("seed", 0),
        )
        needed = max(
            _longest_prompt(task.data) + int(stage.inputs["max_tokens"])
            for task, stage in zip(tasks, stages, strict=True)
        )
        engine = self._engine(stages[0], needed, inputs["threads"])
        if again is None:
            return engine.evaluate(tasks, decoding), engine.record()
        # Prompts that are still in its cache would not be computed again.
        engine.reset_prefix_cache()
        answers = engine.evaluate(tasks, decoding, again.inputs["order"])
        return answers, engine.record()

    def answers(self, stage: Stage, work: Path) -> dict[str, Any]:
        """The query set answered by a model, in `work`; its accuracy."""
        from harness.data.grading import Grader
        from harness.data.queries import Answers
        from harness.evaluation.settings import Decoding

        queryset = stage.parents["queryset"]
        queries = Pool.load(self.store.folder(queryset.kind, queryset.key))
        prompts = [queries.prompt_ids(i).tolist() for i in range(len(queries))]
        limit = int(stage.inputs["max_tokens"])
        # Both models draw with the same seeds: where they agree, so do their answers.
        decoding = Decoding(max_tokens=limit, **stage.inputs.get("decoding", {}))
        engine = self._engine(stage, max(map(len, prompts)) + limit, threads=1)
        completions = engine.generate(prompts, decoding)
        with Grader(queryset.inputs.get("kind", "plain")) as grader:
            correct = [
                [answer is not None and grader.grade(c.text, answer).correct for c in row]
                for row, answer in zip(completions, queries.column("answer"), strict=True)
            ]
        answers = Answers(
            texts=tuple(tuple(c.text for c in row) for row in completions),
            tokens=tuple(tuple(np.asarray(c.ids, np.int32) for c in row) for row in completions),
            right=np.asarray(correct, dtype=bool),
        )
        answers.save(work, queries.ids)
        return {
            "accuracy": float(np.mean(correct)),
            "queries": len(queries),
            "engine": engine.record(),
        }

    def _task(self, stage: Stage) -> Task:
        from harness.evaluation.lm_eval_bridge import Task

        items = self.store.folder("items", stage.parents["items"].key) / ITEMS_FILE
        kind = stage.inputs.get("kind", "plain")
        return Task(stage.inputs["task"], items, kind, int(stage.inputs["max_tokens"]))

    def _engine(self, stage: Stage, length: int, threads: int) -> Engine:
        """The engine on a stage's model; long enough for `length` tokens."""
        model = stage.parents["model"]
        folder = model_folder(model, self.store)
        chosen = stage.inputs["engine"]
        settings = Settings(
            name=chosen["name"],
            max_length=min(length, positions_of(folder)),
            threads=threads,
            device=self.device,
            sequences=self.limits.sequences or 0,
            memory=self.limits.memory,
            batch_invariant=chosen.get("batch_invariant", False),
        )
        for _ in range(self.attempt):
            settings = settings.fewer()
        base = model.parents.get("model")
        return self.host.engine(
            folder,
            settings,
            base=None if base is None else model_folder(base, self.store),
            verbose=self.verbose,
            on_progress=self.told,
        )


def repeated(stage: Stage) -> list[Stage]:
    """The samples, task by task, that a repetition makes again."""
    model = stage.parents["model"]
    return [
        Stage(
            "samples",
            f"{task} of {stage.label}",
            recipe["inputs"],
            {"model": model, "items": stage.parents[f"items:{task}"]},
        )
        for task, recipe in stage.inputs["samples"].items()
    ]


def _write(samples: pd.DataFrame, facts: Mapping[str, Any], work: Path) -> dict[str, Any]:
    samples.to_parquet(work / SAMPLES, index=False)
    return {
        "accuracy": float(samples["correct"].mean()),
        "truncated": int(samples["truncated"].sum()),
        **facts,
    }


def _longest_prompt(items: Path) -> int:
    """Tokens of the longest prompt, at most."""
    # A token is at least one byte, except for the few that a tokenizer adds by itself.
    return max(len(item["prompt"].encode()) for item in read_items(items)) + 8
