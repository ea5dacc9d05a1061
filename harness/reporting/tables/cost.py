"""What choosing costs against what it gains, and what the reference would have got for it.

Choosing is counted in runs of the reference: with F operations for a selection and f for one
fine-tuning of the reference at the same fraction, F / f more runs, or F / f times its steps, would
have cost as much. Seconds give the same ratio where records lack operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.reporting import footnotes, numbers
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import CONTROLS, Cell, Results, mean_cost
from harness.reporting.tables import cells as lines
from harness.reporting.tables.escape import DOWN, UP
from harness.reporting.tables.sheet import Cell as Shown
from harness.reporting.tables.sheet import Column, Group, Line, Sheet, Table, cell

COLUMNS = [
    "row", "fraction", "select_seconds", "train_seconds", "eval_seconds", "total_seconds",
    "select_flops", "train_flops", "total_flops", "select_runs", "select_runs_by_seconds",
    "select_steps", "diff", "diff_low", "diff_high", "verdict",
]  # fmt: skip
SECONDS = ("select_seconds", "train_seconds", "eval_seconds")
FLOPS = ("select_flops", "train_flops")
TERA = 1e12


def sheet(results: Results, table: pd.DataFrame) -> Sheet:
    """cost.csv, .md and .tex."""
    spent = _spent(results, table)
    groups = []
    for fraction in results.fractions:
        part = lines.compared_at(results, spent, fraction)
        part = part.assign(control=part["row"].isin(CONTROLS))
        part = part.sort_values(["control", "select_seconds"], kind="stable")
        found = tuple(_line(results, spent, entry) for _, entry in part.iterrows())
        groups.append(Group(lines.kept(results, fraction), found))
    return Sheet(
        name="cost",
        title=lines.titled(results, "cost per cell and gain"),
        numbers=spent[COLUMNS],
        tables=(Table(_columns(results, spent), lines.filled(groups)),),
        notes=_notes(results, spent),
    )


def _spent(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Means over the finished cells of every row and fraction; nan where a number is unknown."""
    found = table[table["task"] == MEAN].copy()
    pairs = list(zip(found["row"], found["fraction"], strict=True))
    for name in FLOPS:
        found[name] = [mean_cost(results.groups[pair], name, whole=True) for pair in pairs]
    found["total_seconds"] = sum(found[name] for name in SECONDS)
    found["total_flops"] = found["select_flops"] + found["train_flops"]
    rivals = [_rival(results, *pair) for pair in pairs]
    for name, spent, unit in (
        ("select_runs", "select_flops", "train_flops"),
        ("select_runs_by_seconds", "select_seconds", "train_seconds"),
    ):
        paid = pd.Series([mean_cost(cells, unit, whole=True) for cells in rivals], found.index)
        found[name] = found[spent] / paid.where(paid > 0)
    steps = pd.Series([_steps(cells) for cells in rivals], found.index)
    found["select_steps"] = found["select_runs"] * steps
    return found


def _rival(results: Results, row: str, fraction: float) -> tuple[Cell, ...]:
    """The reference's cells that a row is compared with."""
    at = results.middle if row in lines.SOLE else fraction
    own = lines.own(results.reference, at)
    return results.groups.get((results.reference, own), ())


def _steps(cells: tuple[Cell, ...]) -> float:
    known = [c.record["train"]["steps"] for c in cells if c.record.get("train")]
    return math.fsum(known) / len(known) if known else math.nan


def _columns(results: Results, spent: pd.DataFrame) -> tuple[Column, ...]:
    flops, runs = _shown(spent)
    names = {"select_runs": "by FLOP", "select_runs_by_seconds": "by seconds"}
    done = [name.removesuffix("_flops").replace("total", "both") for name in flops]
    by = [names[name] for name in runs]
    return (
        Column("Row", "l"),
        _several("Seconds", ["select", "train", "eval"]),
        _several("TFLOP", done),
        _several("Runs", by),
        *([Column("Steps")] if "select_runs" in runs else []),
        Column(f"Difference to {results.reference}, points", "Srl", short="Difference, points"),
    )


def _several(what: str, parts: Sequence[str]) -> Column:
    """A column of several numbers that its heading names."""
    return Column(
        f"{what}: {' / '.join(parts)}",
        "S" * len(parts),
        joint=" / ",
        short=f"{what}: {', '.join(parts)}",
    )


def _shown(spent: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Operations, and units of a run, that any row knows."""
    flops = [name for name in (*FLOPS, "total_flops") if spent[name].notna().any()]
    runs = [n for n in ("select_runs", "select_runs_by_seconds") if spent[n].notna().any()]
    return flops or ["select_flops"], runs or ["select_runs_by_seconds"]


def _line(results: Results, spent: pd.DataFrame, entry: pd.Series[Any]) -> Line:
    flops, runs = _shown(spent)
    steps = numbers.number(entry["select_steps"], 0)
    return (
        cell(entry["row"]),
        cell(*(numbers.seconds(entry[name]) for name in SECONDS)),
        cell(*(_number(entry[name] / TERA) for name in flops)),
        cell(*(_number(entry[name]) for name in runs)),
        *([cell(steps)] if "select_runs" in runs else []),
        cell("", "reference") if entry["row"] == results.reference else _gain(entry),
    )


def _gain(entry: pd.Series[Any]) -> Shown:
    if not math.isfinite(entry["diff"]):
        return lines.absent(entry)
    text = numbers.points(entry["diff"], signed=True)
    return cell(text, numbers.interval(entry["diff_low"], entry["diff_high"]), lines.mark(entry))


def _number(value: float) -> str:
    """About three digits."""
    if not math.isfinite(value):
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(results: Results, spent: pd.DataFrame) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    _, runs = _shown(spent)
    found = [
        "Means per finished cell. Choosing counts everything that a row needs, also what other "
        "rows share with it, whoever paid first. A choice that does not depend on the seed is made "
        "once for all seeds, so it weighs less the more runs follow.",
        f"Runs: how many more fine-tunings of {reference} at the same fraction choosing would have "
        f"paid for (base and full: at {numbers.percent(results.middle)})"
        + (f"; steps: the same in training steps of {reference}" if "select_runs" in runs else "")
        + f". What {reference} would have gained by them was not measured.",
        "TFLOP: estimated, 2 per parameter and token of a forward pass and 6 with the backward "
        "pass, an upper bound with LoRA; evaluation is not counted.",
    ]
    if spent.loc[spent["train_seconds"] > 0, "train_flops"].isna().any():
        found.append(
            "Some or all of these records are older than the count of operations of training: "
            "runs by seconds stand where it is lacking."
        )
    found.append(
        f"Difference: paired, [{level} interval]; {UP} better and {DOWN} worse by the "
        "Holm-adjusted test on the mean over tasks."
    )
    return [*found, *footnotes.testbed_notes(results)]
