"""How figures look and how they are written: one style, no clock, no machine in the bytes.

Colours are Okabe and Ito's, told apart by colour-blind readers; every meaning that a colour
carries is carried by a marker's shape as well, so that a grey print loses nothing.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.reporting import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

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
WHOLE, LEAN = "DejaVu Sans", "DejaVu Sans Lean"
LETTERS = (
    range(0x20, 0x180),  # Latin
    range(0x370, 0x400),  # Greek
    range(0x2010, 0x2040),  # dashes, quotation marks, ellipsis
    range(0x2190, 0x2194),  # arrows
    (0x2212, 0x2248, 0x2264, 0x2265),  # minus, about, at most, at least
)
DARK = 0.7
"""Shares from here on have white numbers."""
RASTER = 1500
"""Above this many points a figure holds them as pixels, in the vector formats too."""


def context() -> AbstractContextManager[None]:
    """Matplotlib's own defaults, not the user's, with this style on top."""
    import matplotlib.style

    settings = SETTINGS | {"font.family": families()}
    manager: AbstractContextManager[None] = matplotlib.style.context(["default", settings])
    return manager


@cache
def families() -> list[str]:
    """DejaVu Sans cut down to `LETTERS`, then the whole font for what that lacks.

    A PDF takes along the letters it uses. Finding them in the whole font (six thousand glyphs and
    their ligatures in all scripts) took a fifth of the time of a report; in this one a hundredth.
    """
    import matplotlib
    from fontTools import subset
    from matplotlib import font_manager

    folder = TemporaryDirectory(prefix="cotsieve-font-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "lean.ttf"
    # Matplotlib's own fonts: what else a machine has must not change a figure.
    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    options = subset.Options(glyph_names=True, name_IDs=["*"], drop_tables=["FFTM"])
    source = font_manager.findfont(WHOLE, directory=str(shipped))
    with subset.load_font(source, options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=[code for part in LETTERS for code in part])
        cutter.subset(font)
        for entry in font["name"].names:
            if entry.nameID in (1, 4, 16):
                entry.string = LEAN
        font.save(path)
    font_manager.fontManager.addfont(path)
    return [LEAN, WHOLE]


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


def handle(label: str, colour: str, marker: str = "none", **look: Any) -> Line2D:
    """An entry of a legend: a marker without a line, unless `look` says otherwise."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "markersize": 4} | look
    return Line2D([], [], color=colour, marker=marker, label=label, **style)


def multiples(
    count: int, columns: int, panel: tuple[float, float], frame: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Panels in reading order, `columns` side by side; sizes of a panel and around all, inches."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    size = (frame[0] + panel[0] * columns, frame[1] + panel[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    places = figure.add_gridspec(rows, columns)
    axes = [figure.add_subplot(places[divmod(i, columns)]) for i in range(count)]
    return figure, axes


def finish(
    figure: Figure,
    axes: Sequence[Axes],
    columns: int,
    labels: tuple[str, str],
    handles: Sequence[Any],
    wide: int,
) -> None:
    """One scale, one label per direction and one legend, `wide` entries across, for `multiples`.

    The limits hold what every panel shows. Axes that matplotlib shares ask one another for their
    limits again and again; set once, the same picture takes two thirds of the time.
    """
    x, y = ([getattr(axis, f"get_{name}lim")() for axis in axes] for name in "xy")
    for i, axis in enumerate(axes):
        axis.set_xlim(min(low for low, _ in x), max(high for _, high in x))
        axis.set_ylim(min(low for low, _ in y), max(high for _, high in y))
        axis.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(axes))
    figure.supxlabel(labels[0], fontsize=8.5)
    figure.supylabel(labels[1], fontsize=8.5)
    figure.legend(handles=handles, loc="outside upper center", ncols=wide)


def heat(
    axis: Axes,
    values: npt.NDArray[np.float64],
    heights: Sequence[float],
    columns: Sequence[str],
    text: Callable[[float], str],
) -> None:
    """Shades of shares `values` [rows, columns] with their numbers; a darker cell is a higher one.

    `heights` are the places of the rows, `columns` the names below; `text` also writes nan.
    Lightness falls all the way, so that a grey print reads the same.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    boxes, shares = [], []
    for y, line in zip(heights, values, strict=True):
        for x, value in enumerate(line.tolist()):
            if math.isfinite(value):
                boxes.append(Rectangle((x - 0.5, y - 0.5), 1, 1))
                shares.append(value)
            if label := text(value):
                colour = "white" if value >= DARK else BLACK if value == value else GREY
                axis.text(x, y, label, ha="center", va="center_baseline", color=colour, fontsize=8)
    steps = [(0.0, "white"), (0.35, "#c9e4f6"), (0.6, SKY), (0.8, BLUE), (1.0, "#003a5c")]
    shades = LinearSegmentedColormap.from_list("cotsieve", steps)
    cells = PatchCollection(boxes, cmap=shades, edgecolor=LIGHT, linewidth=0.6)
    cells.set_array(np.array(shares))
    cells.set_clim(0.0, 1.0)
    axis.add_collection(cells)
    axis.set_xlim(-0.5, values.shape[1] - 0.5)
    axis.set_ylim(max(heights) + 0.5, min(heights) - 0.5)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def hundredths(value: float, absent: str = numbers.NONE) -> str:
    """Two decimals of a share, without the zero in front, which a cell has no room for."""
    return f"{value:.2f}".removeprefix("0") if math.isfinite(value) else absent
