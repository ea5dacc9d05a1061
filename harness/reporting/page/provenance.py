"""Where the numbers of a page come from, the commands behind them, and the files beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from harness.reporting import numbers, tables
from harness.reporting.results import BASE, CONTROLS, FULL, MAIN, Results


def environments(results: Results) -> list[dict[str, Any]]:
    """Distinct environments that the cells ran in, each with its number of cells."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for cell in results.cells:
        if cell.provenance:
            same = {key: value for key, value in cell.provenance.items() if key != "created"}
            sets.setdefault(json.dumps(same, sort_keys=True), []).append(cell.provenance)
    found = []
    for _, group in sorted(sets.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        first = group[0]
        engine = first.get("engine") or {}
        dates = sorted(str(entry["created"])[:10] for entry in group if entry.get("created"))
        device = f"{first.get('device', '?')}, {first.get('processor', '?')}"
        found.append(
            {
                "cells": numbers.plural(len(group), "cell"),
                "commit": str(first.get("commit") or "unknown"),
                "dirty": first.get("dirty"),
                "when": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "unknown",
                "device": f"{device}, {numbers.plural(int(first.get('threads') or 1), 'thread')}",
                "engine": f"{engine.get('name', '?')} {engine.get('version', '?')}",
                "python": f"{first.get('python', '?')} on {first.get('platform', '?')}",
                "packages": sorted((first.get("packages") or {}).items()),
            }
        )
    return found


def first_row(results: Results, table: pd.DataFrame) -> str:
    """The finished row to name as an example: the best selector, else another."""
    aside = (*CONTROLS, results.reference)
    lines = table[(table["task"] == numbers.MEAN) & (table["mean"].notna())]
    chosen = lines[~lines["row"].isin(aside)]
    ranked = tables.order(results, chosen, list(dict.fromkeys(chosen["row"])))
    controls = [row for row in lines["row"] if row != results.reference]
    others = sorted(controls, key=(BASE, FULL).__contains__)  # those that chose come first
    return str((ranked or others or [results.reference])[0])


def commands(results: Results, table: pd.DataFrame) -> list[tuple[str, str]]:
    """What to type for this very experiment, with a row of it as the example."""
    name, row = shlex.quote(results.experiment), first_row(results, table)
    cells = [c for c in results.cells if c.row == row]
    cell = next((c for c in cells if c.status == "done"), cells[0] if cells else None)
    found = [
        ("Run it, or what is missing of it", f"python -m nox -s benchmark -- {name}"),
        ("Rebuild all tables, figures and pages", "python -m nox -s report"),
        ("This report alone", f"cotsieve report {name}"),
    ]
    if row != results.reference:
        pair = f"{shlex.quote(row)} {shlex.quote(results.reference)}{_arm(results)}"
        found.append(("Compare two rows", f"cotsieve compare {name} {pair}"))
    if cell is None:
        return found
    full = cell.name if results.arm == MAIN or ":" in cell.name else f"{results.arm}:{cell.name}"
    found.append(("Where a cell comes from", f"cotsieve explain {name} {shlex.quote(full)}"))
    if 0 < cell.fraction <= 1:
        at = f"--fraction {cell.fraction:g} --seed {cell.seed}{_arm(results)}"
        command = f"cotsieve subset {name} {shlex.quote(row)} {at} --out subset.jsonl"
        found.append(("The examples that a row chose", command))
    return found


def _arm(results: Results) -> str:
    return "" if results.arm == MAIN else f" --arm {shlex.quote(results.arm)}"


def files(names: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Names of files by stem, each with its endings, in the order in which they are given."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        found.setdefault(path.stem, []).append((path.suffix[1:].upper(), name))
    return list(found.items())
