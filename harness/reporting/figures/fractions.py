"""Accuracy against the share of the pool that is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.reporting.figures.multiples import multiples, same_scales
from harness.reporting.figures.panels import Lines, primary, ranked
from harness.reporting.figures.style import BLACK, BLUE, FAINT, GREY, LIGHT, VERDICTS, row_label
from harness.reporting.results import BASE, CONTROLS, FULL, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


def fractions(results: Results, table: pd.DataFrame) -> Figure | None:
    """Accuracy against the share of the pool kept, one panel per row, `base` and `full` as ends."""
    selectors, controls = ranked(results, table)
    shown = [row for row in selectors if row != results.reference]
    shown += [row for row in controls if row not in (BASE, FULL)]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    height = 0.75 if columns == COLUMNS else 0.95  # the legend takes more lines where it is narrow
    figure, grid = multiples(len(shown), columns, (max(1.8, 4.1 / columns), 1.45), (0.0, height))
    lines = primary(table)
    others = _together([_points(results, lines, row) for row in shown])
    for axis, row in zip(grid, shown, strict=True):
        axis.plot(*others, color=FAINT, linewidth=0.8)
        _curve(axis, results, lines, results.reference, GREY, 1.1, band=False, marker="o")
        colour = BLACK if row in CONTROLS else BLUE
        _curve(axis, results, lines, row, colour, 1.5, band=True, marker="D")
        for end in ((BASE, 0.0), (FULL, 1.0)):
            if end in lines:
                shape, edge, face = VERDICTS["control"]
                axis.plot([100 * end[1]], [100 * lines[end].mean], shape, color=edge,
                          markerfacecolor=face, markersize=3.6, markeredgewidth=0.9)  # fmt: skip
        axis.set_title(row_label(row, 24), fontsize=8.5)
        axis.set_xlim(-6, 106)
        axis.set_xticks([0, 50, 100])
        axis.grid(axis="y", color=LIGHT, linewidth=0.5)
    same_scales(grid, columns)
    figure.supxlabel("Share of the pool kept (%)", fontsize=8.5)
    figure.supylabel("Accuracy (%)", fontsize=8.5)
    _curve_legend(figure, results, columns)
    return figure


def _curve(
    axis: Axes,
    results: Results,
    lines: Lines,
    row: str,
    colour: str,
    width: float,
    *,
    band: bool,
    marker: str = "",
) -> None:
    """A row's accuracy through its fractions, from base to full where those exist."""
    found = _points(results, lines, row)
    share = [100 * line.fraction for line in found]
    axis.plot(share, [100 * line.mean for line in found], color=colour, linewidth=width)
    own = [line for line in found if line.row == row]
    if marker:
        x, y = [100 * line.fraction for line in own], [100 * line.mean for line in own]
        axis.plot(x, y, marker, color=colour, markersize=3.8)
    if band:
        low, high = [100 * line.ci_low for line in found], [100 * line.ci_high for line in found]
        axis.fill_between(share, low, high, color=colour, alpha=0.16, linewidth=0)
        for line in own:
            at = 100 * line.fraction
            axis.plot([at, at], [100 * line.ci_low, 100 * line.ci_high], color=colour, linewidth=1)


def _points(results: Results, lines: Lines, row: str) -> list[Any]:
    """The lines that a row's curve goes through, from base to full."""
    keys = [(BASE, 0.0), *((row, fraction) for fraction in results.fractions), (FULL, 1.0)]
    return [lines[key] for key in keys if key in lines and math.isfinite(lines[key].mean)]


def _together(curves: list[list[Any]]) -> tuple[list[float], list[float]]:
    """Curves as one line with gaps: drawn once per panel instead of once per row."""
    x, y = [], []
    for curve in curves:
        x += [*(100 * line.fraction for line in curve), math.nan]
        y += [*(100 * line.mean for line in curve), math.nan]
    return x, y


def _curve_legend(figure: Figure, results: Results, columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=BLUE, marker="D", markersize=3.8, label="row of the panel"),
        Line2D([], [], color=GREY, marker="o", markersize=3.8, label=results.reference),
        Line2D([], [], color=FAINT, label="the other rows"),
        Line2D(
            [],
            [],
            color=BLACK,
            marker="s",
            markerfacecolor="white",
            markersize=3.6,
            linestyle="none",
            label="base (0%), full (100%)",
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center",
                  ncols=4 if columns == COLUMNS else 2)  # fmt: skip
