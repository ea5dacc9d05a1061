"""Figures whose lines are named rows: accuracy, differences, seed by seed, and cost beside gain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting import numbers, tables
from harness.reporting.figures.style import (
    BLACK,
    GREY,
    LIGHT,
    OKABE_ITO,
    VERDICTS,
    VERMILLION,
    handle,
    row_label,
)
from harness.reporting.numbers import MEAN
from harness.reporting.results import CONTROLS, OWN, Results, mean_parts
from harness.stats import aligned, common_seeds, rival

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_HEIGHT = 2.1
"""Inches that legend and labels need even for a single row."""
ROW_HEIGHT, SEEDS_HEIGHT = 0.235, 0.29
"""Inches per row, and where a row holds its seeds one below the other."""
LANES = 0.62
"""Height within a row over which its seeds are spread, in rows."""
OTHER = "other"
HATCHES = ("", "///", "\\\\\\", "|||", "---", "xxx", "...", "+++")
"""One more than colours: pairs of both repeat late."""
Lines = dict[tuple[str, float], Any]
"""The table's lines on the primary mean, by row and fraction."""


def primary(table: pd.DataFrame) -> Lines:
    """The lines on the mean over tasks."""
    lines = table[table["task"] == MEAN]
    return {(line.row, line.fraction): line for line in lines.itertuples()}


