"""From the stored artefacts of a cell to its record and the small files beside it.

Everything here is a function of what the store holds, so a record written after a crash is the
record that would have been written before it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.running import overlap
from harness.experiment import records
from harness.data import testbed
from harness.reporting import quotes
from harness.running.builders import HIDDEN
from harness.experiment.config import QueryConfig
from harness.running.plan import Cell, Plan
from harness.data.queries import Answers
from harness.selection.selector import BOTH
from harness.running.signals import parameters_of
from harness.experiment.stage import Stage
from harness.experiment.store import Artefact, Store, digest
from harness.selection.subset import read_scores, read_subset
from harness.evaluation.tasks import benchmark

STABILITY = "stability.parquet"
"""A selector's own table of how stable its choice is, by the number of kept examples."""


def artefact(store: Store, stage: Stage) -> Artefact:
    """The finished artefact behind a stage."""
    found = store.get(stage.kind, stage.key)
    if found is None:
        raise RuntimeError(f"{stage.label} is not in the store")
    return found


def identity(cell: Cell, plan: Plan, protocol: str) -> dict[str, Any]:
    """The part of a record that says which cell it is about."""
    return {
        "schema": records.SCHEMA,
        "experiment": plan.experiment.name,
        "protocol": protocol,
        "arm": cell.arm,
        "cell": cell.name,
        "row": cell.row.row,
        "selector": cell.row.selector,
        "params": cell.row.params,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "key": cell_key(cell),
        "parents": parents(cell),
    }


def cell_key(cell: Cell) -> str:
    """Hash over the keys of a cell's samples."""
    return digest({task: stage.key for task, stage in cell.samples.items()})


def parents(cell: Cell) -> dict[str, Any]:
    """Keys of the stages behind a cell, by role."""
    found: dict[str, Any] = {"samples": {task: s.key for task, s in cell.samples.items()}}
    for stage in next(iter(cell.samples.values())).ancestry():
        if stage.kind in ("base", "model", "pool", "queryset", "tokenizer"):
            found[stage.kind] = stage.key
    if cell.subset is not None and cell.checkpoint is not None:
        found |= {"subset": cell.subset.key, "checkpoint": cell.checkpoint.key}
        if "scores" in cell.subset.parents:
            found["scores"] = cell.subset.parents["scores"].key
    return found


def recorded(
    cell: Cell, last: Mapping[str, Any] | None, protocol: str, store: Store, folder: Path
) -> bool:
    """Whether the newest record of `cell` is already about these very artefacts."""
    if last is None or last["status"] != "done":
        return False
    made = artefact(store, next(iter(cell.samples.values()))).meta["created"]
    same = (last["key"], last["protocol"], last["provenance"]["created"]) == (
        cell_key(cell),
        protocol,
        made,
    )
    files = [last[name] for name in ("samples", "selection") if last[name] is not None]
    return same and all((folder / name).exists() for name in files)


def done(cell: Cell, plan: Plan, protocol: str, store: Store, folder: Path) -> dict[str, Any]:
    """Write a finished cell's samples and selection into `folder`; return its record."""
    samples = {task: artefact(store, stage) for task, stage in cell.samples.items()}
    frames = [pd.read_parquet(a.folder / "samples.parquet") for a in samples.values()]
    key = cell_key(cell)
    data = _parquet(pd.concat(frames, ignore_index=True))
    path = f"samples/{key[:16]}.parquet"
    records.write_atomic(folder / path, data)
    first = next(iter(samples.values()))
    outputs = {"samples": digest({task: a.outputs for task, a in samples.items()})}
    entry = {
        **identity(cell, plan, protocol),
        "status": "done",
        "error": None,
        "samples": path,
        "selection": None,
        "n_examples": 0,
        "accuracy": {task: a.info["accuracy"] for task, a in samples.items()},
        "engine": first.info.get("engine"),
        "train": None,
        "provenance": {**first.meta["provenance"], "created": first.meta["created"]},
    }
    seconds = {
        "eval_seconds": sum(a.seconds + a.info["engine_seconds"] for a in samples.values()),
        "train_seconds": 0.0,
        "select_seconds": 0.0,
        "select_parts": {},
        "select_flops": 0.0,
        "train_flops": 0.0,
    }
    if cell.subset is not None and cell.checkpoint is not None:
        subset, checkpoint = artefact(store, cell.subset), artefact(store, cell.checkpoint)
        entry["selection"] = write_selection(cell, store, folder)
        entry["n_examples"] = subset.info["examples"]
        entry["train"] = {k: v for k, v in checkpoint.info["train"].items() if k != "losses"}
        outputs |= {"subset": subset.outputs["subset.parquet"]}
        outputs |= {"checkpoint": checkpoint.outputs["model.safetensors"]}
        seconds["train_seconds"] = checkpoint.seconds
        seconds["train_flops"] = training_flops(cell.checkpoint, store)
        seconds |= selection_cost(cell.subset, store)
        if known := selection_facts(cell.subset, store):
            entry["facts"] = known
    return {**entry, "outputs": outputs, "costs": seconds}


