"""Figures of what rows chose: how far any two agree, and which planted errors each one finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.data.jaccard import expected_jaccard
from harness.reporting import numbers
from harness.reporting.figures.rows import ROW_HEIGHT, ranked
from harness.reporting.figures.style import GREY, heat, hundredths, row_label
from harness.reporting.results import BASE, FULL, Results
from harness.stats import jaccard, placements, stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORE = "score"
"""The column of a selection that its row ranks by."""
FACTS = ("quality", "response_tokens", "steps")
CELL, COLUMN = 0.31, 0.36
"""Inches that a number of three digits and its cell are wide, and a cell below a slanted name."""
LEAST = 4.1
"""Inches that the title needs even over two rows."""
ALL, CORRECT = "all errors", "correct"
Flags = npt.NDArray[np.bool_]
Sets = dict[int, Flags]
"""A row's choice by seed; seeds that chose the same share one array."""


def described(results: Results, chosen: pd.DataFrame) -> pd.DataFrame:
    """A selection with the pool's `FACTS` of every example, missing where they are not known."""
    if results.pool is None:
        return chosen.assign(**dict.fromkeys(FACTS))
    facts = results.pool.reindex(columns=["id", *FACTS])
    if chosen["id"].equals(facts["id"]):  # as a run writes them; looking ids up takes far longer
        return chosen.assign(**{name: facts[name] for name in FACTS})
    return chosen.merge(facts, on="id", how="left", validate="1:1")


def score_column(chosen: pd.DataFrame) -> str | None:
    """The column a row ranks by; where it ranks by none, the first number its selector stored."""
    if SCORE in chosen:
        return SCORE
    numeric = chosen.drop(columns=["id", "chosen"]).select_dtypes("number")
    return next((str(name) for name in numeric if np.isfinite(numeric[name]).all()), None)


def planted(results: Results, points: pd.DataFrame) -> list[str]:
    """Planted classes of errors: all but the correct ones; empty where none are known to be."""
    if results.repaired:
        return []
    correct = set(results.facts.get("correct_classes", ()))
    return sorted(set(points["quality"].dropna()) - correct)


