"""Panels whose lines are named rows: the frame that forest plots and costs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting import numbers, tables
from harness.reporting.figures.style import BLACK, LIGHT, VERDICTS, VERMILLION, row_label
from harness.reporting.numbers import MEAN
from harness.reporting.results import CONTROLS, OWN, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_HEIGHT = 2.1
"""Inches that legend and labels need even for a single row."""
ROW_HEIGHT = 0.235
"""Inches per row."""
Lines = dict[tuple[str, float], Any]
"""The table's lines on the primary mean, by row and fraction."""


def primary(table: pd.DataFrame) -> Lines:
    """The lines on the mean over tasks."""
    lines = table[table["task"] == MEAN]
    return {(line.row, line.fraction): line for line in lines.itertuples()}


def ranked(results: Results, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Selector rows and control rows, best first."""
    selectors = [row for row in results.rows if row not in CONTROLS]
    controls = [row for row in results.rows if row in CONTROLS]
    return tables.order(results, table, selectors), tables.order(results, table, controls)


def line_at(line: Any, row: str, fraction: float, lines: Lines) -> Any:
    """A row's line at a fraction; `base` and `full` have one of their own."""
    return line or lines.get((row, OWN.get(row, fraction)))


def panels(
    results: Results,
    groups: Sequence[Sequence[str]],
    labels: Sequence[str],
    columns: int,
    row_height: float = ROW_HEIGHT,
) -> tuple[Figure, list[Axes], dict[str, float]]:
    """Panels side by side that share named rows; groups of rows are set apart by a rule."""
    from matplotlib.figure import Figure

    groups = [group for group in groups if group]
    places, heights = {}, 0.0
    for group in groups:
        for row in group:
            places[row] = heights
            heights += 1
        heights += 0.4
    names = max((len(_name(results, row)) for row in places), default=1)
    width = min(0.35 + 0.075 * min(names, 34), 2.6) + (3.3 if columns == 1 else 1.95 * columns)
    height = max(0.75 + row_height * heights, LEAST_HEIGHT)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    for axis, label in zip(axes, labels, strict=True):
        axis.set_title(label)
        axis.grid(axis="x", color=LIGHT, linewidth=0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        for group in groups[1:]:
            axis.axhline(places[group[0]] - 0.7, color=LIGHT, linewidth=0.8)
    axes[0].set_yticks(list(places.values()), [_name(results, row) for row in places])
    axes[0].set_ylim(heights - 0.9, -0.6)
    return figure, axes, places


def _name(results: Results, row: str) -> str:
    """A row's name, with the seeds that it has where some are missing."""
    groups = [cells for (name, _), cells in results.groups.items() if name == row]
    done = [sum(cell.status == "done" for cell in cells) for cells in groups]
    least, cells = min(zip(done, groups, strict=True), key=lambda pair: pair[0])
    short = 0 < least < len(cells)
    return row_label(row) + (f" ({least}/{len(cells)} seeds)" if short else "")


def fraction_titles(results: Results) -> list[str]:
    """A title per panel; none where there is one fraction only."""
    if len(results.fractions) == 1:
        return [""]
    return [f"{numbers.percent(fraction)} kept" for fraction in results.fractions]


def share_scale(axes: Sequence[Axes]) -> None:
    """The same limits and few ticks on panels that measure the same."""
    from matplotlib.ticker import MaxNLocator

    limits = np.array([axis.get_xlim() for axis in axes])
    for axis in axes:
        axis.set_xlim(limits[:, 0].min(), limits[:, 1].max())
        axis.xaxis.set_major_locator(MaxNLocator(7 if len(axes) == 1 else 5, steps=[1, 2, 5, 10]))


def kind_of(results: Results, line: Any) -> str:
    """The key of `VERDICTS` that a line is marked by."""
    if line.row in CONTROLS:
        return "control"
    return "reference" if line.row == results.reference else str(line.verdict)


def mark(axis: Axes, x: float, y: float, low: float, high: float, kind: str) -> None:
    """One estimate with its interval."""
    shape, colour, face = VERDICTS.get(kind, VERDICTS["tie"])
    if math.isfinite(low) and math.isfinite(high):
        axis.plot([low, high], [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
    axis.plot(
        [x], [y], shape, color=colour, markerfacecolor=face, markersize=5.5, markeredgewidth=1.1
    )


def no_result(axis: Axes, y: float, word: str) -> None:
    """Say `failed` or `missing` where a mark would be."""
    transform = axis.get_yaxis_transform()
    axis.text(0.02, y, word, transform=transform, va="center", color=VERMILLION)


def differences(
    axis: Axes,
    results: Results,
    places: dict[str, float],
    fraction: float,
    lines: Lines,
) -> dict[str, None]:
    """One panel of differences; returns the kinds of marks in it."""
    kinds: dict[str, None] = {}
    axis.axvline(0, color=BLACK, linewidth=0.9)
    for row, y in places.items():
        line = line_at(None, row, fraction, lines)
        if row == results.reference:
            kinds["reference"] = None
            mark(axis, 0.0, y, math.nan, math.nan, "reference")
            continue
        if not math.isfinite(line.diff):
            no_result(axis, y, str(line.verdict))
            continue
        kind = kind_of(results, line)
        kinds[kind] = None
        mark(axis, 100 * line.diff, y, 100 * line.diff_low, 100 * line.diff_high, kind)
    axis.set_xlabel(f"Difference to {results.reference} (points)")
    return kinds


def legend(
    figure: Figure,
    results: Results,
    kinds: dict[str, None],
    extra: Sequence[Any] = (),
    *,
    bars: bool = True,
) -> None:
    """What the marks mean, for those that occur; with their interval where that is a bar."""
    from matplotlib.lines import Line2D

    reference = row_label(results.reference, 16)
    words = {
        "better": f"better than {reference}",
        "worse": f"worse than {reference}",
        "tie": f"tie with {reference}",
    }
    handles = [
        Line2D([], [], marker=shape, color=colour, markerfacecolor=face, markersize=5.5,
               linewidth=1.3 if bars else 0.0, label=words.get(kind, kind))
        for kind, (shape, colour, face) in VERDICTS.items()
        if kind in kinds
    ]  # fmt: skip
    handles += extra
    columns = len(handles) if len(handles) < 5 and figure.get_figwidth() > 6 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
