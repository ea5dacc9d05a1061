"""One figure for the study: scores with their ceiling, brittleness, and what finds which error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.reporting import numbers
from harness.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    OKABE_ITO,
    ORANGE,
    VERMILLION,
)
from harness.studies.influence.measure import ANCHOR, PEER, SHUFFLED, Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "D", "^", "v", "P", "X")
ROW_HEIGHT = 0.2


def draw(found: Findings) -> Figure:
    """The figure; same findings, same picture."""
    from matplotlib.figure import Figure

    rows = max(len(found.methods), len(_scores(found)))
    figure = Figure(figsize=(10.2, 1.35 + ROW_HEIGHT * rows), layout="constrained")
    axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.15, 0.8, 1.15]})
    _lds(axes[0], found)
    _drops(axes[1], found)
    _auroc(axes[2], found)
    return figure


def _lds(axis: Axes, found: Findings) -> None:
    lines = found.methods
    band = found.attainable
    axis.axvspan(band.low, band.high, color=LIGHT, linewidth=0)
    axis.axvline(band.mean, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    axis.axvline(0, color=BLACK, linewidth=0.6)
    kinds = {ANCHOR: ("o", BLUE), PEER: ("s", ORANGE), SHUFFLED: ("D", GREY)}
    for place, line in enumerate(lines):
        shape, colour = kinds.get(line.method, ("o", BLACK))
        axis.plot([line.wide.low, line.wide.high], [place] * 2, color=colour, linewidth=0.7)
        axis.plot([line.score.low, line.score.high], [place] * 2, color=colour, linewidth=2.2)
        axis.plot(line.score.mean, place, shape, color=colour, markersize=5)
    axis.set_yticks(range(len(lines)), [line.method for line in lines])
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlabel(f"LDS, alpha = {found.protocol['alpha']:g}")
    axis.set_title(
        "Foretelling retraining\ndashed: expected without error", fontsize=8.5, loc="left"
    )


def _drops(axis: Axes, found: Findings) -> None:
    shares = found.protocol["removed"]
    methods = list(dict.fromkeys(method for method, _ in found.drops))
    offsets = np.linspace(-0.14, 0.14, len(methods))
    colours = (GREY, BLUE, VERMILLION, GREEN)
    axis.axhline(0, color=BLACK, linewidth=0.6)
    for number, method in enumerate(methods):
        colour, shape = colours[number % len(colours)], MARKS[number % len(MARKS)]
        for place, share in enumerate(shares):
            value, x = found.drops[method, share], place + offsets[number]
            axis.plot([x, x], [value.low, value.high], color=colour, linewidth=1.4)
            label = method if place == 0 else None
            axis.plot(x, value.mean, shape, color=colour, markersize=5, label=label)
    axis.set_xticks(range(len(shares)), [numbers.percent(share) for share in shares])
    axis.set_xlim(-0.5, len(shares) - 0.5)
    axis.set_xlabel("top of the pool removed")
    axis.set_ylabel("fall beyond random removal, nats")
    axis.set_title("Brittleness", fontsize=8.5, loc="left")
    axis.legend(loc="best")


def _scores(found: Findings) -> list[str]:
    """Scores in the detection panel: those of methods with their default settings."""
    return [m for m in dict.fromkeys(method for method, _ in found.auroc) if ", " not in m]


def _auroc(axis: Axes, found: Findings) -> None:
    scores = _scores(found)
    axis.axvline(0.5, color=BLACK, linewidth=0.6)
    offsets = np.linspace(-0.27, 0.27, len(found.classes))
    for number, name in enumerate(found.classes):
        colour = OKABE_ITO[(0, 6, 1, 2, 5)[number % 5]]
        for place, score in enumerate(scores):
            value, y = found.auroc[score, name], place + offsets[number]
            axis.plot([value.low, value.high], [y, y], color=colour, linewidth=0.9)
            label = name if place == 0 else None
            shape = MARKS[number % len(MARKS)]
            axis.plot(value.mean, y, shape, color=colour, markersize=3, label=label)
    axis.set_yticks(range(len(scores)), scores)
    axis.set_ylim(len(scores) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.set_xlabel("AUROC: error below correct")
    axis.set_title("Finding planted errors", fontsize=8.5, loc="left")
    axis.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2, handletextpad=0.2, columnspacing=1
    )