def ranked(results: Results, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Selector rows and control rows, best first."""
    selectors = [row for row in results.rows if row not in CONTROLS]
    controls = [row for row in results.rows if row in CONTROLS]
    return tables.order(results, table, selectors), tables.order(results, table, controls)


@dataclass
class Panels:
    """Panels side by side that share named rows; `kinds` are the marks drawn so far."""

    results: Results
    lines: Lines
    figure: Figure
    axes: list[Axes]
    places: dict[str, float]
    kinds: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        results: Results,
        table: pd.DataFrame,
        groups: Sequence[Sequence[str]],
        before: int = 0,
        row_height: float = ROW_HEIGHT,
    ) -> Panels:
        """A panel per fraction behind `before` others; groups of rows are set apart by a rule."""
        from matplotlib.figure import Figure

        groups = [group for group in groups if group]
        places, height = {}, 0.0
        for group in groups:
            for row in group:
                places[row] = height
                height += 1
            height += 0.4
        names = {row: _name(results, row) for row in places}
        longest = max(map(len, names.values()), default=1)
        titles = [""] * before + _fraction_titles(results)
        across = 3.3 if len(titles) == 1 else 1.95 * len(titles)
        size = (
            min(0.35 + 0.075 * min(longest, 34), 2.6) + across,
            max(0.75 + row_height * height, LEAST_HEIGHT),
        )
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title)
            axis.grid(axis="x", color=LIGHT, linewidth=0.6)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
            for group in groups[1:]:
                axis.axhline(places[group[0]] - 0.7, color=LIGHT, linewidth=0.8)
        axes[0].set_yticks(list(places.values()), list(names.values()))
        axes[0].set_ylim(height - 0.9, -0.6)
        return cls(results, primary(table), figure, axes, places)

    def by_fraction(self) -> Iterator[tuple[Axes, float]]:
        """The panels of the fractions."""
        fractions = self.results.fractions
        yield from zip(self.axes[-len(fractions) :], fractions, strict=True)

    def rows(self, fraction: float) -> Iterator[tuple[str, float, Any]]:
        """Row, height and line of the table; `base` and `full` have a fraction of their own."""
        for row, y in self.places.items():
            yield row, y, self.lines[row, OWN.get(row, fraction)]

    def kind(self, line: Any) -> str:
        """The key of `VERDICTS` that a line is marked by, noted for the legend."""
        kind = str(line.verdict)
        if line.row in CONTROLS:
            kind = "control"
        elif line.row == self.results.reference:
            kind = "reference"
        self.kinds[kind] = None
        return kind

    def differences(self) -> None:
        """Paired differences to the reference with their intervals, in every panel."""
        for axis, fraction in self.by_fraction():
            axis.axvline(0, color=BLACK, linewidth=0.9)
            for row, y, line in self.rows(fraction):
                if row == self.results.reference:
                    _mark(axis, 0.0, y, math.nan, math.nan, self.kind(line))
                elif math.isfinite(line.diff):
                    ends = (100 * line.diff_low, 100 * line.diff_high)
                    _mark(axis, 100 * line.diff, y, *ends, self.kind(line))
                else:
                    _no_result(axis, y, str(line.verdict))
            axis.set_xlabel(f"Difference to {self.results.reference} (points)")

    def finish(self, extra: Sequence[Any] = (), *, bars: bool = True) -> Figure:
        """One scale for the fractions, and a legend of the marks that occur."""
        from matplotlib.ticker import MaxNLocator

        axes = [axis for axis, _ in self.by_fraction()]
        limits = np.array([axis.get_xlim() for axis in axes])
        ticks = 7 if len(axes) == 1 else 5
        for axis in axes:
            axis.set_xlim(limits[:, 0].min(), limits[:, 1].max())
            axis.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
        reference = row_label(self.results.reference, 16)
        words = {
            "better": f"better than {reference}",
            "worse": f"worse than {reference}",
            "tie": f"tie with {reference}",
        }
        handles = [
            handle(words.get(kind, kind), colour, shape, markerfacecolor=face, markersize=5.5,
                   linestyle="-", linewidth=1.3 if bars else 0.0)
            for kind, (shape, colour, face) in VERDICTS.items()
            if kind in self.kinds
        ]  # fmt: skip
        handles += extra
        few = len(handles) < 5 and self.figure.get_figwidth() > 6
        columns = len(handles) if few else 3
        self.figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        return self.figure


def _name(results: Results, row: str) -> str:
    """A row's name, with the seeds that it has where some are missing."""
    groups = [cells for (name, _), cells in results.groups.items() if name == row]
    done = [sum(cell.status == "done" for cell in cells) for cells in groups]
    least, cells = min(zip(done, groups, strict=True), key=lambda pair: pair[0])
    short = 0 < least < len(cells)
    return row_label(row) + (f" ({least}/{len(cells)} seeds)" if short else "")


def _fraction_titles(results: Results) -> list[str]:
    """A title per panel; none where there is one fraction only."""
    if len(results.fractions) == 1:
        return [""]
    return [f"{numbers.percent(fraction)} kept" for fraction in results.fractions]


def _mark(axis: Axes, x: float, y: float, low: float, high: float, kind: str) -> None:
    """One estimate with its interval."""
    shape, colour, face = VERDICTS.get(kind, VERDICTS["tie"])
    if math.isfinite(low) and math.isfinite(high):
        axis.plot([low, high], [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
    axis.plot(
        [x], [y], shape, color=colour, markerfacecolor=face, markersize=5.5, markeredgewidth=1.1
    )


def _no_result(axis: Axes, y: float, word: str) -> None:
    """Say `failed` or `missing` where a mark would be."""
    transform = axis.get_yaxis_transform()
    axis.text(0.02, y, word, transform=transform, va="center", color=VERMILLION)


def _beside(axis: Axes, y: float, text: str, x: float = 1.03) -> None:
    """A text at the right of a panel, at a row's height."""
    axis.text(x, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)


def accuracy(results: Results, table: pd.DataFrame) -> Figure:
    """Accuracy per row on the mean over tasks, with intervals and the mean of every seed."""
    panels = Panels.of(results, table, ranked(results, table))
    seeds = _seed_means(results)
    for axis, fraction in panels.by_fraction():
        reference = panels.lines.get((results.reference, fraction))
        if reference is not None and math.isfinite(reference.mean):
            axis.axvline(100 * reference.mean, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        for row, y, line in panels.rows(fraction):
            if not math.isfinite(line.mean):
                _no_result(axis, y, str(line.verdict))
                continue
            each = seeds.get((row, line.fraction), np.empty(0))
            axis.plot(100 * each, np.full(len(each), y + 0.27), "|", color=GREY, markersize=4)
            ends = (100 * line.ci_low, 100 * line.ci_high)
            _mark(axis, 100 * line.mean, y, *ends, panels.kind(line))
        tasks = numbers.plural(len(results.tasks), "task")
        alone = len(panels.axes) == 1
        axis.set_xlabel(f"Accuracy, mean of {tasks} (%)" if alone else "Accuracy (%)")
    return panels.finish([handle("one seed", GREY, "|", markersize=5)])


def _seed_means(results: Results) -> dict[tuple[str, float], np.ndarray[Any, Any]]:
    """Accuracy of every whole seed, mean over items, then over tasks."""
    grid = results.grid
    if grid is None:
        return {}
    outcomes = {line: grid.outcome(line, list(grid.tasks))[0] for line in grid.lines}
    return {line: outcome.seed_means for line, outcome in outcomes.items() if outcome is not None}


def _rivals(results: Results, table: pd.DataFrame) -> list[list[str]]:
    """Selectors but the reference, and controls."""
    return [[row for row in group if row != results.reference or row in CONTROLS]
            for group in ranked(results, table)]  # fmt: skip


def forest(results: Results, table: pd.DataFrame) -> Figure:
    """Paired differences to the reference with intervals, one panel per fraction."""
    panels = Panels.of(results, table, _rivals(results, table))
    panels.differences()
    if len(panels.axes) == 1:  # room for the numbers at the right
        axis, fraction = panels.axes[0], results.fractions[0]
        head = f"points [{numbers.percent(1 - results.alpha)}]"
        axis.text(1.03, 1.0, head, transform=axis.transAxes, color=GREY, fontsize=8)
        for _, y, line in panels.rows(fraction):
            if math.isfinite(line.diff):
                interval = numbers.interval(line.diff_low, line.diff_high)
                _beside(axis, y, f"{numbers.points(line.diff, signed=True)} {interval}")
    return panels.finish()


def seeds(results: Results, table: pd.DataFrame) -> Figure | None:
    """Paired difference to the reference of every seed, with mean and interval beneath."""
    from matplotlib.patches import Patch

    if len(results.seeds) < 2:
        return None
    panels = Panels.of(results, table, _rivals(results, table), row_height=SEEDS_HEIGHT)
    paired = paired_by_seed(results)
    for axis, fraction in panels.by_fraction():
        axis.axvline(0, color=BLACK, linewidth=0.9)
        for row, y, line in panels.rows(fraction):
            gaps = paired.get((row, line.fraction))
            if gaps is None:
                word = "reference" if row == results.reference else str(line.verdict)
                _no_result(axis, y, word)
            else:
                _seeds_of_row(axis, y, line, gaps, results.seeds, panels.kind(line))
        axis.use_sticky_edges = False  # a band may not end where the panel does
        axis.set_xlabel(f"Difference to {results.reference} (points)")
        axis.text(1.02, 1.0, "above 0", transform=axis.transAxes, color=GREY, fontsize=8)
    mean = handle("mean", GREY, "|", linewidth=1.4, markersize=8, markeredgewidth=1.4)
    return panels.finish([mean, Patch(facecolor=LIGHT, label="its interval")], bars=False)


def paired_by_seed(results: Results) -> dict[tuple[str, float], dict[int, float]]:
    """Difference to the reference on the mean over tasks by row and fraction, then by seed.

    As in the table: whole seeds that both sides have, `base` and `full` with the reference's own
    middle fraction, the one checkpoint of `base` with every seed of it.
    """
    grid = results.grid
    paired: dict[tuple[str, float], dict[int, float]] = {}
    for line in grid.lines if grid is not None else ():
        assert grid is not None
        other = rival(grid, line, results.reference)
        if other is None or other == line:
            continue
        method, _ = grid.outcome(line, list(grid.tasks))
        reference, _ = grid.outcome(other, list(grid.tasks))
        if method is None or reference is None or not common_seeds(method, reference):
            continue
        a, b, _ = aligned(method, reference)
        gaps = np.asarray(a.seed_means - b.seed_means)
        paired[line] = dict(zip(a.seeds, gaps.tolist(), strict=True))
    return paired


def _seeds_of_row(
    axis: Axes, y: float, line: Any, gaps: Mapping[int, float], seeds: tuple[int, ...], kind: str
) -> None:
    """A row's seeds, one below the other, over a band for the interval and a bar for the mean."""
    shape, colour, face = VERDICTS.get(kind, VERDICTS["tie"])
    if math.isfinite(line.diff_low) and math.isfinite(line.diff_high):
        width = 100 * (line.diff_high - line.diff_low)
        axis.barh(y, width, left=100 * line.diff_low, height=0.84, color=LIGHT, zorder=0.9)
    mean = 100 * line.diff
    axis.plot([mean, mean], [y - 0.42, y + 0.42], color=GREY, linewidth=1.4, zorder=1)
    lane = {seed: LANES * (i / (len(seeds) - 1) - 0.5) for i, seed in enumerate(seeds)}
    axis.plot(
        [100 * value for value in gaps.values()], [y + lane[seed] for seed in gaps],
        shape, color=colour, markerfacecolor=face, markersize=3.2, markeredgewidth=0.8,
    )  # fmt: skip
    _beside(axis, y, f"{sum(value > 0 for value in gaps.values())}/{len(gaps)}", x=1.02)


def cost(results: Results, table: pd.DataFrame) -> Figure | None:
    """Seconds of selection by part beside the difference to the reference, dearest row last."""
    selectors = [row for row in results.rows if row not in CONTROLS]
    spent = {row: _selection_parts(results, row) for row in selectors}
    if not any(parts for row, parts in spent.items() if row != results.reference):
        return None
    rows = sorted(spent, key=lambda row: (round(sum(spent[row].values()), 1), row))
    panels = Panels.of(results, table, (rows,), before=1)
    axis = panels.axes[0]
    patches = _cost_bars(axis, panels.places, spent)
    axis.set_xlabel("Selection (seconds)")
    axis.margins(x=0.2)
    axis.set_xlim(left=0)
    panels.differences()
    figure = panels.finish()
    columns = min(4 * len(panels.axes), 12) // 2
    figure.legend(handles=patches, loc="outside upper center", ncols=columns)
    return figure


def _cost_bars(
    axis: Axes, places: Mapping[str, float], spent: Mapping[str, Mapping[str, float]]
) -> list[Any]:
    """Stacked bars of seconds with their sum in figures; returns the legend's patches."""
    from matplotlib.patches import Patch

    every = {name for parts in spent.values() for name in parts}
    names = sorted(every, key=lambda name: (name == OTHER, name))
    looks: dict[str, dict[str, Any]] = {
        name: {
            "facecolor": LIGHT if name == OTHER else OKABE_ITO[i % len(OKABE_ITO)],
            "edgecolor": "white",
            "hatch": "" if name == OTHER else HATCHES[i % len(HATCHES)],
        }
        for i, name in enumerate(names)
    }
    for row, y in places.items():
        left = 0.0
        for name in (name for name in names if name in spent[row]):
            width = spent[row][name]
            axis.barh(y, width, left=left, height=0.62, linewidth=0.5, **looks[name])
            left += width
        if spent[row]:
            axis.annotate(numbers.seconds(left), (left, y), (3, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
    longest = max(math.fsum(parts.values()) for parts in spent.values())
    seen = {n for parts in spent.values() for n, share in parts.items() if share > 0.01 * longest}
    return [Patch(label=name, **looks[name]) for name in names if name in seen]


def _selection_parts(results: Results, row: str) -> dict[str, float]:
    """Mean seconds of selection of a row by part; what no part explains is `other`."""
    cells = [cell for cell in results.done if cell.row == row]
    spent = [c.costs["select_seconds"] for c in cells if c.costs.get("select_seconds") is not None]
    if not spent:
        return {}
    total, parts = math.fsum(spent) / len(spent), mean_parts(cells)
    rest = total - math.fsum(parts.values())
    return parts | ({OTHER: rest} if rest > 0.005 * total or not parts else {})
