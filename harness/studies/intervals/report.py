"""Tables and figure of the study of the statistics, from its counts alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harness.reporting import numbers
from harness.studies.influence import layout
from harness.studies.influence.layout import Table
from harness.studies.intervals import figure
from harness.studies.intervals.design import Point
from harness.studies.intervals.measure import MANY, MET, METHODS, OPEN, Cell, Findings, measure
from harness.studies.intervals.methods import FLIPS, SEEDS, TWO_WAY
from harness.studies.intervals.simulate import DIFFERENCE, EQUAL, FAMILY, MEAN, MOVED
from harness.studies.intervals.telling import counts, notes, sentences, share
from harness.studies.intervals.tried import TRIED

STEM = "statistics"
TITLES = {
    MEAN: "95% interval for a mean",
    DIFFERENCE: "95% interval for a paired difference",
    EQUAL: "Two equal methods told apart at 5%",
    FAMILY: "Any of {family} equal methods told apart, Holm at 5%",
    MOVED: "Any of {family} methods with moved items told apart, Holm at 5%",
}
CSV_COLUMNS = (
    "quantity", "method", "structure", "seeds", "items", "seed_sd", "moved", "delta", "tables",
    "count", "share", "error", "half_width", "mark",
)  # fmt: skip


def build(results: Path, reports: Path) -> list[Path]:
    """Write the report of `results` into `reports`; the same results give the same bytes."""
    found = measure(results)
    texts = {
        "md": markdown(found),
        "csv": csv(found),
        "tex": layout.tex(summaries(found), notes(found)),
    }
    return layout.write(reports, STEM, texts, lambda: figure.draw(found))


def markdown(found: Findings) -> str:
    """statistics.md."""
    parts = ["# Do the suite's own statistics keep their word?", ""]
    parts += [f"![Coverage, equal methods told apart, and power]({STEM}.png)", ""]
    parts += ["## What was found", ""]
    for subject, said in sentences(found).items():
        parts += [f"**{subject}**", "", *layout.markdown_items(said), ""]
    for table in [*summaries(found), *grids(found)]:
        parts += layout.markdown_table(table)
    return "\n".join([*parts, *layout.markdown_list("Notes", notes(found))]) + "\n"


def summaries(found: Findings) -> list[Table]:
    """What a paper would show."""
    return [
        _coverage(found, MEAN),
        _coverage(found, DIFFERENCE),
        _alarms(found, "Equal methods told apart, nominal 5%", METHODS[EQUAL]),
        _tried(found),
        _alarms(found, "Tried: equal methods told apart, nominal 5%", (TWO_WAY, *TRIED)),
        _default(found),
        *_powers(found),
    ]


def _coverage(found: Findings, quantity: str) -> Table:
    heads = ["Method", "Points", "Met", "Within error", "Too narrow", "Too wide"]
    heads += ["Lowest, %", "Highest, %", "Half-width"]
    methods = [method for method in METHODS[quantity] if found.of(quantity, method)]
    return TITLES[quantity], heads, [[m, *_counted(found, quantity, m)] for m in methods]


def _counted(found: Findings, quantity: str, method: str, seeds: int | None = None) -> list[str]:
    """Points by mark, extremes, and the half-width relative to the default's."""
    own = counts(found, quantity, method, seeds)
    marks = [own.points, own.met, own.near, own.narrow, own.wide]
    extremes = [numbers.number(100 * c.rate.value) for c in (own.lowest, own.highest)]
    return [*map(str, marks), *extremes, numbers.number(own.width, 2)]


def _alarms(found: Findings, title: str, chosen: Sequence[str]) -> Table:
    heads = ["Test", "Mean, %"]
    heads += [f"Highest, {seeds} seeds" for seeds in found.protocol.seeds]
    heads += ["Points above", "of", "Within error"]
    family = found.protocol.family
    names = {EQUAL: "", FAMILY: f", Holm over {family}", MOVED: f", Holm over {family}, moved"}
    rows = []
    for quantity, suffix in names.items():
        for method in chosen:
            if not (cells := found.of(quantity, method)):
                continue
            rates = [cell.rate.value for cell in cells]
            marks = [cell.mark for cell in cells]
            highest = [
                max(cell.rate.value for cell in cells if cell.point.seeds == seeds)
                for seeds in found.protocol.seeds
            ]
            shares = [math.fsum(rates) / len(rates), *highest]
            points = [marks.count(MANY), len(cells), marks.count(MANY + OPEN)]
            row = [method + suffix, *(numbers.number(100 * share) for share in shares)]
            rows.append([*row, *map(str, points)])
    return title, heads, rows


