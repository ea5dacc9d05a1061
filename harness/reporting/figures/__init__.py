"""Figures for print and page: every one in SVG, PNG and PDF, the same bytes for the same records.

Colours are Okabe and Ito's, told apart by colour-blind readers; every meaning that a colour
carries is carried by a marker's shape as well, so that a grey print loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.reporting.figures.compute import compute
from harness.reporting.figures.cost import cost
from harness.reporting.figures.detection import detection
from harness.reporting.figures.forest import accuracy, forest
from harness.reporting.figures.fractions import fractions
from harness.reporting.figures.length import score_length
from harness.reporting.figures.overlap import overlap
from harness.reporting.figures.scatter import influence_scatter
from harness.reporting.figures.seeds import seeds
from harness.reporting.figures.style import ENDINGS, context, save
from harness.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ENDINGS",
    "FIGURES",
    "accuracy",
    "compute",
    "cost",
    "detection",
    "draw",
    "forest",
    "fractions",
    "influence_scatter",
    "overlap",
    "score_length",
    "seeds",
]

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


def draw(results: Results, table: pd.DataFrame, folder: Path) -> dict[str, list[Path]]:
    """Draw all figures into `folder`; those that the records cannot fill are left out."""
    drawn = {}
    with context():
        for name, function in FIGURES.items():
            figure = function(results, table)
            if figure is not None:
                drawn[name] = save(figure, folder / name)
    return drawn
