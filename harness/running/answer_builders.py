"""Builders of what an inference engine answers: tasks, the query set, decodes of the pool.

They run in a process that keeps its engine from stage to stage, apart from training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.items import ITEMS_FILE, read_items
from harness.data.pool import Pool
from harness.evaluation.settings import Decoding
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.influence.costs import FORWARD
from harness.running.recipes import AnswersRecipe, DataRecipe, DecodesRecipe, SamplesRecipe
from harness.running.workspace import EngineAccess, Workspace, max_positions

if TYPE_CHECKING:
    import pandas as pd

    from harness.evaluation.settings import Completion

SAMPLES = "samples.parquet"


def build_samples(
    stages: Sequence[Stage],
    store: Store,
    provenance: Callable[[], Mapping[str, Any]],
    engines: EngineAccess,
) -> None:
    """Answer the missing tasks of one checkpoint together; each is stored by itself.

    The whole time is noted with the first of them.
    """
    missing = [stage for stage in stages if not store.has(stage)]
    if not missing:
        return
    start = time.perf_counter()
    recipes = [_samples_recipe(stage) for stage in missing]
    items = [store.folder(stage.parents["items"]) / ITEMS_FILE for stage in missing]
    work = Workspace(missing[0], store, store.root, engines=engines)
    answers, settings = answer_tasks(recipes, items, work, seed=recipes[0].seed or 0)
    seconds = time.perf_counter() - start
    for stage, recipe in zip(missing, recipes, strict=True):
        rows = answers[answers["task"] == recipe.task]
        facts = {"engine_seconds": seconds if stage is missing[0] else 0.0, "engine": settings}
        store.make(stage, partial(_write_samples, rows, facts), provenance)


def _samples_recipe(stage: Stage) -> SamplesRecipe:
    assert isinstance(stage.recipe, SamplesRecipe)
    return stage.recipe


def _write_samples(rows: pd.DataFrame, facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    rows.to_parquet(folder / SAMPLES, index=False)
    accuracy, truncated = float(rows["correct"].mean()), int(rows["truncated"].sum())
    return {"accuracy": accuracy, "truncated": truncated, **facts}


def answer_tasks(
    recipes: Sequence[SamplesRecipe],
    items: Sequence[Path],
    work: Workspace,
    *,
    seed: int,
    order: int | None = None,
    fresh_cache: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Answers of the model in `work` to several tasks, and the engine's settings.

    The recipes agree in all but the task and its limits. `order`: seed of another order of the
    items. `fresh_cache`: compute prompts anew that the engine has in its prefix cache.
    """
    from harness.evaluation.lm_eval_bridge import Task

    tasks = [
        Task(recipe.task, path, recipe.answer_kind, recipe.max_tokens)  # type: ignore[arg-type]
        for recipe, path in zip(recipes, items, strict=True)
    ]
    first = recipes[0]
    decoding = Decoding(
        max_tokens=max(recipe.max_tokens for recipe in recipes),
        decodes=first.decodes,
        temperature=first.temperature,
        seed=seed,
    )
    length = max(_longest_prompt(task.data) + (task.max_tokens or 0) for task in tasks)
    engine = work.engine(first.engine, length, first.threads)
    if fresh_cache:
        engine.reset_prefix_cache()
    return engine.evaluate(tasks, decoding, order), engine.record()


def _longest_prompt(items: Path) -> int:
    """Tokens of the longest prompt, at most."""
    # A token is at least one byte, except for the few that a tokenizer adds by itself.
    return max(len(item["prompt"].encode()) for item in read_items(items)) + 8


def answers(recipe: AnswersRecipe, work: Workspace) -> dict[str, Any]:
    """The query set answered by a model, and its accuracy."""
    from harness.data.queries import Answers

    queries = work.pool("queryset")
    prompts = _prompts(queries)
    # Both models draw with the same seeds: where they agree, so do their answers.
    decoding = Decoding(
        max_tokens=recipe.max_tokens, decodes=recipe.decodes, temperature=recipe.temperature
    )
    engine = work.engine(recipe.engine, max(map(len, prompts)) + recipe.max_tokens)
    completions = engine.generate(prompts, decoding)
    correct = _graded(completions, queries, work.stage.parents["queryset"])
    Answers(
        texts=tuple(tuple(c.text for c in row) for row in completions),
        tokens=tuple(tuple(np.asarray(c.ids, np.int32) for c in row) for row in completions),
        right=np.asarray(correct, dtype=bool),
    ).save(work.folder, queries.ids)
    return {
        "accuracy": float(np.mean(correct)),
        "queries": len(queries),
        "engine": engine.record(),
        "operations": _forward_operations(prompts, completions),
    }


def decodes(recipe: DecodesRecipe, work: Workspace) -> dict[str, Any]:
    """Sampled answers of the base model to the pool's questions, graded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pool = work.pool()
    missing = [n for n, a in zip(pool.ids, pool.column("answer"), strict=True) if a is None]
    if missing:
        raise ValueError(
            f"{len(missing)} pool examples have no answer that can be graded, the first "
            f"{missing[0]!r}; expected one for each (column `answer`, or '#### ANSWER' or "
            "\\boxed{ANSWER} in the response)"
        )
    prompts = _prompts(pool)
    # As long as the pool's longest response, as far as the model's positions reach.
    longest = max(map(len, prompts))
    length = longest + int(pool.response_lengths.max())
    length = min(length, max_positions(work.parent("model")))
    decoding = Decoding(
        max_tokens=length - longest, decodes=recipe.k, temperature=recipe.temperature
    )
    engine = work.engine(recipe.engine, length)
    completions = engine.generate(prompts, decoding)
    correct = _graded(completions, pool, work.stage.parents["pool"])
    table = pa.table({"id": pool.ids, "correct": correct})
    pq.write_table(table, work.folder / "decodes.parquet")
    return {
        "solve_rate": float(np.mean(correct)),
        "operations": _forward_operations(prompts, completions),
    }


def _prompts(pool: Pool) -> list[list[int]]:
    return [pool.prompt_ids(i).tolist() for i in range(len(pool))]


def _graded(
    completions: Sequence[Sequence[Completion]], pool: Pool, stage: Stage
) -> list[list[bool]]:
    """Whether each completion is right; where there is no reference answer, it is wrong."""
    from harness.data.grading import Grader

    recipe = stage.recipe
    assert isinstance(recipe, DataRecipe)
    with Grader(recipe.config.kind or "plain") as grader:
        return [
            [answer is not None and grader.grade(c.text, answer).correct for c in row]
            for row, answer in zip(completions, pool.column("answer"), strict=True)
        ]


def _forward_operations(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Completion]]
) -> float:
    """A prompt is read once, however often it is answered."""
    generated = sum(len(c.ids) for row in completions for c in row)
    return float(FORWARD * (sum(map(len, prompts)) + generated))
