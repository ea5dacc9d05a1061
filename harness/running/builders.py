"""Builders of data sets, tasks and trained models; they run in worker processes.

A builder takes a recipe and a workspace, writes files and returns facts worth keeping.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.items import ITEMS_FILE, read_items, write_items
from harness.data.pool import Pool
from harness.experiment.settings import DataConfig, PoolConfig
from harness.experiment.stage import Stage
from harness.running import overlap
from harness.running.recipes import (
    BaseModelRecipe,
    BenchmarkItemsRecipe,
    BuiltinItemsRecipe,
    CheckpointRecipe,
    DataRecipe,
    DisjointRecipe,
    FileItemsRecipe,
    PoolRecipe,
    QuerySetRecipe,
    TokenizerRecipe,
    TrajectoryRecipe,
)
from harness.running.workspace import Workspace, seed_for

if TYPE_CHECKING:
    from harness.training.train import TrainLog

HIDDEN = "hidden.parquet"
"""Columns of the testbed that selectors must not see."""


def tokenizer(recipe: TokenizerRecipe, work: Workspace) -> dict[str, Any]:
    """Write the testbed's tokenizer."""
    from harness.data import testbed

    testbed.build_tokenizer(work.folder)
    return {}


def base_model(recipe: BaseModelRecipe, work: Workspace) -> dict[str, Any]:
    """Pre-train a base model of the testbed."""
    from harness.data import testbed

    log = testbed.train_base(recipe.spec, work.folder, work.progress)
    return {name: log[name] for name in ("parameters", "final_loss")}


def pool(recipe: PoolRecipe, work: Workspace) -> dict[str, Any]:
    """Read and tokenise a pool; of the testbed, keep what selectors must not see apart."""
    import pandas as pd

    from harness.data import testbed

    config = recipe.config
    assert isinstance(config, PoolConfig)
    if recipe.without_overlaps:
        return overlap.leave_out(work)
    if config.testbed is None:
        return _from_source(recipe, work, config.invalid)
    rows = testbed.make_pool(testbed.PoolSpec(config.size or 1000, config.errors, config.seed))
    hidden = [{"id": r["id"], "quality": r.pop("quality"), "steps": r["steps"]} for r in rows]
    pd.DataFrame(hidden).to_parquet(work.folder / HIDDEN, index=False)
    return _from_testbed(rows, recipe, work)


def query_set(recipe: QuerySetRecipe, work: Workspace) -> dict[str, Any]:
    """Read and tokenise a query set."""
    from harness.data import testbed

    if recipe.without_overlaps:
        return overlap.leave_out(work)
    if recipe.config.testbed is None:
        return _from_source(recipe, work)
    rows = testbed.make_queries(recipe.config.size or 300, recipe.config.seed)
    return _from_testbed(rows, recipe, work)


def _from_testbed(rows: list[Any], recipe: DataRecipe, work: Workspace) -> dict[str, Any]:
    from harness.data.dataset import Report, tokenise

    config = DataConfig(dataset="testbed:", id="id", answer="answer", template="{prompt}")
    report = Report("testbed", rows=len(rows))
    tokenise(rows, config, work.tokenizer(), recipe.max_tokens, report).save(work.folder)
    return {"report": report.as_dict()}


def _from_source(recipe: DataRecipe, work: Workspace, invalid: str = "refuse") -> dict[str, Any]:
    from harness.data.dataset import read, tokenise

    config = recipe.config
    rows, report = read(config, work.stage.path)
    pool = tokenise(rows, config, work.tokenizer(), recipe.max_tokens, report, invalid)
    if config.size is not None and config.size < len(pool):
        rng = np.random.default_rng([config.seed, len(pool)])
        pool = pool.take(np.sort(rng.permutation(len(pool))[: config.size]))
    pool.save(work.folder)
    return {"report": report.as_dict(), "text": str(report)}


def builtin_items(recipe: BuiltinItemsRecipe, work: Workspace) -> dict[str, Any]:
    """Draw the items of a built-in task."""
    from harness.data import testbed

    rows = testbed.make_task(recipe.testbed, recipe.items, recipe.seed)
    kept = ("id", "prompt", "answer")
    return _write_items([{name: row[name] for name in kept} for row in rows], work)


