"""Seed by seed: what every training seed says about a row's difference to the reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting.figures.panels import (
    fraction_titles,
    kind_of,
    legend,
    line_at,
    no_result,
    panels,
    primary,
    ranked,
    share_scale,
)
from harness.reporting.figures.style import BLACK, GREY, LIGHT, VERDICTS
from harness.reporting.results import Results
from harness.stats import aligned, common_seeds, rival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.29
LANES = 0.62
"""Height within a row over which its seeds are spread, in rows."""


def seeds(results: Results, table: pd.DataFrame) -> Figure | None:
    """Paired difference to the reference of every seed, with mean and interval beneath."""
    if len(results.seeds) < 2:
        return None
    selectors, controls = ranked(results, table)
    selectors = [row for row in selectors if row != results.reference]
    figure, axes, places = panels(
        results,
        (selectors, controls),
        fraction_titles(results),
        len(results.fractions),
        row_height=ROW_HEIGHT,
    )
    lines, paired = primary(table), paired_by_seed(results)
    kinds: dict[str, None] = {}
    for axis, fraction in zip(axes, results.fractions, strict=True):
        axis.axvline(0, color=BLACK, linewidth=0.9)
        for row, y in places.items():
            line = line_at(None, row, fraction, lines)
            found = paired.get((row, line.fraction))
            if found is None:
                no_result(axis, y, "reference" if row == results.reference else str(line.verdict))
                continue
            kind = kind_of(results, line)
            kinds[kind] = None
            _row(axis, y, line, found, results.seeds, kind)
        axis.use_sticky_edges = False  # a band may not end where the panel does
        axis.set_xlabel(f"Difference to {results.reference} (points)")
        axis.text(1.02, 1.0, "above 0", transform=axis.transAxes, color=GREY, fontsize=8)
    share_scale(axes)
    legend(figure, results, kinds, _handles(), bars=False)
    return figure


def paired_by_seed(results: Results) -> dict[tuple[str, float], dict[int, float]]:
    """Difference to the reference on the mean over tasks by row and fraction, then by seed.

    As in the table: whole seeds that both sides have, `base` and `full` with the reference's own
    middle fraction, the one checkpoint of `base` with every seed of it.
    """
    grid = results.grid
    found: dict[tuple[str, float], dict[int, float]] = {}
    for line in grid.lines if grid is not None else ():
        assert grid is not None
        other = rival(grid, line, results.reference)
        if other is None or other == line:
            continue
        method, _ = grid.outcome(line, list(grid.tasks))
        reference, _ = grid.outcome(other, list(grid.tasks))
        if method is None or reference is None or not common_seeds(method, reference):
            continue
        a, b, _ = aligned(method, reference)
        gaps: npt.NDArray[np.float64] = a.seed_means - b.seed_means
        found[line] = dict(zip(a.seeds, gaps.tolist(), strict=True))
    return found


def _row(
    axis: Axes,
    y: float,
    line: Any,
    found: dict[int, float],
    seeds: tuple[int, ...],
    kind: str,
) -> None:
    """A row's seeds, one below the other, over a band for the interval and a bar for the mean."""
    shape, colour, face = VERDICTS.get(kind, VERDICTS["tie"])
    if math.isfinite(line.diff_low) and math.isfinite(line.diff_high):
        width = 100 * (line.diff_high - line.diff_low)
        axis.barh(y, width, left=100 * line.diff_low, height=0.84, color=LIGHT, zorder=0.9)
    mean = 100 * line.diff
    axis.plot([mean, mean], [y - 0.42, y + 0.42], color=GREY, linewidth=1.4, zorder=1)
    lane = {seed: LANES * (i / (len(seeds) - 1) - 0.5) for i, seed in enumerate(seeds)}
    axis.plot(
        [100 * value for value in found.values()], [y + lane[seed] for seed in found],
        shape, color=colour, markerfacecolor=face, markersize=3.2, markeredgewidth=0.8,
    )  # fmt: skip
    above = sum(value > 0 for value in found.values())
    axis.text(1.02, y, f"{above}/{len(found)}", transform=axis.get_yaxis_transform(),
              va="center", fontsize=8)  # fmt: skip


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mean = Line2D([], [], color=GREY, linewidth=1.4, marker="|", markersize=8, linestyle="none",
                  markeredgewidth=1.4, label="mean")  # fmt: skip
    return [mean, Patch(facecolor=LIGHT, label="its interval")]
