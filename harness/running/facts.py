"""What footnotes and provenance of a report need besides the records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.data import testbed
from harness.data.queries import Answers
from harness.evaluation.benchmarks import benchmark
from harness.experiment import records
from harness.experiment.records import parquet_bytes
from harness.experiment.settings import QueryConfig
from harness.experiment.stage import Stage, plain
from harness.experiment.store import Store
from harness.running import overlap
from harness.running.builders import HIDDEN
from harness.running.overlap import MAIN
from harness.running.plan import Plan
from harness.running.recipes import BenchmarkItemsRecipe, BuiltinItemsRecipe, SamplesRecipe


def write_pools(plan: Plan, store: Store, folder: Path) -> None:
    """Id, hidden class, length and steps of every pool example; no texts."""
    for arm, stage in plan.pools.items():
        artefact = store.get(stage)
        if artefact is None:
            continue
        pool = pd.read_parquet(artefact.folder / "pool.parquet", columns=["id", "labels"])
        frame = pd.DataFrame({"id": pool["id"]})
        frame["response_tokens"] = pool["labels"].map(lambda row: int((row != -100).sum()))
        hidden = artefact.folder / HIDDEN
        extra = pd.read_parquet(hidden) if hidden.exists() else frame[["id"]]
        frame = frame.merge(extra, on="id", how="left", validate="1:1", sort=False)
        for name in ("quality", "steps"):
            if name not in frame:
                frame[name] = None
        name = "pool.parquet" if arm == MAIN else f"pool-{arm}.parquet"
        frame = frame[["id", "quality", "response_tokens", "steps"]]
        records.write_atomic(folder / name, parquet_bytes(frame))


def facts(plan: Plan, store: Store) -> dict[str, Any]:
    """What footnotes and provenance need besides the records, by arm."""
    tasks = {
        task: _task_facts(stage, store)
        for task, stage in plan.cells[0].samples.items()
        if store.has(stage.parents["items"])
    }
    proofs = filter(None, map(store.get, plan.proofs))
    return {
        "engine": plain(plan.engine),
        "tasks": tasks,
        "arms": {arm: _arm_facts(arm, plan, store) for arm in plan.pools},
        "disjoint": [proof.info["problems"] for proof in proofs],
    }


def _arm_facts(arm: str, plan: Plan, store: Store) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if plan.experiment.pool.testbed is not None:
        entry["correct_classes"] = sorted(testbed.CORRECT)
    if pool := store.get(plan.pools[arm]):
        entry["pool"] = pool.info["report"]
    stages = plan.queries.get(arm)
    if stages and all(store.has(stages[when]) for when in ("before", "after")):
        entry |= _query_facts(stages, store, plan.experiment.query)
    if overlaps := overlap.facts(overlap.of_arm(plan.checks, arm), store):
        entry["overlap"] = overlaps
    return entry


def _task_facts(samples: Stage, store: Store) -> dict[str, Any]:
    """How a task is posed and graded, and how many items it has."""
    recipe, items = samples.recipe, samples.parents["items"]
    assert isinstance(recipe, SamplesRecipe)
    kind = recipe.answer_kind
    version, source = None, "a file of the experiment"
    if isinstance(items.recipe, BuiltinItemsRecipe):
        source = "testbed"
    elif isinstance(items.recipe, BenchmarkItemsRecipe):
        task = benchmark(items.recipe.benchmark)
        version = task.version
        local = items.recipe.file is not None
        source = "a local file" if local else f"{task.hub}@{task.revision[:12]}"
    return {
        "items": store.load(items).info["items"],
        "max_tokens": recipe.max_tokens,
        "grader": kind if kind == "plain" else f"{kind}, version {recipe.grader}",
        "version": version,
        "source": source,
    }


def _query_facts(
    stages: Mapping[str, Stage], store: Store, query: QueryConfig | None
) -> dict[str, Any]:
    assert query is not None
    answers = {w: Answers.load(store.load(stages[w]).folder) for w in ("before", "after")}
    right = {when: each.correct(query.rule) for when, each in answers.items()}
    facts: dict[str, Any] = {
        "n_queries": len(right["before"]),
        "n_C": int((~right["before"] & right["after"]).sum()),
        "n_I": int((right["before"] & ~right["after"]).sum()),
        "query_accuracy_before": float(right["before"].mean()),
        "query_accuracy_after": float(right["after"].mean()),
    }
    if query.decodes > 1:
        facts |= {"query_decodes": query.decodes, "query_rule": query.rule}
    return facts


def write_overlaps(plan: Plan, store: Store, folder: Path) -> None:
    """Rows that occur in two data sets, dropped or kept; no file where there are none."""
    for arm in plan.pools:
        checks = [c for c in overlap.of_arm(plan.checks, arm) if c.is_built(store)]
        findings = [finding for check in checks for finding in check.findings(store)]
        path = folder / ("overlap.parquet" if arm == MAIN else f"overlap-{arm}.parquet")
        if findings:
            records.write_atomic(path, parquet_bytes(overlap.frame(findings)))
        else:
            path.unlink(missing_ok=True)


def write_facts(plan: Plan, store: Store, folder: Path) -> None:
    """Write `facts.json`, the pool files, and the overlaps."""
    write_pools(plan, store, folder)
    write_overlaps(plan, store, folder)
    text = json.dumps(facts(plan, store), indent=1, sort_keys=True) + "\n"
    records.write_atomic(folder / "facts.json", text.encode())
