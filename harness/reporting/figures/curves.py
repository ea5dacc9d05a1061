"""Small multiples of accuracy, a panel per row: against the share kept, and against compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.rows import Lines, primary, ranked
from harness.reporting.figures.style import (
    BLACK,
    BLUE,
    FAINT,
    GREY,
    LIGHT,
    VERDICTS,
    finish,
    handle,
    multiples,
    row_label,
)
from harness.reporting.results import BASE, CONTROLS, FULL, Results, mean_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
DASHED: Any = (0, (4, 2))
SHAPES = ("v", "D", "^", "p", "P", "X")
"""Of the fractions, smallest first."""
NEAR = 1.25
"""Marks whose compute differs by less than this factor are set side by side."""
ASIDE = 5.2
"""Points between marks that are set side by side."""


def _shown(results: Results, table: pd.DataFrame) -> list[str]:
    """Rows with a panel of their own: all but the reference, `base` and `full`."""
    selectors, controls = ranked(results, table)
    rows = [row for row in selectors if row != results.reference]
    return rows + [row for row in controls if row not in (BASE, FULL)]


def _panels(rows: Sequence[str], frame: tuple[float, float]) -> tuple[int, Figure, list[Axes]]:
    """Named panels; `frame`: inches around all at full width, and where the legend needs more."""
    columns = min(COLUMNS, len(rows))
    height = frame[0] if columns == COLUMNS else frame[1]
    figure, axes = multiples(len(rows), columns, (max(1.8, 4.1 / columns), 1.45), (0.0, height))
    for axis, row in zip(axes, rows, strict=True):
        axis.set_title(row_label(row, 24), fontsize=8.5)
        axis.grid(axis="y", color=LIGHT, linewidth=0.5)
    return columns, figure, axes


def fractions(results: Results, table: pd.DataFrame) -> Figure | None:
    """Accuracy against the share of the pool kept, one panel per row, `base` and `full` as ends."""
    shown = _shown(results, table)
    if not shown:
        return None
    columns, figure, axes = _panels(shown, (0.75, 0.95))
    lines = primary(table)
    # All rows as one line with gaps: drawn once per panel instead of once per row.
    x, y = [], []
    for row in shown:
        points = _points(results, lines, row)
        x += [*(100 * line.fraction for line in points), math.nan]
        y += [*(100 * line.mean for line in points), math.nan]
    for axis, row in zip(axes, shown, strict=True):
        axis.plot(x, y, color=FAINT, linewidth=0.8)
        points = _points(results, lines, results.reference)
        _curve(axis, points, results.reference, GREY, 1.1, "o")
        points, colour = _points(results, lines, row), BLACK if row in CONTROLS else BLUE
        _curve(axis, points, row, colour, 1.5, "D")
        _band(axis, points, row, colour)
        for end in ((BASE, 0.0), (FULL, 1.0)):
            if end in lines:
                shape, edge, face = VERDICTS["control"]
                axis.plot([100 * end[1]], [100 * lines[end].mean], shape, color=edge,
                          markerfacecolor=face, markersize=3.6, markeredgewidth=0.9)  # fmt: skip
        axis.set_xlim(-6, 106)
        axis.set_xticks([0, 50, 100])
    handles = [
        handle("row of the panel", BLUE, "D", markersize=3.8, linestyle="-"),
        handle(results.reference, GREY, "o", markersize=3.8, linestyle="-"),
        handle("the other rows", FAINT, linestyle="-"),
        handle("base (0%), full (100%)", BLACK, "s", markerfacecolor="white", markersize=3.6),
    ]
    labels = ("Share of the pool kept (%)", "Accuracy (%)")
    finish(figure, axes, columns, labels, handles, 4 if columns == COLUMNS else 2)
    return figure


def _points(results: Results, lines: Lines, row: str) -> list[Any]:
    """The lines that a row's curve goes through, from base to full where those exist."""
    keys = [(BASE, 0.0), *((row, fraction) for fraction in results.fractions), (FULL, 1.0)]
    return [lines[key] for key in keys if key in lines and math.isfinite(lines[key].mean)]


def _curve(
    axis: Axes, points: Sequence[Any], row: str, colour: str, width: float, marker: str
) -> None:
    """Accuracy through the fractions, with marks on the row's own."""
    x, y = [100 * line.fraction for line in points], [100 * line.mean for line in points]
    axis.plot(x, y, color=colour, linewidth=width)
    own = [line for line in points if line.row == row]
    x, y = [100 * line.fraction for line in own], [100 * line.mean for line in own]
    axis.plot(x, y, marker, color=colour, markersize=3.8)


def _band(axis: Axes, points: Sequence[Any], row: str, colour: str) -> None:
    """Intervals around a row's curve."""
    low, high = [100 * line.ci_low for line in points], [100 * line.ci_high for line in points]
    x = [100 * line.fraction for line in points]
    axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    for at, line, start, end in zip(x, points, low, high, strict=True):
        if line.row == row:
            axis.plot([at, at], [start, end], color=colour, linewidth=1)


