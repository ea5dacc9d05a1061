"""Tables as shades: every cell says its number, and a darker one is a higher one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.reporting import numbers
from harness.reporting.figures.style import BLACK, BLUE, GREY, LIGHT, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

PALE, DARKEST = "#c9e4f6", "#003a5c"
DARK = 0.7
"""Values from here on have white numbers."""
CELL = 0.31
"""Inches that a number of three digits and its cell are wide."""


def shades() -> Colormap:
    """From white to dark blue; lightness falls all the way, so that a grey print reads the same."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = [(0.0, "white"), (0.35, PALE), (0.6, SKY), (0.8, BLUE), (1.0, DARKEST)]
    return LinearSegmentedColormap.from_list("cotsieve", steps)


def heat(
    axis: Axes,
    values: npt.NDArray[np.float64],
    heights: Sequence[float],
    columns: Sequence[str],
    tell: Callable[[float], str],
) -> None:
    """Shades of shares `values` [rows, columns] with their numbers; nan is a dash or nothing.

    `heights` are the places of the rows, `columns` the names below. What `tell` turns nan into
    stands where there is no value.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes, shown = [], []
    for y, line in zip(heights, values, strict=True):
        for x, value in enumerate(line.tolist()):
            text = tell(value)
            if math.isfinite(value):
                boxes.append(Rectangle((x - 0.5, y - 0.5), 1, 1))
                shown.append(value)
            if text:
                colour: Any = "white" if value >= DARK else BLACK if value == value else GREY
                axis.text(x, y, text, ha="center", va="center_baseline", color=colour, fontsize=8)
    cells = PatchCollection(boxes, cmap=shades(), edgecolor=LIGHT, linewidth=0.6)
    cells.set_array(np.array(shown))
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
