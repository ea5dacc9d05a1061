"""Where influence puts each example of the pool, and which ones a strategy prunes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting.figures.multiples import multiples, same_scales
from harness.reporting.figures.pool_facts import described, middle, planted
from harness.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    row_label,
)
from harness.reporting.results import CONTROLS, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = ("s_C", "s_I")
CLASS_MARKS = (
    ("^", VERMILLION),
    ("s", BLUE),
    ("D", PURPLE),
    ("v", ORANGE),
    ("P", GREEN),
    ("X", SKY),
)
PLAIN = "correct, on topic"
BULK = 0.8
"""Share of the scores in the nearly linear part of an axis."""
RASTER = 1500
"""Above this many examples, points become pixels within the vector formats."""


def influence_scatter(results: Results, table: pd.DataFrame) -> Figure | None:
    """s_C against s_I for every example, one panel per row that has both; pruned ones hollow."""
    fraction = middle(results)
    panels = {
        row: chosen
        for row in results.rows
        if row not in CONTROLS
        and (chosen := results.selection(row, fraction)) is not None
        and set(SCORES) <= set(chosen.columns)
    }
    if not panels:
        return None
    columns = min(3, len(panels))
    size = (max(2.3, 3.9 / columns), 2.45)
    figure, grid = multiples(len(panels), columns, size, (0.55, 0.9))
    marks: dict[str, tuple[str, str]] = {}
    together = pd.concat(panels.values())
    for axis, (row, chosen) in zip(grid, panels.items(), strict=True):
        points = described(results, chosen)
        marks |= _marks(results, points)
        _points(axis, points, marks)
        axis.set_title(f"{row_label(row, 26)}\n{_share_pruned(results, points)}", fontsize=8.5)
        _axes(axis, together)
    same_scales(grid, columns)
    figure.supxlabel("s_C: influence on queries made right (asinh scale)", fontsize=8.5)
    figure.supylabel("s_I: on queries made wrong", fontsize=8.5)
    _legend(figure, marks, columns)
    return figure


def _marks(results: Results, points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    names = planted(results, points)
    return {name: CLASS_MARKS[i % len(CLASS_MARKS)] for i, name in enumerate(names)}


def _points(axis: Axes, points: pd.DataFrame, marks: Mapping[str, tuple[str, str]]) -> None:
    raster = len(points) > RASTER
    plain = ~points["quality"].isin(list(marks))
    classes = [(plain, "o", GREY)]
    classes += [(points["quality"] == name, *mark) for name, mark in marks.items()]
    for member, shape, colour in classes:
        for kept in (False, True):
            part = points[member & (points["chosen"] == kept)]
            axis.plot(
                part["s_C"], part["s_I"], shape, rasterized=raster,
                markersize=3.0 if shape == "o" else 3.4, markeredgewidth=0.6,
                markeredgecolor=colour, markerfacecolor=colour if kept else "none",
                alpha=0.55 if shape == "o" else 0.85, linestyle="none",
            )  # fmt: skip
    axis.axhline(0, color=BLACK, linewidth=0.6)
    axis.axvline(0, color=BLACK, linewidth=0.6)


def _share_pruned(results: Results, points: pd.DataFrame) -> str:
    pruned = ~points["chosen"]
    errors = points["quality"].isin(planted(results, points))
    if not errors.any() or errors.all() or not results.facts.get("correct_classes"):
        return f"prunes {int(pruned.sum())} of {len(points)}"
    return (
        f"prunes {100 * pruned[errors].mean():.0f}% of planted errors\n"
        f"and {100 * pruned[~errors].mean():.0f}% of the rest"
    )


def _axes(axis: Axes, points: pd.DataFrame) -> None:
    """Nearly linear for most scores, logarithmic beyond: the bulk keeps its shape, tails stay."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for name, score in zip("xy", SCORES, strict=True):
        values = points[score].to_numpy(float)
        size = np.abs(values[np.isfinite(values)])
        step = _round(float(np.quantile(size, BULK))) if size.any() else 1.0
        getattr(axis, f"set_{name}scale")("asinh", linear_width=step)
        decades = [step * 10**k for k in range(math.ceil(math.log10(size.max() / step)) + 1)]
        ticks = [-tick for tick in decades[::-1]] + [0.0, *decades]
        side: Any = getattr(axis, f"{name}axis")
        side.set_major_locator(FixedLocator(ticks))
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(_tick)


def _round(value: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9))


def _tick(value: float, _: int = 0) -> str:
    """A short label with a true minus sign."""
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _legend(figure: Figure, marks: Mapping[str, tuple[str, str]], columns: int) -> None:
    from matplotlib.lines import Line2D

    named = [(PLAIN if marks else "example", ("o", GREY)), *marks.items()]
    handles = [
        Line2D([], [], marker=shape, color=colour, linestyle="none", markersize=4.5, label=name)
        for name, (shape, colour) in named
    ]
    handles.append(
        Line2D([], [], marker="o", color=BLACK, markerfacecolor="none", linestyle="none",
               markersize=4.5, label="hollow: pruned")
    )  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if columns > 1 else 2)
