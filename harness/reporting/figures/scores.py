"""Figures of scores, every example a point: against length, and one influence against the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.choices import SCORE, described, planted, score_column
from harness.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    RASTER,
    SKY,
    VERMILLION,
    finish,
    handle,
    multiples,
    row_label,
)
from harness.reporting.results import CONTROLS, Results
from harness.stats import rank_correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, MOST = 4, 16
"""Panels side by side, and in all."""
RHO = "\N{GREEK SMALL LETTER RHO}"
BINS = 12
"""Groups of equally many examples that the running median goes through."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, never crowd: any first few are spread evenly."""
SPREAD = 30
"""Longest over shortest response from which the axis is logarithmic."""
INFLUENCE = ("s_C", "s_I")
CLASS_MARKS = (
    ("^", VERMILLION),
    ("s", BLUE),
    ("D", PURPLE),
    ("v", ORANGE),
    ("P", GREEN),
    ("X", SKY),
)
BULK = 0.8
"""Share of the scores in the nearly linear part of an axis."""


def score_length(results: Results, table: pd.DataFrame) -> Figure | None:
    """Place by score against response length, one panel per row that scores; pruned ones hollow."""
    shown = _shown(results)
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    figure, axes = multiples(len(shown), columns, (max(1.8, 4.1 / columns), 1.62), (0.0, 0.95))
    lengths = pd.concat([points["response_tokens"] for points in shown.values()])
    wide = lengths.max() > SPREAD * max(1, lengths.min())
    raster = sum(len(points) for points in shown.values()) > RASTER
    for axis, (row, points) in zip(axes, shown.items(), strict=True):
        _length_panel(axis, points, raster)
        axis.set_title(_title(row, points), fontsize=8)
        axis.set_xscale("log" if wide else "linear")
        axis.set_ylim(-4, 104)
        axis.set_yticks([0, 50, 100])
    handles = [
        handle("kept", BLUE, "o"),
        handle("pruned", GREY, "o", markerfacecolor="none"),
        handle("running median", BLACK, linestyle="-", linewidth=1.4),
    ]
    labels = ("Response length (tokens)", "Place by score (%, 100: best)")
    finish(figure, axes, columns, labels, handles, 3 if columns > 2 else 2)
    return figure


def _shown(results: Results) -> dict[str, pd.DataFrame]:
    """Rows with a score; of more than `MOST`, those whose scores go most with length."""
    scored = {}
    for row in results.rows:
        chosen = results.selection(row, results.middle)
        column = None if chosen is None else score_column(chosen)
        if row in CONTROLS or chosen is None or column is None:
            continue
        points = described(results, chosen)
        points = points[points["response_tokens"].notna() & np.isfinite(points[column])]
        place = 100 * points[column].rank(pct=True)
        if len(points) > 1:
            scored[row] = points.assign(place=place).rename_axis(columns=column)
    rho = {row: _correlation(points, "response_tokens") for row, points in scored.items()}
    most = sorted(scored, key=lambda row: -abs(np.nan_to_num(rho[row])))
    return {row: points for row, points in scored.items() if row in most[:MOST]}


def _correlation(points: pd.DataFrame, fact: str) -> float:
    """Rank correlation of the score with a fact of the examples, of those where it is known."""
    known = points[points[fact].notna()]
    return rank_correlation(known["place"], known[fact]) if len(known) > 1 else math.nan


def _title(row: str, points: pd.DataFrame) -> str:
    column = str(points.columns.name)
    name = row if column == SCORE else f"{row}: {column}"
    text = f"{RHO} length {numbers.number(_correlation(points, 'response_tokens'), 2)}"
    steps = _correlation(points, "steps")
    text += f", steps {numbers.number(steps, 2)}" if math.isfinite(steps) else ""
    return f"{row_label(name, 24)}\n{text}"


def _length_panel(axis: Axes, points: pd.DataFrame, raster: bool) -> None:
    spread = points.assign(beside=beside(points["response_tokens"].to_numpy(float)))
    for kept in (False, True):
        part = spread[spread["chosen"] == kept]
        axis.plot(
            part["beside"], part["place"], "o", rasterized=raster, linestyle="none",
            markersize=2.2, markeredgewidth=0.5, alpha=0.6,
            markeredgecolor=BLUE if kept else GREY, markerfacecolor=BLUE if kept else "none",
        )  # fmt: skip
    x, y = running_median(points["response_tokens"].to_numpy(float), points["place"].to_numpy())
    axis.plot(x, y, color="white", linewidth=3.2)
    axis.plot(x, y, color=BLACK, linewidth=1.4)
    axis.grid(axis="y", color=LIGHT, linewidth=0.5)


def beside(lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lengths with equal ones spread evenly, over 0.7 of the least gap, so that none is hidden."""
    distinct, group = np.unique(lengths, return_inverse=True)
    gap = np.diff(distinct).min() if len(distinct) > 1 else 1.0
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(len(distinct)))
    turn = np.empty(len(lengths))
    turn[order] = np.arange(len(lengths)) - first[group[order]]
    spread: npt.NDArray[np.float64] = lengths + 0.7 * gap * ((turn * GOLDEN + 0.5) % 1 - 0.5)
    return spread


def running_median(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Medians of x and y in up to `BINS` groups along x; equal values of x stay together."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1]))
    group = np.searchsorted(edges, x, side="left")
    inside = [group == number for number in np.unique(group)]
    return (
        np.array([np.median(x[part]) for part in inside]),
        np.array([np.median(y[part]) for part in inside]),
    )


def influence_scatter(results: Results, table: pd.DataFrame) -> Figure | None:
    """s_C against s_I for every example, one panel per row that has both; pruned ones hollow."""
    panels = {
        row: chosen
        for row in results.rows
        if row not in CONTROLS
        and (chosen := results.selection(row, results.middle)) is not None
        and set(INFLUENCE) <= set(chosen.columns)
    }
    if not panels:
        return None
    columns = min(3, len(panels))
    size = (max(2.3, 3.9 / columns), 2.45)
    figure, axes = multiples(len(panels), columns, size, (0.55, 0.9))
    marks: dict[str, tuple[str, str]] = {}
    together = pd.concat(panels.values())
    for axis, (row, chosen) in zip(axes, panels.items(), strict=True):
        points = described(results, chosen)
        names = planted(results, points)
        marks |= {name: CLASS_MARKS[i % len(CLASS_MARKS)] for i, name in enumerate(names)}
        _points(axis, points, marks)
        axis.set_title(f"{row_label(row, 26)}\n{_share_pruned(results, points)}", fontsize=8.5)
        _asinh_axes(axis, together)
    handles = [
        handle(name, colour, shape, markersize=4.5)
        for name, (shape, colour) in (
            ("correct, on topic" if marks else "example", ("o", GREY)), *marks.items()
        )
    ]  # fmt: skip
    handles.append(handle("hollow: pruned", BLACK, "o", markerfacecolor="none", markersize=4.5))
    labels = ("s_C: influence on queries made right (asinh scale)", "s_I: on queries made wrong")
    finish(figure, axes, columns, labels, handles, 3 if columns > 1 else 2)
    return figure


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


def _asinh_axes(axis: Axes, points: pd.DataFrame) -> None:
    """Nearly linear for most scores, logarithmic beyond: the bulk keeps its shape, tails stay."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for name, score in zip("xy", INFLUENCE, strict=True):
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
