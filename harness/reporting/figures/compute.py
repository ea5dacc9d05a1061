"""Accuracy at equal total compute: what choosing costs counts like training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.multiples import multiples, same_scales
from harness.reporting.figures.panels import Lines, primary, ranked
from harness.reporting.figures.style import BLACK, BLUE, FAINT, GREY, LIGHT, row_label
from harness.reporting.results import BASE, CONTROLS, FULL, Results, mean_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
SHAPES = ("v", "D", "^", "p", "P", "X")
"""Of the fractions, smallest first."""
NEAR = 1.25
"""Marks whose compute differs by less than this factor are set side by side."""
ASIDE = 5.2
"""Points between marks that are set side by side."""


def compute(results: Results, table: pd.DataFrame) -> Figure | None:
    """Accuracy against FLOPs of selection and training together, one panel per row."""
    spent = total_flops(results)
    lines = {key: line for key, line in primary(table).items() if math.isfinite(line.mean)}
    unit = _unit(results, spent)
    if unit is None:
        return None
    at = {key: flops / unit for key, flops in spent.items() if flops > 0 and key in lines}
    selectors, controls = ranked(results, table)
    known = {row for row, _ in at}
    shown = [row for row in selectors if row in known and row != results.reference]
    shown += [row for row in controls if row in known and row not in (BASE, FULL)]
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    height = 0.95 if columns == COLUMNS else 1.25  # the legend takes more lines where it is narrow
    figure, grid = multiples(len(shown), columns, (max(1.8, 4.1 / columns), 1.45), (0.0, height))
    for axis, row in zip(grid, shown, strict=True):
        _panel(axis, results, row, at, lines)
        axis.set_title(row_label(row, 24), fontsize=8.5)
        _scale(axis, at)
        _heights(axis, [lines[key] for key in (*at, (BASE, 0.0)) if key in lines])
    same_scales(grid, columns)
    figure.supxlabel(f"Selection and training together, in {_unit_name(results)}", fontsize=8.5)
    figure.supylabel("Accuracy (%)", fontsize=8.5)
    figure.legend(handles=_handles(results, lines, at), loc="outside upper center",
                  ncols=4 if columns == COLUMNS else 2)  # fmt: skip
    return figure


def total_flops(results: Results) -> dict[tuple[str, float], float]:
    """Mean FLOPs of selection plus training by row and fraction, where both are known."""
    spent = {
        key: sum(mean_cost(cells, f"{part}_flops", whole=True) for part in ("select", "train"))
        for key, cells in results.groups.items()
    }
    return {key: flops for key, flops in spent.items() if math.isfinite(flops)}


def _unit(results: Results, spent: Mapping[tuple[str, float], float]) -> float | None:
    """FLOPs of one run: on the whole pool, or of the reference where there is no such row."""
    largest = (results.reference, max(results.fractions))
    return spent.get((FULL, 1.0)) or spent.get(largest) or None


def _unit_name(results: Results) -> str:
    if FULL in results.rows:
        return f"runs of {FULL}"
    return f"runs of {results.reference} at {numbers.percent(max(results.fractions))}"


def _panel(
    axis: Axes,
    results: Results,
    row: str,
    at: Mapping[tuple[str, float], float],
    lines: Lines,
) -> None:
    """A row with its intervals over the reference, `base`, `full` and, faint, all others."""
    others = [key for key in at if key[0] not in (row, results.reference, BASE, FULL)]
    axis.plot([at[key] for key in others], [100 * lines[key].mean for key in others], "o",
              color=FAINT, markersize=2.2, markeredgewidth=0)  # fmt: skip
    if (BASE, 0.0) in lines:
        axis.axhline(100 * lines[BASE, 0.0].mean, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    if (FULL, 1.0) in at:
        _marks(axis, results, FULL, at, lines, BLACK, hollow=True)
    _marks(axis, results, results.reference, at, lines, GREY, hollow=True)
    _marks(axis, results, row, at, lines, BLACK if row in CONTROLS else BLUE)
    axis.grid(axis="y", color=LIGHT, linewidth=0.5)


def _marks(
    axis: Axes,
    results: Results,
    row: str,
    at: Mapping[tuple[str, float], float],
    lines: Lines,
    colour: str,
    *,
    hollow: bool = False,
) -> None:
    """A mark per fraction at its compute; those at about the same compute stand side by side.

    Hollow ones are what a row is held against; they are shown without their intervals.
    """
    from matplotlib.transforms import offset_copy

    own = {fraction: x for (other, fraction), x in at.items() if other == row}
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


def _scale(axis: Axes, at: Mapping[tuple[str, float], float]) -> None:
    """A logarithmic axis with plain numbers that holds every mark."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    low, high = min(at.values()), max(at.values())
    axis.set_xscale("log")
    axis.set_xlim(low / 1.45, high * 1.45)
    wide = high / low > 100
    axis.xaxis.set_major_locator(LogLocator(10, (1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _heights(axis: Axes, lines: list[Any]) -> None:
    """Room for every mark with its interval; marks set aside do not count by themselves."""
    ends = [100 * end for line in lines for end in (line.mean, line.ci_low, line.ci_high)]
    low, high = (pick(end for end in ends if math.isfinite(end)) for pick in (min, max))
    room = 0.06 * max(high - low, 1.0)
    axis.set_ylim(low - room, high + room)


def _handles(results: Results, lines: Lines, at: Mapping[tuple[str, float], float]) -> list[Any]:
    from matplotlib.lines import Line2D

    def dot(shape: str, colour: str, label: str, **more: Any) -> Line2D:
        look: dict[str, Any] = {"linestyle": "none", "markersize": 4, "color": colour} | more
        return Line2D([], [], marker=shape, label=label, **look)

    handles = [
        dot("D", BLUE, "row of the panel", linestyle="-"),
        dot("D", GREY, row_label(results.reference, 16), markerfacecolor="white"),
        dot("o", FAINT, "the other rows", markersize=2.6),
    ]
    if (FULL, 1.0) in at:
        handles.append(dot("s", BLACK, FULL, markerfacecolor="white"))
    if (BASE, 0.0) in lines:
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label=BASE))
    if len(results.fractions) > 1:
        handles += [
            dot(_shape(results, fraction), BLACK, f"{numbers.percent(fraction)} kept")
            for fraction in results.fractions
        ]
    return handles
