"""Accuracy of every row, and its paired difference to the reference, with intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.panels import (
    Lines,
    differences,
    fraction_titles,
    kind_of,
    legend,
    line_at,
    mark,
    no_result,
    panels,
    primary,
    ranked,
    share_scale,
)
from harness.reporting.figures.style import GREY
from harness.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy(results: Results, table: pd.DataFrame) -> Figure:
    """Accuracy per row on the mean over tasks, with intervals and the mean of every seed."""
    selectors, controls = ranked(results, table)
    figure, axes, places = panels(
        results, (selectors, controls), fraction_titles(results), len(results.fractions)
    )
    lines, seeds = primary(table), _seed_means(results)
    kinds: dict[str, None] = {}
    for axis, fraction in zip(axes, results.fractions, strict=True):
        reference = lines.get((results.reference, fraction))
        if reference is not None and math.isfinite(reference.mean):
            axis.axvline(100 * reference.mean, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        for row, y in places.items():
            line = line_at(None, row, fraction, lines)
            if not math.isfinite(line.mean):
                no_result(axis, y, str(line.verdict))
                continue
            each = seeds.get((row, line.fraction), np.empty(0))
            axis.plot(100 * each, np.full(len(each), y + 0.27), "|", color=GREY, markersize=4)
            kind = kind_of(results, line)
            kinds[kind] = None
            mark(axis, 100 * line.mean, y, 100 * line.ci_low, 100 * line.ci_high, kind)
        axis.set_xlabel(f"Accuracy, mean of {numbers.plural(len(results.tasks), 'task')} (%)"
                        if len(axes) == 1 else "Accuracy (%)")  # fmt: skip
    share_scale(axes)
    legend(figure, results, kinds, [_seed_handle()])
    return figure


def _seed_handle() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="|", color=GREY, linestyle="none", markersize=5, label="one seed")


def _seed_means(results: Results) -> dict[tuple[str, float], np.ndarray[Any, Any]]:
    """Accuracy of every whole seed, mean over items, then over tasks."""
    grid = results.grid
    if grid is None:
        return {}
    outcomes = {line: grid.outcome(line, list(grid.tasks))[0] for line in grid.lines}
    return {line: found.seed_means for line, found in outcomes.items() if found is not None}


def forest(results: Results, table: pd.DataFrame) -> Figure:
    """Paired differences to the reference with intervals, one panel per fraction."""
    selectors, controls = ranked(results, table)
    selectors = [row for row in selectors if row != results.reference]
    figure, axes, places = panels(
        results, (selectors, controls), fraction_titles(results), len(results.fractions)
    )
    lines = primary(table)
    kinds: dict[str, None] = {}
    for axis, fraction in zip(axes, results.fractions, strict=True):
        kinds |= differences(axis, results, places, fraction, lines)
        if len(axes) == 1:
            _print_effects(axis, results, places, fraction, lines)
    share_scale(axes)
    legend(figure, results, kinds)
    return figure


def _print_effects(
    axis: Axes,
    results: Results,
    places: dict[str, float],
    fraction: float,
    lines: Lines,
) -> None:
    """Estimates as numbers, to the right of the panel."""
    transform = axis.get_yaxis_transform()
    level = numbers.percent(1 - results.alpha)
    axis.text(1.03, 1.0, f"points [{level}]", transform=axis.transAxes, color=GREY, fontsize=8)
    for row, y in places.items():
        line = line_at(None, row, fraction, lines)
        if math.isfinite(line.diff):
            effect = numbers.points(line.diff, signed=True)
            effect += f" {numbers.interval(line.diff_low, line.diff_high)}"
            axis.text(1.03, y, effect, transform=transform, va="center", fontsize=8)
