"""Figures for print and page, each in SVG, PNG and PDF: the same records give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.reporting.figures.choices import detection, overlap
from harness.reporting.figures.curves import compute, fractions
from harness.reporting.figures.rows import accuracy, cost, forest, seeds
from harness.reporting.figures.scores import influence_scatter, score_length
from harness.reporting.figures.style import ENDINGS, context, save
from harness.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CAPTIONS", "ENDINGS", "FIGURES", "WIDE", "draw"]

FIGURES: dict[str, Callable[[Results, pd.DataFrame], Figure | None]] = {
    "forest": forest,
    "accuracy": accuracy,
    "seeds": seeds,
    "fractions": fractions,
    "compute": compute,
    "cost": cost,
    "overlap": overlap,
    "detection": detection,
    "score-length": score_length,
    "influence-scatter": influence_scatter,
}
CAPTIONS = {
    "forest": (
        "Paired differences to {reference}",
        "Each mark is a row's mean accuracy minus that of {reference} on the same seeds and "
        "items, with its interval. A triangle is a verdict that survives correction; an open "
        "circle is a tie; squares are controls.",
    ),
    "accuracy": (
        "Accuracy",
        "Mean over tasks with its interval; the small ticks below each mark are single seeds. "
        "The dashed line is {reference}.",
    ),
    "seeds": (
        "Seed by seed",
        "What every training seed says: a row minus {reference}, the same seed and the same items "
        "on both sides. Within a row the seeds stand below one another, the first on top, at the "
        "same height in every row; the bar is their mean, the band its interval, and the marks "
        "are shaped by the row's verdict. At the right: how many seeds lie above 0.",
    ),
    "fractions": (
        "Accuracy against the share of the pool",
        "One panel per row, drawn from the base model (0) through the fractions tried to the "
        "whole pool (100). In grey {reference}, in light grey the other rows.",
    ),
    "compute": (
        "Accuracy at equal total compute",
        "Accuracy with its interval against the floating-point operations of choosing and training "
        "together, in units of one training run. A row is worth what it costs where it stands "
        "above everything to its left, {reference} included. Signals that several rows share "
        "count in full for each. Marks at about the same compute stand side by side; the dashed "
        "line is the base model.",
    ),
    "overlap": (
        "Who chooses the same",
        "Jaccard overlap of the chosen sets: what two rows both chose, of all that either chose; "
        "mean over their common seeds. 1 means the same set; what random sets of this size share "
        "is given. Framed on the diagonal: the same row under different seeds, empty where its "
        "choice does not depend on the seed. Of several fractions the middle one.",
    ),
    "detection": (
        "Which planted errors are found",
        "Left: the share of every class that is pruned, mean over seeds; random choice prunes the "
        "same share of every class. Right: the area under the ROC curve, which is the chance that "
        "a correct example scores above an error of this class, whatever the fraction; a row "
        "without a score has none, and one that ranks by no single score is judged by the first "
        "that it noted. Darker is higher. Of several fractions the middle one.",
    ),
    "score-length": (
        "Score against length",
        "Every example by its response length and its place in the order of scores (100 is the "
        "best), with the median of up to twelve groups along the length; equal lengths are spread "
        "sideways. Above each panel Spearman's rank correlation of score and length and, where "
        "they are known, of score and steps of difficulty: a score near 1 or \N{MINUS SIGN}1 is "
        "little more than length. A row that ranks by no single score is shown by the first that "
        "it noted, by name. The first seed is shown, of many rows those that go most with length.",
    ),
    "influence-scatter": (
        "What influence sees, and what is pruned",
        "Every example of the pool by its influence on queries that fine-tuning made right (s_C) "
        "and made wrong (s_I); hollow marks are pruned, coloured ones are planted errors where "
        "these are known. The first seed is shown. The axes are nearly linear for most "
        "scores and logarithmic beyond (asinh), so that no tail is cut off.",
    ),
    "cost": (
        "Cost against gain",
        "Seconds spent on choosing, by part, beside the difference to {reference}. Parts that "
        "several rows share, such as a reference model, count in full for each of them.",
    ),
}
"""Title and caption of every figure."""
WIDE = ("fractions", "compute", "overlap", "detection", "score-length", "influence-scatter", "cost")
"""Figures that a page gives its whole width."""


def draw(results: Results, table: pd.DataFrame, folder: Path) -> dict[str, list[Path]]:
    """Draw all figures into `folder`; those that the records cannot fill are left out."""
    drawn = {}
    with context():
        for name, function in FIGURES.items():
            figure = function(results, table)
            if figure is not None:
                drawn[name] = save(figure, folder / name)
    return drawn
