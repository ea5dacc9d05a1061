"""How well rows find planted errors, class by class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting import numbers
from harness.reporting.figures.heat import heat, hundredths
from harness.reporting.figures.panels import ranked
from harness.reporting.figures.pool_facts import described, middle, planted, score_column
from harness.reporting.figures.style import row_label
from harness.reporting.results import BASE, FULL, Results
from harness.stats import placements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_HEIGHT, COLUMN = 0.235, 0.36
"""Inches of a cell."""
Members = list[npt.NDArray[np.bool_]]
ALL, CORRECT = "all errors", "correct"


def detection(results: Results, table: pd.DataFrame) -> Figure | None:
    """Share pruned of every class of planted errors, and the area under the ROC curve."""
    from matplotlib.figure import Figure

    fraction = middle(results)
    selectors, controls = ranked(results, table)
    groups = [[row for row in group if row not in (BASE, FULL)] for group in (selectors, controls)]
    rows = [row for group in groups for row in group if results.selections(row, fraction)]
    classes = _classes(results)
    if not rows or not classes:
        return None
    found = [measured(results, row, fraction, classes) for row in rows]
    pruned, areas = (np.array(part) for part in zip(*found, strict=True))
    scored = bool(np.isfinite(areas).any())
    heights = [i + (0.4 if row in controls else 0.0) for i, row in enumerate(rows)]
    names = [row_label(row, 28) for row in rows]
    widths = [len(classes) + 2, len(classes) + 1][: 1 + scored]
    figure = Figure(
        figsize=(0.5 + 0.072 * max(map(len, names)) + COLUMN * sum(widths) + 0.3 * scored,
                 1.25 + ROW_HEIGHT * (max(heights) + 1)),
        layout="constrained",
    )  # fmt: skip
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    heat(axes[0], pruned, heights, [*classes, ALL, CORRECT], _percent)
    axes[0].set_title(f"Pruned at {numbers.percent(fraction)} kept (%)\n"
                      f"random: {100 * _random(results, rows[0], fraction):.0f}")  # fmt: skip
    if scored:
        heat(axes[1], areas, heights, [*classes, ALL], hundredths)
        axes[1].set_title("ROC AUC of the score\nrandom: .50")
    for axis in axes:  # the classes apart from what sums them up
        axis.axvline(len(classes) - 0.5, color="white", linewidth=3)
    axes[0].set_yticks(heights, names)
    return figure


def _classes(results: Results) -> list[str]:
    """Classes of planted errors in the pool, where correct and wrong ones are both known."""
    pool = results.pool
    if pool is None or "quality" not in pool or not results.facts.get("correct_classes"):
        return []
    classes = planted(results, pool)
    return classes if pool["quality"].isin(results.facts["correct_classes"]).any() else []


def _members(quality: pd.Series[Any], classes: list[str]) -> Members:
    """Who belongs to each class of errors, to any of them, and who is correct."""
    found = [quality == name for name in classes]
    found += [quality.isin(classes), quality.notna() & ~quality.isin(classes)]
    return [part.to_numpy(dtype=bool) for part in found]


def measured(
    results: Results, row: str, fraction: float, classes: list[str]
) -> tuple[list[float], list[float]]:
    """What a row does to each class and to all errors, mean over seeds.

    The share pruned, lastly of the correct examples too; and P(a correct example scores above an
    error), ties half, nan where the row has no score.
    """
    known: dict[int, tuple[list[float], list[float]]] = {}
    frames = list(results.selections(row, fraction).values())
    members: Members = []
    ids: pd.Series[Any] | None = None
    for frame in frames:
        if ids is None or not frame["id"].equals(ids):
            ids = frame["id"]
            members = _members(described(results, frame)["quality"], classes)
        if id(frame) not in known:  # seeds that share a choice share the frame
            known[id(frame)] = _measured(frame, members)
    shares, areas = zip(*(known[id(frame)] for frame in frames), strict=True)
    # Rounded, since the mean of equal shares is equal on paper only, and 36.5% must not become 37%.
    return np.mean(shares, axis=0).round(12).tolist(), np.mean(areas, axis=0).round(12).tolist()


def _measured(frame: pd.DataFrame, members: Members) -> tuple[list[float], list[float]]:
    gone, column = ~frame["chosen"].to_numpy(dtype=bool), score_column(frame)
    shares = [float(gone[part].mean()) for part in members]
    *errors, correct = members
    if column is None:
        return shares, [math.nan] * len(errors)
    scores = frame[column].to_numpy(dtype=float)
    beneath = placements(scores, scores[correct])
    return shares, [float(beneath[part].mean()) for part in errors]


def _random(results: Results, row: str, fraction: float) -> float:
    """Share that random choice of the same size prunes of any class."""
    frame = next(iter(results.selections(row, fraction).values()))
    return float(1 - frame["chosen"].mean())


def _percent(value: float) -> str:
    return f"{100 * value:.0f}" if math.isfinite(value) else numbers.NONE
