"""What selection costs, part by part, beside what it gains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.panels import (
    differences,
    fraction_titles,
    legend,
    panels,
    primary,
    share_scale,
)
from harness.reporting.figures.style import LIGHT, OKABE_ITO
from harness.reporting.results import CONTROLS, Results, mean_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OTHER = "other"
HATCHES = ("", "///", "\\\\\\", "|||", "---", "xxx", "...", "+++")
"""One more than colours: pairs of both repeat late."""


def cost(results: Results, table: pd.DataFrame) -> Figure | None:
    """Seconds of selection by part beside the difference to the reference, dearest row last."""
    lines = primary(table)
    selectors = [row for row in results.rows if row not in CONTROLS]
    spent = {row: _parts(results, row) for row in selectors}
    if not any(parts for row, parts in spent.items() if row != results.reference):
        return None
    rows = sorted(spent, key=lambda row: (round(sum(spent[row].values()), 1), row))
    titles = ["", *fraction_titles(results)]
    figure, axes, places = panels(results, (rows,), titles, len(titles))
    patches = _cost_bars(axes[0], places, spent)
    axes[0].set_xlabel("Selection (seconds)")
    axes[0].margins(x=0.2)
    axes[0].set_xlim(left=0)
    kinds: dict[str, None] = {}
    for axis, fraction in zip(axes[1:], results.fractions, strict=True):
        kinds |= differences(axis, results, places, fraction, lines)
    share_scale(axes[1:])
    legend(figure, results, kinds)
    figure.legend(handles=patches, loc="outside upper center", ncols=min(4 * len(axes), 12) // 2)
    return figure


def _cost_bars(
    axis: Axes, places: dict[str, float], spent: dict[str, dict[str, float]]
) -> list[Any]:
    """Stacked bars of seconds with their sum in figures; returns the legend's patches."""
    from matplotlib.patches import Patch

    every = {name for parts in spent.values() for name in parts}
    names = sorted(every, key=lambda name: (name == OTHER, name))
    looks = {name: _part_look(name, i) for i, name in enumerate(names)}
    for row, y in places.items():
        left = 0.0
        for name in (name for name in names if name in spent[row]):
            width = spent[row][name]
            axis.barh(y, width, left=left, height=0.62, linewidth=0.5, **looks[name])
            left += width
        if spent[row]:
            axis.annotate(numbers.seconds(left), (left, y), (3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    longest = max(math.fsum(parts.values()) for parts in spent.values())
    seen = {n for parts in spent.values() for n, share in parts.items() if share > 0.01 * longest}
    return [Patch(label=name, **looks[name]) for name in names if name in seen]


def _part_look(name: str, i: int) -> dict[str, Any]:
    if name == OTHER:
        return {"facecolor": LIGHT, "edgecolor": "white", "hatch": ""}
    face = OKABE_ITO[i % len(OKABE_ITO)]
    return {"facecolor": face, "edgecolor": "white", "hatch": HATCHES[i % len(HATCHES)]}


def _parts(results: Results, row: str) -> dict[str, float]:
    """Mean seconds of selection of a row by part; what no part explains is `other`."""
    cells = [cell for cell in results.done if cell.row == row]
    spent = [c.costs["select_seconds"] for c in cells if c.costs.get("select_seconds") is not None]
    if not spent:
        return {}
    total, parts = math.fsum(spent) / len(spent), mean_parts(cells)
    rest = total - math.fsum(parts.values())
    return parts | ({OTHER: rest} if rest > 0.005 * total or not parts else {})