def file_items(recipe: FileItemsRecipe, work: Workspace) -> dict[str, Any]:
    """Read the items of a task over a file of the user."""

    from harness.data.dataset import items_from_file

    assert work.stage.path is not None
    columns = {"prompt": recipe.prompt, "answer": recipe.answer, "id": recipe.id}
    columns["template"] = recipe.template
    return _write_items(items_from_file(work.stage.path, columns, work.tokenizer()), work)


def benchmark_items(recipe: BenchmarkItemsRecipe, work: Workspace) -> dict[str, Any]:
    """Read the items of a public benchmark, each with an answer that its grader can read."""
    from harness.data.dataset import render
    from harness.data.grading import Grader
    from harness.evaluation.benchmarks import benchmark, make_items

    task = benchmark(recipe.benchmark)
    rows = make_items(task, work.stage.path)
    grader = Grader(task.kind)
    for row in rows:
        try:
            row["answer"] = grader.reference(row["answer"])
        except ValueError as error:
            raise ValueError(f"{task.name}: item {row['id']}: {error}") from None
    prompts = render([row["prompt"] for row in rows], recipe.template, work.tokenizer())
    items = [{**row, "prompt": text} for row, text in zip(rows, prompts, strict=True)]
    return _write_items(items, work)


def _write_items(rows: list[dict[str, Any]], work: Workspace) -> dict[str, Any]:
    write_items(work.folder / ITEMS_FILE, rows)
    return {"items": len(rows)}


def disjoint(recipe: DisjointRecipe, work: Workspace) -> dict[str, Any]:
    """Check that the testbed's pool, queries and tasks share no problem."""
    from harness.data import testbed

    def rows(stage: Stage) -> list[dict[str, Any]]:
        folder = work.store.folder(stage)
        if stage.kind == "items":
            return read_items(folder / ITEMS_FILE)
        data = Pool.load(folder)
        prompts = data.column("prompt")
        return [{"id": i, "prompt": p} for i, p in zip(data.ids, prompts, strict=True)]

    parents = work.stage.parents
    tasks = {
        role.removeprefix(overlap.ITEMS): rows(parent)
        for role, parent in parents.items()
        if role.startswith(overlap.ITEMS)
    }
    queries = rows(parents["queryset"]) if "queryset" in parents else []
    examples = rows(parents["pool"])
    testbed.check_disjoint(examples, queries, tasks)
    counts = {"pool": len(examples), "queries": len(queries)}
    counts |= {name: len(items) for name, items in tasks.items()}
    (work.folder / "counts.json").write_text(json.dumps(counts) + "\n")
    return {"problems": counts}


def checkpoint(recipe: CheckpointRecipe, work: Workspace) -> dict[str, Any]:
    """Fine-tune the base model on a subset."""
    from harness.selection.subset import read_subset
    from harness.training.train import train

    subset = work.pool().take_ids(read_subset(work.parent("subset")))
    seed = seed_for("train", recipe.seed)
    log = train(work.parent("model"), subset, recipe.train, seed, work.folder, work.progress)
    # The curve and the times are for people; they must not make two equal runs differ.
    (work.folder / "train_log.json").unlink()
    return {"train": _facts(log)}


def trajectory(recipe: TrajectoryRecipe, work: Workspace) -> dict[str, Any]:
    """Fine-tune the base model and keep checkpoints on the way."""
    from harness.training.trajectory import train_trajectory

    seed = seed_for("train", recipe.seed)
    log = train_trajectory(
        work.parent("model"), work.pool(), recipe.train, recipe.run, seed, work.folder,
        work.progress,
    )  # fmt: skip
    return {"train": _facts(log)}


def _facts(log: TrainLog) -> dict[str, Any]:
    names = ("steps", "examples", "tokens", "trainable_tokens", "truncated", "final_loss")
    return {**{name: getattr(log, name) for name in names}, "losses": list(log.losses)}
