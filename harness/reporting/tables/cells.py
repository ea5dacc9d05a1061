"""Lines of the main table as other tables arrange, mark and write them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.reporting import numbers
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import CONTROLS, MAIN, OWN, Results
from harness.reporting.tables.escape import DOWN, PLUS_MINUS, UP
from harness.reporting.tables.sheet import Cell, cell

SOLE = tuple(OWN)
"""Rows that exist once, whatever the fractions."""
Indexed = dict[tuple[str, float], dict[str, Any]]
"""Lines of the main table by row and fraction, and then by task."""


def titled(results: Results, what: str = "") -> str:
    """The title of a sheet: the experiment, its arm, and what is shown."""
    name = results.experiment + ("" if results.arm == MAIN else f", {results.arm}")
    return f"{name}: {what}" if what else name


def kept(results: Results, fraction: float) -> str:
    """The heading of a fraction; none where there is one only."""
    several = len(results.fractions) > 1
    return f"{numbers.percent(fraction)} of the pool kept" if several else ""


def compared_at(results: Results, lines: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Lines that meet the reference at a fraction: `base` and `full` do so at the middle one."""
    sole = lines["row"].isin(SOLE)
    here = (lines["fraction"] == fraction) & ~sole
    return lines[here | sole] if fraction == results.middle else lines[here]


def ranked(lines: pd.DataFrame, by: str) -> pd.DataFrame:
    """The largest first, controls below, lines without a number last."""
    return lines.assign(control=lines["row"].isin(CONTROLS)).sort_values(
        ["control", by], ascending=[True, False], kind="stable", na_position="last"
    )


def indexed(table: pd.DataFrame) -> Indexed:
    """Every row's lines at every fraction, by task."""
    found: Indexed = {}
    for line in table.itertuples():
        found.setdefault((line.row, line.fraction), {})[line.task] = line
    return found


def own(row: str, fraction: float) -> float:
    """The fraction that a row has: `base` and `full` have one of their own."""
    return OWN.get(row, fraction)


def mark(line: Any) -> str:
    """An arrow where the verdict is not a tie."""
    return {"better": UP, "worse": DOWN}.get(line.verdict, "")


def won(line: Any) -> bool:
    """Whether a line on the primary mean may stand out: Holm's interval must lie above 0."""
    return bool(line.task == MEAN and line.verdict == "better" and line.adjusted_low > 0)


def half_width(low: float, high: float) -> str:
    """Half of an interval in points, led by the sign; empty where it is undefined."""
    half = (high - low) / 2
    return f"{PLUS_MINUS} {numbers.points(half)}" if math.isfinite(half) else ""


def accuracy(line: Any) -> Cell:
    """Accuracy with the half-width of its interval, marked by the verdict."""
    if not math.isfinite(line.mean):
        return absent(line)
    text = numbers.points(line.mean)
    return cell(text, half_width(line.ci_low, line.ci_high), mark(line), bold=won(line))


def gain(line: Any) -> Cell:
    """The difference to the reference with the half-width of its interval, marked."""
    if not math.isfinite(line.diff):
        return absent(line)
    text = numbers.points(line.diff, signed=True)
    return cell(text, half_width(line.diff_low, line.diff_high), mark(line), bold=won(line))


def absent(line: Any) -> Cell:
    """What stands in the place of a number: that all cells failed or did not run, or a dash."""
    return cell(line.verdict if line.verdict in ("failed", "missing") else NONE)


def filled(groups: Iterable[Any]) -> tuple[Any, ...]:
    """Groups with lines."""
    return tuple(group for group in groups if group.lines)
