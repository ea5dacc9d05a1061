"""One figure for the study: what intervals miss, what tests of equal methods find, and power."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.reporting.figures.style import BLACK, BLUE, GREY, LIGHT, VERMILLION
from harness.studies.intervals.design import Point
from harness.studies.intervals.measure import (
    HIGH,
    LOW,
    METHODS,
    MOST,
    POWER_HIGH,
    POWER_LOW,
    Cell,
    Findings,
    Power,
)
from harness.studies.intervals.methods import (
    BOOTSTRAP,
    FLIPS,
    IGNORED,
    SATTERTHWAITE,
    SEEDS,
    TWO_WAY,
    UNPAIRED,
)
from harness.studies.intervals.simulate import DIFFERENCE, EQUAL, FAMILY, MEAN, MOVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = 0.002
"""Shares below this are drawn here: a logarithm knows no 0."""
SHAPES = ("o", "s", "^", "D")
"""By the standard deviation of seeds."""
FILLS = ("white", "#9a9a9a", BLACK)
"""By the number of seeds, few to many."""
PITCH = 0.27
ALARMS = (
    *((EQUAL, method) for method in (TWO_WAY, SATTERTHWAITE, BOOTSTRAP, SEEDS, FLIPS, UNPAIRED)),
    *((FAMILY, method) for method in (TWO_WAY, SATTERTHWAITE, SEEDS, UNPAIRED)),
    *((MOVED, method) for method in (TWO_WAY, SATTERTHWAITE, SEEDS)),
)
"""Rows of the panel of tests."""


def draw(found: Findings) -> Figure:
    """The figure; same findings, same picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 8.2), layout="constrained")
    axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": [1, 1.35]})
    titles = {MEAN: "Interval for a mean", DIFFERENCE: "Interval for a paired difference"}
    for axis, (quantity, title) in zip(axes[0], titles.items(), strict=True):
        axis.axvspan(1.0 - HIGH, 1.0 - LOW, color=LIGHT, linewidth=0)
        axis.axvline(1.0 - (LOW + HIGH) / 2.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        methods = [m for m in METHODS[quantity] if m != IGNORED]
        _strips(axis, found, [(quantity, m) for m in methods], methods, True)
        axis.set_title(title, fontsize=8.5, loc="left")
        axis.set_xlabel("truth outside the interval, % (grey: 3 to 7)")
    _alarms(axes[1][0], found)
    _powers(axes[1][1], found)
    _legend(figure, found)
    return figure


def _alarms(axis: Axes, found: Findings) -> None:
    suffix = {EQUAL: "", FAMILY: ", Holm", MOVED: ", Holm, moved"}
    names = [method + suffix[quantity] for quantity, method in ALARMS]
    axis.axvspan(FLOOR / 2.0, MOST, color=LIGHT, linewidth=0)
    axis.axvline(found.protocol.alpha, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    _strips(axis, found, ALARMS, names, missed=False)
    axis.set_title(
        f"Equal methods told apart (Holm: any of {found.protocol.family})", fontsize=8.5, loc="left"
    )
    axis.set_xlabel("tables, % (grey: up to 6)")


def _strips(
    axis: Axes,
    found: Findings,
    rows: Sequence[tuple[str, str]],
    names: Sequence[str],
    missed: bool,
) -> None:
    """A row for every method, in it a line of marks for every number of seeds."""
    protocol = found.protocol
    middle = (len(protocol.seeds) - 1) / 2.0
    for place, (quantity, method) in enumerate(rows):
        for cells in _alike(found.of(quantity, method)):
            point = cells[0].point
            line = protocol.seeds.index(point.seeds)
            rates = [1.0 - cell.rate.value if missed else cell.rate.value for cell in cells]
            y = place + (line - middle) * PITCH
            shares = [max(rate, FLOOR) for rate in rates]
            axis.plot(shares, [y] * len(shares), **_look(found, point))
        if place:
            axis.axhline(place - 0.5, color=LIGHT, linewidth=0.6)
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    _percent_scale(axis)


def _alike(cells: Sequence[Cell]) -> Iterable[list[Cell]]:
    """Cells that look the same: drawn together, they are one artist instead of many."""
    found: dict[tuple[int, float], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.point.seeds, cell.point.spread), []).append(cell)
    return found.values()


def _percent_scale(axis: Axes) -> None:
    ticks = {FLOOR: "≤0.2", 0.01: "1", 0.03: "3", 0.07: "7", 0.2: "20", 0.5: "50", 1.0: "100"}
    axis.set_xscale("log")
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.minorticks_off()
    axis.set_xlim(FLOOR * 0.8, 1.1)


def _look(found: Findings, point: Point) -> dict[str, Any]:
    """Shape by the variance of seeds, fill by the number of seeds."""
    protocol = found.protocol
    return {
        "marker": SHAPES[protocol.spreads.index(point.spread) % len(SHAPES)],
        "markerfacecolor": FILLS[protocol.seeds.index(point.seeds) % len(FILLS)],
        "markeredgecolor": BLACK,
        "markeredgewidth": 0.5,
        "markersize": 3.4,
        "linestyle": "none",
        "clip_on": False,
    }


def _powers(axis: Axes, found: Findings) -> None:
    axis.axvspan(POWER_LOW, POWER_HIGH, color=LIGHT, linewidth=0)
    axis.axvline((POWER_LOW + POWER_HIGH) / 2.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    for place, power in enumerate(found.powers):
        rate = power.rates[power.test]
        shape, colour = ("o", BLUE) if power.aim.delta else ("D", VERMILLION)
        slack = 2.0 * rate.error
        axis.plot([rate.value - slack, rate.value + slack], [place] * 2, color=colour)
        axis.plot(rate.value, place, shape, color=colour, markersize=4.5)
    axis.set_yticks(range(len(found.powers)), [described(power) for power in found.powers])
    axis.set_ylim(len(found.powers) - 0.5, -0.5)
    axis.set_xlim(0.5, 1.0)
    axis.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ["50", "60", "70", "80", "90", "100"])
    axis.set_title("Power where a formula promises 80%", fontsize=8.5, loc="left")
    axis.set_xlabel("differences found, % (grey: 75 to 85)")


def described(power: Power) -> str:
    """Seeds, items, the seeds' standard deviation and the difference, on one line."""
    aim = power.aim
    size = f"{power.seeds} seeds, {aim.items:,} items, SD {100 * aim.spread:g}"
    return f"{size}: {100 * power.delta:.1f} points"


def _legend(figure: Figure, found: Findings) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=fill, edgecolor=BLACK, linewidth=0.7, label=f"{seeds} seeds")
        for seeds, fill in zip(found.protocol.seeds, FILLS, strict=False)
    ]
    look: dict[str, Any] = {"linestyle": "none", "color": BLACK, "markerfacecolor": "none"}
    handles += [
        Line2D([], [], marker=shape, markersize=5, label=f"seed SD {100 * spread:g}", **look)
        for spread, shape in zip(found.protocol.spreads, SHAPES, strict=False)
    ]
    handles += [
        Line2D([], [], marker="o", color=BLUE, label="seeds_needed"),
        Line2D([], [], marker="D", color=VERMILLION, label="detectable"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