def _tried(found: Findings) -> Table:
    heads = ["Interval", "Points", "Met", "Within error", "Too narrow", "Too wide"]
    heads += ["Lowest, %", "Highest, %", "Half-width"]
    rows = [
        [f"{quantity}, {seeds} seeds: {method}", *_counted(found, quantity, method, seeds)]
        for quantity in (MEAN, DIFFERENCE)
        for seeds in found.protocol.seeds
        for method in (TWO_WAY, *TRIED)
    ]
    return "The default and other intervals that were tried", heads, rows


def _default(found: Findings) -> Table:
    kinds = found.protocol.structures
    heads = ["Seeds, items, seed SD"]
    heads += [f"{quantity}, {kind}" for quantity in (MEAN, DIFFERENCE) for kind in kinds]
    rows = []
    for place in dict.fromkeys((p.seeds, p.items, p.spread) for p in found.protocol.points):
        row = [_place(Point(kinds[0], *place))]
        for quantity in (MEAN, DIFFERENCE):
            for kind in kinds:
                cell = found.places[Point(kind, *place), quantity, TWO_WAY]
                row.append(_marked(numbers.number(100 * cell.rate.value), cell))
        rows.append(row)
    return "Coverage of the default at every point, %", heads, rows


def _powers(found: Findings) -> list[Table]:
    needed = [power for power in found.powers if power.aim.delta]
    named = [power for power in found.powers if power.aim.seeds]
    tests = (SEEDS, TWO_WAY, FLIPS)
    made: list[Table] = []
    for title, chosen in (
        ("Power with the seeds that seeds_needed asks for, %", needed),
        ("Power at the difference that detectable names, %", named),
    ):
        heads = ["Items, seed SD, moved", "Seeds", "Difference", *tests, "Mark"]
        rows = []
        for power in chosen:
            aim = power.aim
            rates = [share(power.rates[t]) if t in power.rates else numbers.NONE for t in tests]
            rows.append(
                [
                    f"{aim.items:,}, {100 * aim.spread:g}, {100 * aim.moved:g}%",
                    str(power.seeds),
                    numbers.number(100 * power.delta),
                    *rates,
                    f"{power.mark} ({power.test})",
                ]
            )
        if rows:
            made.append((title, heads, rows))
    return made


def grids(found: Findings) -> list[Table]:
    """Every method at every point, a table for each kind of items and quantity."""
    made: list[Table] = []
    for kind in found.protocol.structures:
        points = [point for point in found.protocol.points if point.structure == kind]
        for quantity, title in TITLES.items():
            methods = [m for m in METHODS[quantity] if (points[0], quantity, m) in found.places]
            rows = [
                [_place(point), *(_cell(found.places[point, quantity, m]) for m in methods)]
                for point in points
            ]
            name = title.format(family=found.protocol.family)
            made.append((f"{name}: {kind}", ["Seeds, items, seed SD", *methods], rows))
    return made


def _place(point: Point) -> str:
    return f"{point.seeds}, {point.items:,}, {100 * point.spread:g}"


def _cell(cell: Cell) -> str:
    """Share with error, half-width, mark."""
    text = share(cell.rate)
    if cell.quantity in (MEAN, DIFFERENCE) and math.isfinite(cell.half):
        text += f" ±{numbers.number(100 * cell.half)}"
    return _marked(text, cell)


def _marked(text: str, cell: Cell) -> str:
    return text if cell.mark == MET else f"{text} {cell.mark}"


def csv(found: Findings) -> str:
    """statistics.csv: every number, one line each, ten digits, empty where undefined."""
    lines = [",".join(CSV_COLUMNS)]
    for cell in found.cells:
        point = cell.point
        moved = found.protocol.moved if cell.quantity in (DIFFERENCE, MOVED) else 0.0
        half = "" if math.isnan(cell.half) else f"{cell.half:.10g}"
        numbers = [point.seeds, point.items, f"{point.spread:g}", f"{moved:g}", 0]
        counted = [cell.rate.tables, cell.rate.count, f"{cell.rate.value:.10g}"]
        last = [f"{cell.rate.error:.10g}", half, cell.mark]
        first = [layout.quoted(cell.quantity), layout.quoted(cell.method), point.structure]
        lines.append(",".join(map(str, [*first, *numbers, *counted, *last])))
    for power in found.powers:
        aim = power.aim
        name = "power of detectable" if aim.seeds else "power of seeds_needed"
        for test, rate in power.rates.items():
            place = [power.seeds, aim.items, f"{aim.spread:g}", f"{aim.moved:g}"]
            counted = [f"{power.delta:.10g}", rate.tables, rate.count, f"{rate.value:.10g}"]
            judged = power.mark if test == power.test else ""
            cells = [name, test, "uniform", *place, *counted, f"{rate.error:.10g}", "", judged]
            lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"