def failed(
    cell: Cell, plan: Plan, protocol: str, stage: Stage, error: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a cell that cannot be finished because `stage` failed."""
    return {
        **identity(cell, plan, protocol),
        "status": "failed",
        "error": {"stage": stage.kind, "label": stage.label, **error},
        "samples": None,
        "selection": None,
    }


def write_selection(cell: Cell, store: Store, folder: Path) -> str:
    """Which examples were chosen, and the scores behind it; one file per selection."""
    assert cell.subset is not None
    path = f"selections/{cell.subset.key[:16]}.parquet"
    if (folder / path).exists():
        return path
    pool = cell.subset.parents["pool"]
    ids = pd.read_parquet(artefact(store, pool).folder / "pool.parquet", columns=["id"])["id"]
    subset = artefact(store, cell.subset)
    chosen = set(read_subset(subset.folder))
    scored = cell.subset.parents.get("scores")
    scores = read_scores(artefact(store, scored).folder if scored else subset.folder)
    frame = pd.DataFrame({"id": ids, "chosen": [name in chosen for name in ids]})
    for name, values in scores.items():
        if name != "id":
            frame[name] = pd.Series(values, index=scores["id"]).loc[ids].to_numpy()
    records.write_atomic(folder / path, _parquet(frame))
    return path


def selection_cost(subset: Stage, store: Store) -> dict[str, Any]:
    """What choosing cost in all, in seconds by part and in FLOPs, whoever paid first."""
    parts: dict[str, float] = {}
    for stage in _chain(subset):
        made = artefact(store, stage)
        waited = made.info.get("waited", 0.0)
        parts["choose"] = parts.get("choose", 0.0) + max(0.0, made.seconds - waited)
        for name, seconds in made.info.get("shared", {}).items():
            parts[name] = parts.get(name, 0.0) + seconds
        for role, parent in stage.parents.items():
            if role in ("reference", "trajectory", "before", "after"):
                name = "answers" if role in ("before", "after") else role
                parts[name] = parts.get(name, 0.0) + artefact(store, parent).seconds
            elif role.startswith("row:"):
                parts[role] = selection_cost(parent, store)["select_seconds"]
    return {
        "select_seconds": sum(parts.values()),
        "select_parts": parts,
        "select_flops": selection_flops(subset, store),
    }


def _chain(subset: Stage) -> list[Stage]:
    """The stages that choose: the subset, and the scores where they are a stage of their own."""
    return [subset, *([subset.parents["scores"]] if "scores" in subset.parents else [])]


def selection_flops(subset: Stage, store: Store) -> float | None:
    """Estimated floating-point operations of a selection; None where the model's size is unknown.

    2 per parameter and token for a forward pass, 6 with the backward pass; the training
    of a reference or a trajectory counts, and so do signals that another row has paid for, and the
    rows whose choices this one looks at.
    """
    total = 0.0
    for stage in _chain(subset):
        for role, parent in stage.parents.items():
            if role.startswith("row:"):
                other = selection_flops(parent, store)
                if other is None:
                    return None
                total += other
        operations = artefact(store, stage).info.get("operations", 0.0)
        trained = [stage.parents[r] for r in ("reference", "trajectory") if r in stage.parents]
        for run in trained:
            operations += BOTH * artefact(store, run).info["train"]["tokens"]
        if not operations:
            continue
        model = trained[0].parents["model"] if trained else stage.parents["model"]
        parameters = parameters_of(model, store)
        if parameters is None:
            return None
        total += operations * parameters
    return total


def training_flops(checkpoint: Stage, store: Store) -> float | None:
    """Estimated floating-point operations of a fine-tuning; None where the model's size is unknown.

    6 per parameter and token, padding left out; with LoRA, whose frozen weights need no
    gradients of their own, an upper bound.
    """
    parameters = parameters_of(checkpoint.parents["model"], store)
    if parameters is None:
        return None
    tokens = artefact(store, checkpoint).info["train"]["tokens"]
    return float(BOTH * tokens * parameters)


def selection_facts(subset: Stage, store: Store) -> dict[str, Any]:
    """What the selector noted about its selection; stability at the size that was chosen."""
    made = artefact(store, subset.parents.get("scores", subset))
    facts = dict(made.info.get("facts", {}))
    table = made.folder / STABILITY
    if table.exists():
        lines = pd.read_parquet(table).set_index("kept")
        line = lines.loc[artefact(store, subset).info["examples"]]
        facts["stability"] = {**facts.get("stability", {}), **line.to_dict()}
    return facts


def write_pools(plan: Plan, store: Store, folder: Path) -> None:
    """Id, hidden class, length and steps of every pool example; no texts."""
    for arm, stage in plan.pools.items():
        made = store.get(stage.kind, stage.key)
        if made is None:
            continue
        pool = pd.read_parquet(made.folder / "pool.parquet", columns=["id", "labels"])
        frame = pd.DataFrame({"id": pool["id"]})
        frame["response_tokens"] = pool["labels"].map(lambda row: int((row != -100).sum()))
        hidden = made.folder / HIDDEN
        extra = pd.read_parquet(hidden) if hidden.exists() else frame[["id"]]
        frame = frame.merge(extra, on="id", how="left", validate="1:1", sort=False)
        for name in ("quality", "steps"):
            if name not in frame:
                frame[name] = None
        name = "pool.parquet" if arm == "main" else f"pool-{arm}.parquet"
        frame = frame[["id", "quality", "response_tokens", "steps"]]
        records.write_atomic(folder / name, _parquet(frame))


def facts(plan: Plan, store: Store) -> dict[str, Any]:
    """What footnotes and provenance need besides the records, by arm."""
    found: dict[str, Any] = {"engine": dict(plan.engine), "arms": {}}
    asked = plan.cells[0].samples
    found["tasks"] = {t: _task_facts(s, store) for t, s in asked.items() if _made(s, store)}
    for arm, pool in plan.pools.items():
        entry: dict[str, Any] = {}
        if plan.experiment.pool.testbed is not None:
            entry["correct_classes"] = sorted(testbed.CORRECT)
        made = store.get(pool.kind, pool.key)
        if made is not None:
            entry["pool"] = made.info["report"]
        stages = plan.queries.get(arm)
        if stages and all(store.has(stages[w].kind, stages[w].key) for w in ("before", "after")):
            entry |= _query_facts(stages, store, plan.experiment.query)
        if known := overlap.facts(overlap.of_arm(plan.checks, arm), store):
            entry["overlap"] = known
        found["arms"][arm] = entry
    proofs = [store.get(stage.kind, stage.key) for stage in plan.proofs]
    found["disjoint"] = [made.info["problems"] for made in proofs if made is not None]
    return found


def _made(samples: Stage, store: Store) -> bool:
    return store.has("items", samples.parents["items"].key)


def _task_facts(samples: Stage, store: Store) -> dict[str, Any]:
    """How a task is asked and graded, and of how many items it consists."""
    items, inputs = samples.parents["items"], samples.inputs
    kind = inputs.get("kind", "plain")
    found = {
        "items": artefact(store, items).info["items"],
        "max_tokens": inputs["max_tokens"],
        "grader": kind if kind == "plain" else f"{kind}, version {inputs['grader']}",
        "version": None,
        "source": "testbed" if "testbed" in items.inputs else "a file of the experiment",
    }
    if "benchmark" in items.inputs:
        task = benchmark(items.inputs["benchmark"])
        copy = "a local file" if "file" in items.inputs else f"{task.hub}@{task.revision[:12]}"
        found |= {"version": task.version, "source": copy}
    return found


def _query_facts(
    stages: Mapping[str, Stage], store: Store, query: QueryConfig | None
) -> dict[str, Any]:
    assert query is not None
    answers = {w: Answers.load(artefact(store, stages[w]).folder) for w in ("before", "after")}
    right = {when: found.correct(query.rule) for when, found in answers.items()}
    found: dict[str, Any] = {
        "n_queries": len(right["before"]),
        "n_C": int((~right["before"] & right["after"]).sum()),
        "n_I": int((right["before"] & ~right["after"]).sum()),
        "query_accuracy_before": float(right["before"].mean()),
        "query_accuracy_after": float(right["after"].mean()),
    }
    if query.decodes > 1:
        found |= {"query_decodes": query.decodes, "query_rule": query.rule}
    return found


def write_overlaps(plan: Plan, store: Store, folder: Path) -> None:
    """What stands in two data sets and was dropped or kept; no file where nothing does."""
    for arm in plan.pools:
        checks = [c for c in overlap.of_arm(plan.checks, arm) if c.made(store)]
        found = [finding for check in checks for finding in check.found(store)]
        path = folder / ("overlap.parquet" if arm == "main" else f"overlap-{arm}.parquet")
        if found:
            records.write_atomic(path, _parquet(overlap.frame(found)))
        else:
            path.unlink(missing_ok=True)


def write_texts(plan: Plan, store: Store, folder: Path) -> None:
    """What a report may quote: examples of each arm's pool, and questions with their answers.

    Files whose artefacts are in another store stay as they are.
    """
    # Here, since a run would otherwise start with everything that reports need.
    from harness.reporting.page import answers, examples
    from harness.reporting.results import load

    if not records.read(folder):
        return
    arms = {results.arm: results for results in load(folder)}
    asked: set[tuple[str, str]] = set()
    for arm, stage in plan.pools.items():
        made = store.get(stage.kind, stage.key)
        if made is not None:
            ours = plan.experiment.pool.testbed is not None
            shown = None if ours else examples.shown(arms[arm])
            columns = ["id", *quotes.EXAMPLE_COLUMNS]
            frame = pd.read_parquet(made.folder / "pool.parquet", columns=columns)
            kept = quotes.examples(frame, shown)
            records.write_atomic(folder / quotes.examples_file(arm), _parquet(kept))
        asked |= set(answers.shown(arms[arm]))
    kept = [_questions(task, s, store, asked) for task, s in plan.cells[0].samples.items()]
    if kept and all(frame is not None for frame in kept):
        whole = pd.concat(kept, ignore_index=True)
        records.write_atomic(folder / quotes.QUESTIONS, _parquet(whole))


def _questions(
    task: str, samples: Stage, store: Store, shown: set[tuple[str, str]]
) -> pd.DataFrame | None:
    """What is kept of a task's items; None where they are not in the store."""
    items = samples.parents["items"]
    made = store.get(items.kind, items.key)
    if made is None:
        return None
    lines = (made.folder / "items.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    frame = pd.DataFrame(
        [
            # Without the template of a chat, where the item says what was asked apart from it.
            (task, row["id"], row.get("question", row["prompt"]), row["answer"])
            for row in rows
        ],
        columns=["task", "item", *quotes.QUESTION_COLUMNS],
    )
    return quotes.questions(frame, None if "testbed" in items.inputs else sorted(shown))


def write_facts(plan: Plan, store: Store, folder: Path) -> None:
    """Write `facts.json`, the pool files, the overlaps and the texts that a report may quote."""
    write_pools(plan, store, folder)
    write_overlaps(plan, store, folder)
    text = json.dumps(facts(plan, store), indent=1, sort_keys=True) + "\n"
    records.write_atomic(folder / "facts.json", text.encode())
    write_texts(plan, store, folder)  # reads what was written before


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
