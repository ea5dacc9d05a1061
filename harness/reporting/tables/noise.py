"""Decode noise: how far the accuracy of one checkpoint moved when it was only evaluated again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.reporting import numbers
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import Results
from harness.reporting.tables import cells
from harness.reporting.tables.sheet import Column, Group, Line, Sheet, Table, cell

NUMBERS = (
    "n_items", "n_decodes", "accuracy", "sd", "sd_low", "sd_high", "binomial_sd", "low", "high",
    "verdicts_changed", "texts_changed",
)  # fmt: skip


def sheet(results: Results) -> Sheet | None:
    """noise.csv, .md and .tex; None where nothing was measured."""
    if not results.noise:
        return None
    numbers = [
        {"cell": name, "task": task, "repetitions": entry["repetitions"]}
        | {key: found[key] for key in NUMBERS}
        for name, entry in results.noise.items()
        for task, found in _parts(entry)
    ]
    groups = tuple(
        Group(_title(name, entry), tuple(_line(*part) for part in _parts(entry)))
        for name, entry in results.noise.items()
    )
    columns = (
        Column("Task", "l"),
        Column("Accuracy, %"),
        Column("SD, points", "Sr"),
        Column("Binomial SD", "S"),
        Column("Range, %", "r"),
        Column("Verdicts changed", "r"),
        Column("Texts changed", "r"),
    )
    return Sheet(
        name="noise",
        title=cells.titled(results, "decode noise"),
        numbers=pd.DataFrame(numbers),
        tables=(Table(columns, groups),),
        notes=_notes(results),
    )


def _parts(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [*entry["tasks"].items(), (MEAN, entry["mean"])]


def _title(name: str, entry: Mapping[str, Any]) -> str:
    engine, asked = entry["engine"], entry["decoding"]
    how = "greedy answers"
    if asked["temperature"] > 0:
        decodes = numbers.plural(asked["decodes"], "decode")
        how = f"{decodes} per item at temperature {asked['temperature']:g}"
    return (
        f"{name}: {entry['repetitions']} repetitions, {how}, {engine['name']} {engine['version']} "
        f"on {engine['device']}"
    )


def _line(task: str, found: Mapping[str, Any]) -> Line:
    ends = [found[name] for name in ("sd_low", "sd_high")]
    interval = "" if None in ends else f"[{_hundredths(ends[0])}, {_hundredths(ends[1])}]"
    low, high = (numbers.points(found[name]) for name in ("low", "high"))
    return (
        cell(task),
        cell(numbers.points(found["accuracy"])),
        cell(_hundredths(found["sd"]), interval),
        cell(NONE if found["binomial_sd"] is None else _hundredths(found["binomial_sd"])),
        cell(f"{low} to {high}"),
        cell(f"{found['verdicts_changed']} of {found['n_items']}"),
        cell(str(found["texts_changed"])),
    )


def _hundredths(share: float) -> str:
    return numbers.number(100 * share, 2)


def _notes(results: Results) -> list[str]:
    found = [
        "The same weights, evaluated again in other orders and, for sampled answers, with other "
        "seeds. SD: standard deviation of the accuracy over repetitions, in percentage points, "
        "[95% interval] by chi-square; a deviation of 0 has none. No number of training seeds "
        "explains this part of a difference.",
        "Binomial SD: what independent draws on these very items would give; greedy answers have "
        "none.",
        "Changed: items whose verdict, or text, was not the same in all repetitions.",
    ]
    for name, entry in results.noise.items():
        for part, values in entry.get("mixed", {}).items():
            listed = numbers.listing(map(str, values))
            found.append(f"{name}: repetitions differ in {part} ({listed}), part of what is seen.")
    return found
