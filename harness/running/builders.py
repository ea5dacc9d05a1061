"""How each kind of stage is made; the code that runs in worker processes.

Every builder gets a fresh folder, writes its files there and returns facts worth keeping; the
store does the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.items import ITEMS_FILE, read_items, write_items
from harness.data.pool import Pool
from harness.experiment.config import DataConfig, PoolConfig
from harness.experiment.progress import Progress
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running import overlap
from harness.running.signals import Signals, model_folder
from harness.selection.context import Context
from harness.selection.selector import Selector, best, check_positions, check_scores
from harness.selection.subset import budget_of, read_scores, write_scores, write_subset, write_table

if TYPE_CHECKING:
    from harness.training.train import TrainLog

HIDDEN = "hidden.parquet"
"""Columns of the testbed that selectors must not see."""


def device() -> str:
    """Where models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def seed_for(*parts: Any) -> np.random.SeedSequence:
    """A seed sequence that depends on all `parts` and on nothing else."""
    text = json.dumps(parts)
    return np.random.SeedSequence(int(hashlib.sha256(text.encode()).hexdigest()[:32], 16))


@dataclass
class Builder:
    """Makes one stage."""

    stage: Stage
    store: Store
    progress: Progress
    provenance: Callable[[], Mapping[str, Any]]

    def build(self, work: Path) -> dict[str, Any]:
        """Write the stage's files into `work`; return facts."""
        import torch

        torch.set_num_threads(self._threads())
        if "overlap" in self.stage.parents:
            return overlap.leave_out(self.stage, self.store, work)
        builders: dict[str, Callable[[Path], dict[str, Any]]] = {
            "tokenizer": self._tokenizer,
            "base": self._base,
            "pool": self._pool,
            "queryset": self._queryset,
            "items": self._items,
            "proof": self._proof,
            "overlap": lambda work: overlap.find(self.stage, self.store, work),
            "scores": self._scores,
            "subset": self._subset,
            "checkpoint": self._checkpoint,
            "trajectory": self._trajectory,
        }
        return builders[self.stage.kind](work)

    def _threads(self) -> int:
        recipe = self.stage.inputs.get("recipe") or self.stage.inputs.get("spec") or {}
        return int(recipe.get("threads", 1))

    def _parent(self, role: str) -> Path:
        return model_folder(self.stage.parents[role], self.store)

    def _autotokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._parent("tokenizer"))

    def _tokenizer(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed

        testbed.build_tokenizer(work)
        return {}

    def _base(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed

        spec = testbed.BaseSpec(**self.stage.inputs["spec"])
        log = testbed.train_base(spec, work, self.progress)
        return {name: log[name] for name in ("parameters", "final_loss")}

    def _pool(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed

        inputs = dict(self.stage.inputs)
        name, max_tokens = inputs.pop("testbed", None), inputs.pop("max_tokens")
        if name is None:
            return self._data(work, inputs, max_tokens, PoolConfig)
        spec = testbed.PoolSpec(inputs.get("size", 1000), inputs["errors"], inputs["seed"])
        rows = testbed.make_pool(spec)
        self._hide(work, rows)
        return self._testbed(work, rows, max_tokens)

    def _queryset(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed

        inputs = dict(self.stage.inputs)
        name, max_tokens = inputs.pop("testbed", None), inputs.pop("max_tokens")
        if name is None:
            return self._data(work, inputs, max_tokens, DataConfig)
        rows = testbed.make_queries(inputs.get("size", 300), inputs["seed"])
        return self._testbed(work, rows, max_tokens)

    def _hide(self, work: Path, rows: list[dict[str, Any]]) -> None:
        import pandas as pd

        hidden = [{"id": r["id"], "quality": r.pop("quality"), "steps": r["steps"]} for r in rows]
        pd.DataFrame(hidden).to_parquet(work / HIDDEN, index=False)

    def _testbed(self, work: Path, rows: list[Any], max_tokens: int) -> dict[str, Any]:
        from harness.data.dataset import Report as Checked
        from harness.data.dataset import tokenise

        config = DataConfig(dataset="testbed:", id="id", answer="answer", template="{prompt}")
        report = Checked("testbed", rows=len(rows))
        tokenise(rows, config, self._autotokenizer(), max_tokens, report).save(work)
        return {"report": report.as_dict()}

    def _data(
        self, work: Path, inputs: dict[str, Any], max_tokens: int, kind: type[DataConfig]
    ) -> dict[str, Any]:
        from harness.data.dataset import read, tokenise

        path = Path(self.stage.where["path"]) if "path" in self.stage.where else None
        inputs.pop("file", None)
        dataset = inputs.pop("dataset", None) or str(path)
        config = kind.model_validate({**inputs, "dataset": dataset})
        rows, report = read(config, path)
        invalid = getattr(config, "invalid", "refuse")
        pool = tokenise(rows, config, self._autotokenizer(), max_tokens, report, invalid)
        if config.size is not None and config.size < len(pool):
            rng = np.random.default_rng([config.seed, len(pool)])
            pool = pool.take(np.sort(rng.permutation(len(pool))[: config.size]))
        pool.save(work)
        return {"report": report.as_dict(), "text": str(report)}

    def _items(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed
        from harness.data.dataset import items_from_file

        inputs = self.stage.inputs
        if "testbed" in inputs:
            rows = testbed.make_task(inputs["testbed"], inputs["items"], inputs["seed"])
            rows = [{name: row[name] for name in ("id", "prompt", "answer")} for row in rows]
        elif "benchmark" in inputs:
            rows = self._benchmark_items()
        else:
            rows = items_from_file(Path(self.stage.where["path"]), inputs, self._autotokenizer())
        write_items(work / ITEMS_FILE, rows)
        return {"items": len(rows)}

    def _benchmark_items(self) -> list[dict[str, Any]]:
        from harness.data.dataset import render
        from harness.data.grading import Grader
        from harness.evaluation.benchmarks import benchmark, make_items

        task = benchmark(self.stage.inputs["benchmark"])
        path = Path(self.stage.where["path"]) if "path" in self.stage.where else None
        rows = make_items(task, path)
        grader = Grader(task.kind)
        for row in rows:
            try:
                row["answer"] = grader.reference(row["answer"])
            except ValueError as error:
                raise ValueError(f"{task.name}: item {row['id']}: {error}") from None
        prompts = [row["prompt"] for row in rows]
        rendered = render(prompts, self.stage.inputs["template"], self._autotokenizer())
        return [{**row, "prompt": text} for row, text in zip(rows, rendered, strict=True)]

    def _proof(self, work: Path) -> dict[str, Any]:
        from harness.data import testbed

        def rows(stage: Stage) -> list[dict[str, Any]]:
            folder = self.store.folder(stage.kind, stage.key)
            if stage.kind == "items":
                return read_items(folder / ITEMS_FILE)
            pool = Pool.load(folder)
            prompts = pool.column("prompt")
            return [{"id": i, "prompt": p} for i, p in zip(pool.ids, prompts, strict=True)]

        parents = self.stage.parents
        tasks = {
            role.removeprefix("items:"): rows(parent)
            for role, parent in parents.items()
            if role.startswith("items:")
        }
        queries = rows(parents["queryset"]) if "queryset" in parents else []
        pool = rows(parents["pool"])
        testbed.check_disjoint(pool, queries, tasks)
        counts = {"pool": len(pool), "queries": len(queries)}
        counts |= {name: len(items) for name, items in tasks.items()}
        (work / "counts.json").write_text(json.dumps(counts) + "\n")
        return {"problems": counts}

    def _selection(self) -> tuple[Selector, Pool, Signals, Context]:
        from harness.selection import plugins

        inputs = self.stage.inputs
        selector = plugins.build(inputs["selector"], dict(inputs["params"]))
        if plugins.code_hash(inputs["selector"]) != inputs["code"]:
            raise RuntimeError(
                f"selector {inputs['selector']!r} was edited during the run; "
                "expected unchanged code: start the run again"
            )
        pool = Pool.load(self._parent("pool"))
        signals = Signals(self.stage, self.store, pool, device(), self.progress, self.provenance)
        rng = None
        if selector.stochastic:
            rng = np.random.default_rng(seed_for("select", inputs["row"], inputs["seed"]))
        return selector, pool, signals, signals.context(selector, rng)

    def _scores(self, work: Path) -> dict[str, Any]:
        selector, pool, signals, context = self._selection()
        scores = check_scores(selector.score(pool, context), pool, self.stage.label)  # type: ignore[attr-defined]
        write_scores(work, pool, {"score": scores, **context.recorded})
        return {**signals.costs, **_extras(work, context)}

    def _subset(self, work: Path) -> dict[str, Any]:
        inputs = self.stage.inputs
        pool = Pool.load(self._parent("pool"))
        budget = budget_of(inputs["fraction"], len(pool))
        facts: dict[str, Any] = {}
        if "scores" in self.stage.parents:
            columns = read_scores(self._parent("scores"))
            where = {name: i for i, name in enumerate(columns["id"])}
            scores = np.array([columns["score"][where[name]] for name in pool.ids])
            positions = best(scores, budget)
        elif "control" in inputs:
            positions = self._controlled(pool, budget)
        else:
            selector, pool, signals, context = self._selection()
            positions = selector.select(pool, budget, context)
            if context.recorded:
                write_scores(work, pool, context.recorded)
            facts = {**signals.costs, **_extras(work, context)}
        positions = check_positions(positions, pool, budget, self.stage.label)
        write_subset(work, pool, positions)
        return {"examples": budget, **facts}

    def _controlled(self, pool: Pool, budget: int) -> Any:
        from harness.data import testbed

        control = self.stage.inputs["control"]
        if control == "full":
            return np.arange(budget)
        import pandas as pd

        hidden = pd.read_parquet(self._parent("pool") / HIDDEN).set_index("id")["quality"]
        quality = [hidden[name] for name in pool.ids]
        rng = np.random.default_rng(seed_for("select", control, self.stage.inputs["seed"]))
        order = testbed.oracle_order if control == "oracle" else testbed.anti_oracle_order
        return order(quality, rng)[:budget]

    def _checkpoint(self, work: Path) -> dict[str, Any]:
        from harness.selection.subset import read_subset
        from harness.training.recipe import Recipe
        from harness.training.train import train

        pool = Pool.load(self._parent("pool"))
        subset = pool.take_ids(read_subset(self._parent("subset")))
        recipe = Recipe(**self.stage.inputs["recipe"])
        seed = seed_for("train", self.stage.inputs["seed"])
        log = train(self._parent("model"), subset, recipe, seed, work, self.progress)
        # The curve and the times are for people; they must not make two equal runs differ.
        (work / "train_log.json").unlink()
        return {"train": _facts(log)}

    def _trajectory(self, work: Path) -> dict[str, Any]:
        from harness.selection.context import Warmup
        from harness.training.recipe import Recipe
        from harness.training.trajectory import train_trajectory

        inputs = self.stage.inputs
        log = train_trajectory(
            self._parent("model"),
            Pool.load(self._parent("pool")),
            Recipe(**inputs["recipe"]),
            Warmup(**inputs["warmup"]),
            seed_for("train", inputs["seed"]),
            work,
            self.progress,
        )
        return {"train": _facts(log)}


def _extras(work: Path, context: Context) -> dict[str, Any]:
    """Write the tables that a selector attached; return the facts that it noted."""
    for name, columns in context.attached.items():
        write_table(work / f"{name}.parquet", columns)
    return {"facts": context.noted} if context.noted else {}


def _facts(log: TrainLog) -> dict[str, Any]:
    return {
        "steps": log.steps,
        "examples": log.examples,
        "tokens": log.tokens,
        "trainable_tokens": log.trainable_tokens,
        "truncated": log.truncated,
        "final_loss": log.final_loss,
        "losses": list(log.losses),
    }
