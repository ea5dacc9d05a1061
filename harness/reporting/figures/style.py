"""How figures look and how they are written: one style, no clock, no machine in the bytes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.reporting.figures.font import families

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, GREY, FAINT, LIGHT = "#222222", "#6e6e6e", "#c4c4c4", "#dedede"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
OKABE_ITO = (BLUE, ORANGE, SKY, GREEN, YELLOW, PURPLE, VERMILLION)
VERDICTS = {
    "better": ("^", BLUE, BLUE),
    "tie": ("o", GREY, "white"),
    "worse": ("v", VERMILLION, VERMILLION),
    "reference": ("d", BLACK, BLACK),
    "control": ("s", BLACK, "white"),
}
"""Marker, colour and fill of each verdict."""
ENDINGS = ("svg", "png", "pdf")
SETTINGS = {
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "normal",
    "axes.titley": 1.0,  # where it is anyway, but not searched for anew in every drawing
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.4,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.5,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a row called $x$ is a row called $x$
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "cotsieve",
}


def context() -> AbstractContextManager[None]:
    """Matplotlib's own defaults, not the user's, with this style on top."""
    import matplotlib.style

    settings = SETTINGS | {"font.family": families()}
    manager: AbstractContextManager[None] = matplotlib.style.context(["default", settings])
    return manager


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG, PNG and PDF without dates; returns the paths."""
    metadata = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ENDINGS]
    engine = figure.get_layout_engine()
    if engine is not None:
        # Laid out once: three formats, one arrangement. An engine that stays, even an idle one,
        # would have every format drawn twice.
        engine.execute(figure)
        figure.set_layout_engine(None)
    for path in paths:
        figure.savefig(path, metadata=metadata[path.suffix[1:]])
    return paths


def row_label(row: str, limit: int = 34) -> str:
    """A row's name, on one line and cut where no figure could hold it."""
    text = " ".join(row.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
