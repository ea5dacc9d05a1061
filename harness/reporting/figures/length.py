"""Whether a score is little more than length: place by score against response length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.multiples import multiples, same_scales
from harness.reporting.figures.pool_facts import SCORE, described, middle, score_column
from harness.reporting.figures.style import BLACK, BLUE, GREY, LIGHT, row_label
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
RASTER = 1500
"""Above this many points a figure holds them as pixels, in the vector formats too."""


def score_length(results: Results, table: pd.DataFrame) -> Figure | None:
    """Place by score against response length, one panel per row that scores; pruned ones hollow."""
    shown = _shown(results)
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    figure, grid = multiples(len(shown), columns, (max(1.8, 4.1 / columns), 1.62), (0.0, 0.95))
    lengths = pd.concat([points["response_tokens"] for points in shown.values()])
    wide = lengths.max() > SPREAD * max(1, lengths.min())
    raster = sum(len(points) for points in shown.values()) > RASTER
    for axis, (row, points) in zip(grid, shown.items(), strict=True):
        _panel(axis, points, raster)
        axis.set_title(_title(row, points), fontsize=8)
        axis.set_xscale("log" if wide else "linear")
        axis.set_ylim(-4, 104)
        axis.set_yticks([0, 50, 100])
    same_scales(grid, columns)
    figure.supxlabel("Response length (tokens)", fontsize=8.5)
    figure.supylabel("Place by score (%, 100: best)", fontsize=8.5)
    figure.legend(handles=_handles(), loc="outside upper center", ncols=3 if columns > 2 else 2)
    return figure


def _shown(results: Results) -> dict[str, pd.DataFrame]:
    """Rows with a score; of more than `MOST`, those whose scores go most with length."""
    found = {}
    for row in results.rows:
        chosen = results.selection(row, middle(results))
        column = None if chosen is None else score_column(chosen)
        if row in CONTROLS or chosen is None or column is None:
            continue
        points = described(results, chosen)
        points = points[points["response_tokens"].notna() & np.isfinite(points[column])]
        place = 100 * points[column].rank(pct=True)
        if len(points) > 1:
            found[row] = points.assign(place=place).rename_axis(columns=column)
    most = sorted(found, key=lambda row: -abs(np.nan_to_num(_with(found[row], "response_tokens"))))
    return {row: points for row, points in found.items() if row in most[:MOST]}


def _with(points: pd.DataFrame, fact: str) -> float:
    """Rank correlation of the score with a fact of the examples, of those where it is known."""
    known = points[points[fact].notna()]
    return rank_correlation(known["place"], known[fact]) if len(known) > 1 else math.nan


def _title(row: str, points: pd.DataFrame) -> str:
    column = str(points.columns.name)
    name = row if column == SCORE else f"{row}: {column}"
    said = f"{RHO} length {numbers.number(_with(points, 'response_tokens'), 2)}"
    steps = _with(points, "steps")
    said += f", steps {numbers.number(steps, 2)}" if math.isfinite(steps) else ""
    return f"{row_label(name, 24)}\n{said}"


def _panel(axis: Axes, points: pd.DataFrame, raster: bool) -> None:
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


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 4}
    return [
        Line2D([], [], color=BLUE, label="kept", **dot),
        Line2D([], [], color=GREY, markerfacecolor="none", label="pruned", **dot),
        Line2D([], [], color=BLACK, linewidth=1.4, label="running median"),
    ]