def overlap(results: Results, table: pd.DataFrame) -> Figure | None:
    """Jaccard overlap of the sets that any two rows chose, mean over common seeds."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    fraction = results.middle
    sets = chosen_sets(results, fraction)
    if len(sets) < 2:
        return None
    rows = list(sets)
    values = overlaps(sets)
    names = [row_label(row, 26) for row in rows]
    side, margin = CELL * len(rows), 0.3 + 0.072 * max(map(len, names))
    size = (max(side + margin + 0.9, LEAST), max(0.8 * side + 0.7, 0.6 * LEAST))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    lower = np.where(np.tri(len(rows), dtype=bool), values, math.nan)
    heat(axis, lower, range(len(rows)), [], lambda value: hundredths(value, ""))
    axis.set_yticks(range(len(rows)), names)
    for i, name in enumerate(names):  # columns are named where there is room for it
        axis.text(i + 0.62, i, name, va="center_baseline", fontsize=8.5)
        axis.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=GREY,
                                 linewidth=0.8, zorder=3))  # fmt: skip
    axis.set_title(_overlap_title(fraction, sets), loc="left", fontsize=8.5)
    return figure


def chosen_sets(results: Results, fraction: float) -> dict[str, Sets]:
    """Who chose what, by row and seed, on the same order of examples; rows that choose only."""
    sets: dict[str, Sets] = {}
    order: pd.Index[Any] | None = None
    for row in results.rows:
        if row in (BASE, FULL):
            continue
        same: dict[int, Flags] = {}
        for seed, frame in results.selections(row, fraction).items():
            order = pd.Index(frame["id"]) if order is None else order
            if id(frame) not in same:
                same[id(frame)] = _aligned(frame, order, row)
            sets.setdefault(row, {})[seed] = same[id(frame)]
    return sets


def _aligned(frame: pd.DataFrame, order: pd.Index[Any], row: str) -> Flags:
    """Chosen flags in a common order of ids."""
    ids = pd.Index(frame["id"])
    if not ids.equals(order):
        if len(ids) != len(order) or set(ids) != set(order):
            raise ValueError(f"row {row!r} chose among other ids; expected those of the first row")
        frame = frame.set_index("id").loc[order]
    chosen: Flags = frame["chosen"].to_numpy(dtype=bool)
    return chosen


def overlaps(sets: Mapping[str, Sets]) -> npt.NDArray[np.float64]:
    """Mean overlap over common seeds [rows, rows]; the diagonal is stability between seeds.

    nan where two rows have no seed in common, and on the diagonal of a row whose choice does not
    depend on the seed.
    """
    rows = list(sets)
    values = np.full((len(rows), len(rows)), math.nan)
    for i, first in enumerate(rows):
        for j, second in enumerate(rows[:i]):
            pairs = [(sets[first][s], sets[second][s]) for s in sets[first] if s in sets[second]]
            distinct = {(id(a), id(b)): (a, b) for a, b in pairs}
            each = {key: jaccard(a, b) for key, (a, b) in distinct.items()}
            if pairs:
                values[i, j] = values[j, i] = np.mean([each[id(a), id(b)] for a, b in pairs])
        if _depends_on_seed(sets[first]):
            values[i, i] = stability(list(sets[first].values()))
    return values


def _depends_on_seed(sets: Sets) -> bool:
    return len({id(chosen) for chosen in sets.values()}) > 1


def _overlap_title(fraction: float, sets: Mapping[str, Sets]) -> str:
    """What the numbers are, and what chance would give."""
    first = next(iter(next(iter(sets.values())).values()))
    random = expected_jaccard(len(first), int(first.sum()), int(first.sum()))
    title = f"Jaccard overlap, {numbers.percent(fraction)} kept; random sets: {random:.2f}"
    framed = any(map(_depends_on_seed, sets.values()))
    return title + ("\nframed: the same row under other seeds" if framed else "")


def detection(results: Results, table: pd.DataFrame) -> Figure | None:
    """Share pruned of every class of planted errors, and the area under the ROC curve."""
    from matplotlib.figure import Figure

    fraction = results.middle
    selectors, controls = ranked(results, table)
    groups = [[row for row in group if row not in (BASE, FULL)] for group in (selectors, controls)]
    rows = [row for group in groups for row in group if results.selections(row, fraction)]
    classes = _classes(results)
    if not rows or not classes:
        return None
    measures = [measured(results, row, fraction, classes) for row in rows]
    pruned, areas = (np.array(part) for part in zip(*measures, strict=True))
    frame = next(iter(results.selections(rows[0], fraction).values()))
    random = 1 - float(frame["chosen"].mean())  # of any class
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
    heat(axes[0], pruned, heights, [*classes, ALL, CORRECT],
         lambda share: numbers.number(100 * share, 0))  # fmt: skip
    share = numbers.percent(fraction)
    axes[0].set_title(f"Pruned at {share} kept (%)\nrandom: {100 * random:.0f}")
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


def _members(quality: pd.Series[Any], classes: list[str]) -> list[Flags]:
    """Who belongs to each class of errors, to any of them, and who is correct."""
    parts = [quality == name for name in classes]
    parts += [quality.isin(classes), quality.notna() & ~quality.isin(classes)]
    return [part.to_numpy(dtype=bool) for part in parts]


def measured(
    results: Results, row: str, fraction: float, classes: list[str]
) -> tuple[list[float], list[float]]:
    """What a row does to each class and to all errors, mean over seeds.

    The share pruned, lastly of the correct examples too; and P(a correct example scores above an
    error), ties half, nan where the row has no score.
    """
    measures: dict[int, tuple[list[float], list[float]]] = {}
    frames = list(results.selections(row, fraction).values())
    members: list[Flags] = []
    ids: pd.Series[Any] | None = None
    for frame in frames:
        if ids is None or not frame["id"].equals(ids):
            ids = frame["id"]
            members = _members(described(results, frame)["quality"], classes)
        if id(frame) not in measures:  # seeds that share a choice share the frame
            measures[id(frame)] = _measured(frame, members)
    shares, areas = zip(*(measures[id(frame)] for frame in frames), strict=True)
    # Rounded, since the mean of equal shares is equal on paper only, and 36.5% must not become 37%.
    return np.mean(shares, axis=0).round(12).tolist(), np.mean(areas, axis=0).round(12).tolist()


def _measured(frame: pd.DataFrame, members: list[Flags]) -> tuple[list[float], list[float]]:
    gone, column = ~frame["chosen"].to_numpy(dtype=bool), score_column(frame)
    shares = [float(gone[part].mean()) for part in members]
    *errors, correct = members
    if column is None:
        return shares, [math.nan] * len(errors)
    scores = frame[column].to_numpy(dtype=float)
    beneath = placements(scores, scores[correct])
    return shares, [float(beneath[part].mean()) for part in errors]
