"""Why a cell is what it is: its chain of stages, and what changed since its last record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.experiment import records
from harness.experiment.stage import Stage, with_ancestors
from harness.experiment.store import META, Store
from harness.running.cell_record import cell_key, parents
from harness.running.plan import Cell, Plan


def explain(plan: Plan, cell: Cell, store: Store, results: Path) -> dict[str, Any]:
    """State of `cell` (done, stale, missing or failed) and the lines that tell why."""
    last = records.newest(records.read(results)).get(cell.name)
    stages = _chain(cell)
    missing = [s for s in stages if _mark(s, store) == "missing"]
    lines: list[str] = []
    if not missing:
        state = "done"
    elif last is None:
        state = "missing"
        lines.append("It has not been run yet.")
    elif last["key"] == cell_key(cell) and last["status"] == "done":
        state = "missing"
        lines.append(
            "Its record is current, but its artefacts are not in this store "
            f"({store.root}): it was run elsewhere, or the store was emptied."
        )
    else:
        state = "stale"
        lines += _changes(cell, last, store)
    if last is not None and last["status"] == "failed":
        state = "failed"
        error = last["error"]
        lines.append(f"Its last run failed at {error['label']}: {error['message']}")
    lines.append("Stages, in order:")
    for stage in stages:
        lines.append(f"  {_mark(stage, store):8} {stage.kind:10} {stage.key[:12]}  {stage.label}")
    for stage in missing:
        log = store.log(stage)
        if log is not None:
            lines.append(f"Log of the last try at {stage.label}: {log}")
    if last is not None and last["status"] == "done":
        origin = last["provenance"]
        engine = origin["engine"]
        lines.append(
            f"Last recorded {origin['created']} at commit {origin['commit'] or 'unknown'}"
            f"{' with local changes' if origin['dirty'] else ''}, {origin['device']} "
            f"({origin['processor']}), engine {engine['name']} {engine['version']}."
        )
    return {
        "cell": cell.name,
        "state": state,
        "lines": lines,
        "stages": [
            {"kind": s.kind, "key": s.key, "label": s.label, "state": _mark(s, store)}
            for s in stages
        ],
        "record": last,
    }


def _chain(cell: Cell) -> list[Stage]:
    """Everything that a cell stands on, parents first."""
    return list(with_ancestors(cell.samples.values()).values())


def _mark(stage: Stage, store: Store) -> str:
    if stage.recipe.external:
        return "external"
    return "stored" if store.has(stage) else "missing"


def _changes(cell: Cell, last: Mapping[str, Any], store: Store) -> list[str]:
    """What differs between the stages of the last record and those of today."""
    before, now = last["parents"], parents(cell)
    today = {stage.key: stage for stage in _chain(cell)}
    lines = []
    for role, key in _flat(now):
        old = dict(_flat(before)).get(role)
        if old is None or old == key:
            continue
        manifest = _stored_manifest(store, old)
        if manifest is None:
            lines.append(f"{role} changed (its old inputs are no longer in the store)")
            continue
        differences = list(_diff(manifest["inputs"], today[key].manifest["inputs"]))
        if manifest["version"] != today[key].recipe.version:
            differences.append(f"version {manifest['version']} -> {today[key].recipe.version}")
        for line in differences:
            lines.append(f"{role}: {line}")
        if not differences:
            lines.append(f"{role} depends on something above that changed")
    return ["Stale; changed since its last record:", *(f"  {line}" for line in lines)]


def _flat(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    order = ("tokenizer", "base", "model", "pool", "queryset", "scores", "subset", "checkpoint")
    for role in order:
        if role in keys:
            yield role, keys[role]
    for task, key in keys["samples"].items():
        yield f"samples of {task}", key


def _stored_manifest(store: Store, key: str) -> dict[str, Any] | None:
    for path in store.root.glob(f"*/{key[:32]}/{META}"):
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
        return manifest
    return None


def _diff(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _diff(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
    elif old != new:
        if where == "code":
            yield "the selector's code changed"
        else:
            yield f"{where} {old!r} -> {new!r}"
