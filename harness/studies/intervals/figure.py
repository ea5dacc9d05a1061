"""One figure for the study: coverage of intervals, equal methods told apart, and power."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.reporting import numbers
from harness.reporting.figures.style import BLACK, BLUE, GREY, LIGHT, VERMILLION
from harness.studies.intervals.methods import TRIED
from harness.studies.intervals.report import (
    DETECTABLE,
    INTERVALS,
    LIMITS,
    NEEDED,
    TITLES,
    Findings,
)
from harness.studies.intervals.simulate import EQUAL, FAMILY, MOVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = 0.002
"""Shares below this are drawn here: the axis is logarithmic."""
SHAPES = ("o", "s", "^", "D")
"""By the standard deviation of seeds."""
FILLS = ("white", "#9a9a9a", BLACK)
"""By the number of seeds, few to many."""
LINE_HEIGHT = 0.27
TESTS = {EQUAL: "", FAMILY: ", Holm", MOVED: ", Holm, moved"}
"""Quantities of the panel of tests, and what they add to the name of a method."""
TICKS = {FLOOR: "≤0.2", 0.01: "1", 0.03: "3", 0.07: "7", 0.2: "20", 0.5: "50", 1.0: "100"}


def draw(findings: Findings) -> Figure:
    """The figure; same findings, same picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 8.2), layout="constrained")
    axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": [1, 1.35]})
    for axis, quantity in zip(axes[0], INTERVALS, strict=True):
        low, high = LIMITS[quantity]
        _band(axis, 1.0 - high, 1.0 - low, 1.0 - (low + high) / 2.0)
        _strips(axis, findings, {quantity: ""}, missed=True)
        axis.set_title(TITLES[quantity].removeprefix("95% ").capitalize(), fontsize=8.5, loc="left")
        axis.set_xlabel("truth outside the interval, % (grey: 3 to 7)")
    _alarms(axes[1][0], findings)
    _powers(axes[1][1], findings)
    _legend(figure, findings)
    return figure


def _band(axis: Axes, low: float, high: float, nominal: float) -> None:
    axis.axvspan(low, high, color=LIGHT, linewidth=0)
    axis.axvline(nominal, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))


def _alarms(axis: Axes, findings: Findings) -> None:
    protocol = findings.protocol
    _band(axis, FLOOR / 2.0, LIMITS[EQUAL][1], protocol.alpha)
    _strips(axis, findings, TESTS, missed=False)
    title = f"Equal methods told apart (Holm: any of {protocol.family})"
    axis.set_title(title, fontsize=8.5, loc="left")
    axis.set_xlabel("tables, % (grey: up to 6)")


def _strips(axis: Axes, findings: Findings, quantities: Mapping[str, str], missed: bool) -> None:
    """A row for every method, in it a line of marks per number of seeds."""
    protocol = findings.protocol
    look: dict[str, Any] = {"markeredgecolor": BLACK, "markeredgewidth": 0.5, "markersize": 3.4}
    rows = [
        (quantity, method, method + suffix)
        for quantity, suffix in quantities.items()
        for method in findings.of(quantity)["method"].unique()
        if method not in TRIED
    ]
    for place, (quantity, method, _) in enumerate(rows):
        groups = findings.of(quantity, method).groupby(["seeds", "seed_sd"], sort=False)["share"]
        for (seeds, spread), shares in groups:
            line = protocol.seeds.index(seeds)
            y = place + (line - (len(protocol.seeds) - 1) / 2.0) * LINE_HEIGHT
            axis.plot(
                (1.0 - shares if missed else shares).clip(lower=FLOOR),
                [y] * len(shares),
                marker=SHAPES[protocol.spreads.index(spread) % len(SHAPES)],
                markerfacecolor=FILLS[line % len(FILLS)],
                linestyle="none",
                clip_on=False,
                **look,
            )
        if place:
            axis.axhline(place - 0.5, color=LIGHT, linewidth=0.6)
    axis.set_yticks(range(len(rows)), [label for *_, label in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xscale("log")
    axis.set_xticks(list(TICKS), list(TICKS.values()))
    axis.minorticks_off()
    axis.set_xlim(FLOOR * 0.8, 1.1)


def _powers(axis: Axes, findings: Findings) -> None:
    low, high = LIMITS[NEEDED]
    _band(axis, low, high, (low + high) / 2.0)
    looks = {NEEDED: ("o", BLUE), DETECTABLE: ("D", VERMILLION)}
    rows = findings.rows[findings.rows["quantity"].isin(looks) & (findings.rows["mark"] != "")]
    labels = []
    for place, row in enumerate(rows.itertuples()):
        shape, colour = looks[row.quantity]
        slack = 2.0 * row.error
        axis.plot([row.share - slack, row.share + slack], [place] * 2, color=colour)
        axis.plot(row.share, place, shape, color=colour, markersize=4.5)
        size = f"{row.seeds} seeds, {row.items:,} items, SD {100 * row.seed_sd:g}"
        labels.append(f"{size}: {numbers.points(row.delta)} points")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(0.5, 1.0)
    axis.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ["50", "60", "70", "80", "90", "100"])
    axis.set_title("Power where a formula promises 80%", fontsize=8.5, loc="left")
    axis.set_xlabel("differences detected, % (grey: 75 to 85)")


def _legend(figure: Figure, findings: Findings) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    protocol = findings.protocol
    handles: list[Any] = [
        Patch(facecolor=fill, edgecolor=BLACK, linewidth=0.7, label=f"{seeds} seeds")
        for seeds, fill in zip(protocol.seeds, FILLS, strict=False)
    ]
    look: dict[str, Any] = {"linestyle": "none", "color": BLACK, "markerfacecolor": "none"}
    handles += [
        Line2D([], [], marker=shape, markersize=5, label=f"seed SD {100 * spread:g}", **look)
        for spread, shape in zip(protocol.spreads, SHAPES, strict=False)
    ]
    handles += [
        Line2D([], [], marker="o", color=BLUE, label="seeds_needed"),
        Line2D([], [], marker="D", color=VERMILLION, label="detectable"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