def compute(results: Results, table: pd.DataFrame) -> Figure | None:
    """Accuracy against FLOPs of selection and training together, one panel per row."""
    spent = total_flops(results)
    lines = {key: line for key, line in primary(table).items() if math.isfinite(line.mean)}
    # In runs: on the whole pool, or of the reference where there is no such row.
    largest = max(results.fractions)
    unit = spent.get((FULL, 1.0)) or spent.get((results.reference, largest))
    if not unit:
        return None
    runs = {key: flops / unit for key, flops in spent.items() if flops > 0 and key in lines}
    shown = [row for row in _shown(results, table) if row in {row for row, _ in runs}]
    if not shown:
        return None
    columns, figure, axes = _panels(shown, (0.95, 1.25))
    for axis, row in zip(axes, shown, strict=True):
        _compute_panel(axis, results, row, runs, lines)
        _scale(axis, runs)
        _heights(axis, [lines[key] for key in (*runs, (BASE, 0.0)) if key in lines])
    name = FULL
    if FULL not in results.rows:
        name = f"{results.reference} at {numbers.percent(largest)}"
    labels = (f"Selection and training together, in runs of {name}", "Accuracy (%)")
    handles = _compute_handles(results, lines, runs)
    finish(figure, axes, columns, labels, handles, 4 if columns == COLUMNS else 2)
    return figure


def total_flops(results: Results) -> dict[tuple[str, float], float]:
    """Mean FLOPs of selection plus training by row and fraction, where both are known."""
    spent = {
        key: sum(mean_cost(cells, f"{part}_flops", whole=True) for part in ("select", "train"))
        for key, cells in results.groups.items()
    }
    return {key: flops for key, flops in spent.items() if math.isfinite(flops)}


def _compute_panel(
    axis: Axes, results: Results, row: str, runs: Mapping[tuple[str, float], float], lines: Lines
) -> None:
    """A row with its intervals over the reference, `base`, `full` and, faint, all others."""
    others = [key for key in runs if key[0] not in (row, results.reference, BASE, FULL)]
    axis.plot([runs[key] for key in others], [100 * lines[key].mean for key in others], "o",
              color=FAINT, markersize=2.2, markeredgewidth=0)  # fmt: skip
    if (BASE, 0.0) in lines:
        axis.axhline(100 * lines[BASE, 0.0].mean, color=GREY, linewidth=0.9, linestyle=DASHED)
    if (FULL, 1.0) in runs:
        _marks(axis, results, FULL, runs, lines, BLACK, hollow=True)
    _marks(axis, results, results.reference, runs, lines, GREY, hollow=True)
    _marks(axis, results, row, runs, lines, BLACK if row in CONTROLS else BLUE)


def _marks(
    axis: Axes,
    results: Results,
    row: str,
    runs: Mapping[tuple[str, float], float],
    lines: Lines,
    colour: str,
    *,
    hollow: bool = False,
) -> None:
    """A mark per fraction at its compute; those at about the same compute stand side by side.

    Hollow ones are what a row is held against; they are shown without their intervals.
    """
    from matplotlib.transforms import offset_copy

    own = {fraction: x for (other, fraction), x in runs.items() if other == row}
    close = len(own) > 1 and max(own.values()) < NEAR * min(own.values())
    for fraction, x in own.items():
        line = lines[row, fraction]
        place = list(own).index(fraction) - (len(own) - 1) / 2 if close else 0.0
        whole = axis.get_figure(root=True)
        shift = offset_copy(axis.transData, whole, x=ASIDE * place, units="points")
        if not hollow and math.isfinite(line.ci_low):
            axis.plot([x, x], [100 * line.ci_low, 100 * line.ci_high], color=colour,
                      linewidth=1.2, transform=shift)  # fmt: skip
        axis.plot([x], [100 * line.mean], _shape(results, fraction), color=colour, markersize=4,
                  transform=shift, markerfacecolor="white" if hollow else colour,
                  markeredgewidth=0.8)  # fmt: skip


def _shape(results: Results, fraction: float) -> str:
    if fraction not in results.fractions:
        return "s"  # full
    single = len(results.fractions) == 1
    return "D" if single else SHAPES[results.fractions.index(fraction) % len(SHAPES)]


def _scale(axis: Axes, runs: Mapping[tuple[str, float], float]) -> None:
    """A logarithmic axis with plain numbers that holds every mark."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    low, high = min(runs.values()), max(runs.values())
    axis.set_xscale("log")
    axis.set_xlim(low / 1.45, high * 1.45)
    wide = high / low > 100
    axis.xaxis.set_major_locator(LogLocator(10, (1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _heights(axis: Axes, lines: Sequence[Any]) -> None:
    """Room for every mark with its interval; marks set aside do not count by themselves."""
    ends = [100 * end for line in lines for end in (line.mean, line.ci_low, line.ci_high)]
    low, high = (pick(end for end in ends if math.isfinite(end)) for pick in (min, max))
    room = 0.06 * max(high - low, 1.0)
    axis.set_ylim(low - room, high + room)


def _compute_handles(
    results: Results, lines: Lines, runs: Mapping[tuple[str, float], float]
) -> list[Any]:
    handles = [
        handle("row of the panel", BLUE, "D", linestyle="-"),
        handle(row_label(results.reference, 16), GREY, "D", markerfacecolor="white"),
        handle("the other rows", FAINT, "o", markersize=2.6),
    ]
    if (FULL, 1.0) in runs:
        handles.append(handle(FULL, BLACK, "s", markerfacecolor="white"))
    if (BASE, 0.0) in lines:
        handles.append(handle(BASE, GREY, linestyle=DASHED))
    if len(results.fractions) > 1:
        handles += [
            handle(f"{numbers.percent(fraction)} kept", BLACK, _shape(results, fraction))
            for fraction in results.fractions
        ]
    return handles
