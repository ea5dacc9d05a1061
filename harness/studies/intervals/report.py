"""Marks and tables of the study of the statistics, from its counts alone."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.reporting import numbers
from harness.studies.intervals.design import STRUCTURES, Aim, Point, Protocol
from harness.studies.intervals.methods import SEEDS, SIGN_FLIPS, TRIED, TWO_WAY
from harness.studies.intervals.simulate import (
    DIFFERENCE,
    EQUAL,
    FACTS,
    FAMILY,
    MEAN,
    MOVED,
    PROTOCOL,
    read,
)
from harness.studies.page import Page, Table, forest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEM = "statistics"
INTERVALS = (MEAN, DIFFERENCE)
NEEDED, DETECTABLE = "power of seeds_needed", "power of detectable"
COVERAGE, LEVEL, POWER = (0.93, 0.97), (0.0, 0.06), (0.75, 0.85)
LIMITS = {
    **dict.fromkeys(INTERVALS, COVERAGE),
    **dict.fromkeys((EQUAL, FAMILY, MOVED), LEVEL),
    **dict.fromkeys((NEEDED, DETECTABLE), POWER),
}
"""Between which shares of the tables a quantity counts as promised: 95%, 5%, 80%."""
SIDES = {COVERAGE: ("narrow", "wide"), LEVEL: ("few", "many"), POWER: ("low", "high")}
"""Marks of what lies below and above."""
ERRORS = 2.0
"""Monte Carlo standard errors beyond a limit from which on it counts as missed."""
FLOOR = 0.002
"""Shares are drawn from here on: the axis is logarithmic."""
MET, NEAR = "met", "?"
"""`NEAR` ends a mark whose limit lies within the Monte Carlo error."""
TITLES = {
    MEAN: "95% interval for a mean",
    DIFFERENCE: "95% interval for a paired difference",
    EQUAL: "Two equal methods told apart at 5%",
    FAMILY: "Any of {family} equal methods told apart, Holm at 5%",
    MOVED: "Any of {family} methods with moved items told apart, Holm at 5%",
    NEEDED: "Power with the seeds that seeds_needed asks for",
    DETECTABLE: "Power at the difference that detectable names",
}
POINT = ["structure", "seeds", "items", "seed_sd"]

FIGURE_CAPTION = (
    "How often intervals miss the truth, equal methods are told apart, and differences are "
    "detected. Intervals and tests: mean over the points with so many seeds, from the lowest to "
    "the highest; power: two Monte Carlo standard errors. Grey: within the limits."
)
SUMMARY_CAPTION = (
    "Points of the grid by the share of simulated tables in which an interval contains the truth "
    "(93 to 97% is met; too low: the interval is too narrow, too high: too wide), a test tells "
    "equal methods apart (up to 6%) or a difference is detected (75 to 85%). Within error: outside "
    "by less than two Monte Carlo standard errors; too low and too high: by more. Lowest, mean and "
    "highest share over the points, with the first point that has it as seeds, items, seed SD and "
    "kind of items. Half-width: geometric mean over the points of its ratio to the default's. "
    "Verdict: met where no point is too low or too high."
)
SAME_CAPTION = "Columns as in the first table."
DEFAULT_CAPTION = (
    "How often the default's interval contains the truth, in percent of the tables; what is not "
    'met carries its mark, with "?" within the Monte Carlo error. Every method at every point, '
    "with half-widths: statistics.csv."
)
POWER_CAPTION = (
    "Tables in which each test detects the difference, in percent (Monte Carlo standard error), "
    "where 80% are promised; 75 to 85% is met. Seed SD and difference in points; moved: share of "
    "the items whose difficulty differs between the methods. The mark is that of the test in "
    "brackets, which the formula is about."
)
NOTES = (
    "Simulated accuracies of R seeds on n items, whose population mean is known exactly. "
    "{tables_fewest:,} tables a point with {fewest} seeds, {tables:,} elsewhere and for power; the "
    "Monte Carlo standard error at 95% is {error_fewest:.1f}% and {error:.1f}%. Seed SD: standard "
    "deviation, in points, of a seed's effect on the accuracy; hard and easy items move less.",
    "Kinds of items: {kinds}.",
    "Differences: the other method finds {moved:g}% of the items (or clusters) as hard as new "
    "items would be, so that the truth over new items is 0. Equal methods: the same items, seeds "
    "of their own. A family has {family} methods.",
    "Power: uniform items. seeds_needed is given the standard deviation over seeds of the paired "
    "difference and is about these items (seeds only); detectable is averaged over tables of "
    "equally good methods and is about new items as well (two-way).",
    "two-way: the suite's default: variances of seeds V_r, items V_i and residual V_e, each part "
    "with a t quantile of its own; half-width for a mean: square root of t_i^2 V_i + t_r^2 "
    "max(V_r - V_e, 0); for a difference: of t_r^2 V_r + t_i^2 max(V_i - V_e, 0). Satterthwaite: "
    "the largest of V_r + V_i - V_e, V_r and V_i as one variance, the default before this study. "
    "crossed bootstrap: percentile, B = {draws:,}; {batch} tables share draws. seeds only: t over "
    "the means of seeds; paired for a difference. pooled Wilson: all answers as if independent. "
    "items only: 1.96 standard errors over items, as in lm-eval. sign flips: over seeds; p cannot "
    "fall below 2/2^R. unpaired two-way: variances of both intervals added. clusters ignored: "
    "two-way as if items were independent. seeds only and sign flips for a difference are about "
    "these items alone: missing a truth about new items is no fault of theirs.",
    "Tried: floor on df: Satterthwaite with at least R - 1 degrees of freedom. residual with "
    "items: the default for means. residual with seeds: the default for differences. generalised: "
    "Weerahandi's pivotal quantity (1993).",
)


@dataclass(frozen=True)
class Findings:
    """All numbers of a study: `rows` are those of the CSV, by place, quantity and method."""

    protocol: Protocol
    facts: Mapping[str, Any]
    rows: pd.DataFrame

    def of(
        self, quantity: str, method: str | None = None, seeds: int | None = None
    ) -> pd.DataFrame:
        """The rows of a quantity, of one method or all, with so many seeds or all."""
        chosen = self.rows["quantity"] == quantity
        for column, value in (("method", method), ("seeds", seeds)):
            chosen &= True if value is None else self.rows[column] == value
        return self.rows[chosen]


def mark(share: float, error: float, quantity: str) -> str:
    """Where a share lies: within its limits, or beyond by so many Monte Carlo errors."""
    low, high = LIMITS[quantity]
    below, above = SIDES[low, high]
    if share < low:
        return below if share + ERRORS * error < low else below + NEAR
    if share > high:
        return above if share - ERRORS * error > high else above + NEAR
    return MET


def measure(folder: Path) -> Findings:
    """Read `folder` and mark everything; the same files give the same numbers."""
    text = (folder / PROTOCOL).read_text(encoding="utf-8")
    protocol = Protocol.from_dict(tomllib.loads(text))
    places: list[Point | Aim] = [*protocol.points, *protocol.aims]
    stored = read(folder)
    missing = [place for place in places if place not in stored]
    if missing:
        raise ValueError(
            f"{folder} lacks the counts of {len(missing)} points, the first {missing[0]!r}; "
            "expected all: `python -m harness.studies statistics` continues"
        )
    rows = [row for place in places for row in _rows(protocol, place, stored[place])]
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Findings(protocol, facts, pd.DataFrame(rows))


def _rows(
    protocol: Protocol, place: Point | Aim, counts: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The lines of the CSV for one point or aim; of an aim only the formula's test is marked."""
    if isinstance(place, Aim):
        quantity, formula = (DETECTABLE, TWO_WAY) if place.seeds else (NEEDED, SEEDS)
        entries = [(quantity, m, {"count": count}) for m, count in counts["found"].items()]
        where = {"structure": "uniform", "seeds": counts["seeds"], "delta": counts["delta"]}
    else:
        entries = [(q, m, entry) for q, methods in counts.items() for m, entry in methods.items()]
        where = {"structure": place.structure, "seeds": place.seeds, "delta": 0.0}
    tables = protocol.table_count(place)
    for quantity, method, entry in entries:
        share = entry["count"] / tables
        error = math.sqrt(share * (1.0 - share) / tables)
        moved = protocol.moved if quantity in (DIFFERENCE, MOVED) else getattr(place, "moved", 0.0)
        judged = not isinstance(place, Aim) or method == formula
        yield {
            "quantity": quantity,
            "method": method,
            "structure": where["structure"],
            "seeds": where["seeds"],
            "items": place.items,
            "seed_sd": place.spread,
            "moved": moved,
            "delta": where["delta"],
            "tables": tables,
            "count": entry["count"],
            "share": share,
            "error": error,
            "half_width": entry.get("half", math.nan),
            "mark": mark(share, error, quantity) if judged else "",
        }


def build(results: Path, reports: Path) -> list[Path]:
    """Write the report of `results` into `reports`; the same results give the same bytes."""
    findings = measure(results)
    return page(findings).write(reports, lambda: draw(findings))


def page(findings: Findings) -> Page:
    """Texts and numbers of the report."""
    protocol = findings.protocol
    values = {
        **dataclasses.asdict(protocol),
        "error": 100 * math.sqrt(0.95 * 0.05 / protocol.tables),
        "error_fewest": 100 * math.sqrt(0.95 * 0.05 / protocol.tables_fewest),
        "fewest": min(protocol.seeds),
        "moved": 100 * protocol.moved,
        "kinds": "; ".join(f"{s}: {STRUCTURES[s].description}" for s in protocol.structures),
    }
    titles = {quantity: title.format(**values) for quantity, title in TITLES.items()}
    promises = [_summary(findings, q, SEEDS if q == NEEDED else TWO_WAY, titles[q]) for q in LIMITS]
    tried = [
        _summary(findings, q, method, f"{q}, {n} seeds: {method}", n)
        for q in (MEAN, DIFFERENCE, EQUAL, FAMILY, MOVED)
        for n in protocol.seeds
        for method in (TWO_WAY, *TRIED)
    ]
    contents = [("The default, two-way, against what it promises", SUMMARY_CAPTION, promises)]
    for quantity in (MEAN, DIFFERENCE, EQUAL, FAMILY, MOVED):
        methods = [m for m in findings.of(quantity)["method"].unique() if m not in TRIED]
        lines = [_summary(findings, quantity, method, method) for method in methods]
        contents.append((titles[quantity], SAME_CAPTION, lines))
    contents += [
        ("The default and others that were tried", SAME_CAPTION, tried),
        ("Coverage of the default at every point, %", DEFAULT_CAPTION, _default(findings)),
    ]
    for quantity in (NEEDED, DETECTABLE):
        contents.append((f"{titles[quantity]}, %", POWER_CAPTION, _powers(findings.of(quantity))))
    return Page(
        stem=STEM,
        title="Do the suite's own statistics keep their word?",
        figure_caption=FIGURE_CAPTION,
        tables=[
            Table(title, caption, pd.DataFrame([line for line in lines if line]))
            for title, caption, lines in contents
        ],
        notes=[note.format(**values) for note in NOTES],
        numbers=findings.rows,
    )


def _summary(
    findings: Findings, quantity: str, method: str, label: str, seeds: int | None = None
) -> dict[str, Any]:
    """Points by mark, extremes, and the half-width relative to the default's; empty if no rows."""
    rows = findings.of(quantity, method, seeds)
    if rows.empty:
        return {}
    default = findings.of(quantity, TWO_WAY, seeds).set_index(POINT)["half_width"]
    ratios = rows.set_index(POINT)["half_width"] / default
    below, above = SIDES[LIMITS[quantity]]
    lowest, highest = (rows.loc[at] for at in (rows["share"].idxmin(), rows["share"].idxmax()))
    return {
        "Promise or method": label,
        "Points": len(rows),
        "Met": (rows["mark"] == MET).sum(),
        "Within error": rows["mark"].str.endswith(NEAR).sum(),
        "Too low": (rows["mark"] == below).sum(),
        "Too high": (rows["mark"] == above).sum(),
        "Lowest, %": numbers.points(lowest["share"]),
        "Lowest at": f"{_place(lowest)}, {lowest['structure']}",
        "Mean, %": numbers.points(rows["share"].mean()),
        "Highest, %": numbers.points(highest["share"]),
        "Highest at": f"{_place(highest)}, {highest['structure']}",
        "Half-width": numbers.number(float(np.exp(np.log(ratios).mean())), 2),
        "Verdict": "missed" if rows["mark"].isin([below, above]).any() else MET,
    }


def _default(findings: Findings) -> list[dict[str, str]]:
    """Coverage of the default, a line per place and a column per quantity and kind of items."""
    lines: dict[str, dict[str, str]] = {}
    for quantity in INTERVALS:
        for _, row in findings.of(quantity, TWO_WAY).iterrows():
            text = numbers.points(row["share"])
            line = lines.setdefault(_place(row), {"Seeds, items, seed SD": _place(row)})
            column = f"{quantity}, {row['structure']}"
            line[column] = text if row["mark"] == MET else f"{text} {row['mark']}"
    return list(lines.values())


def _place(row: pd.Series) -> str:
    return f"{row['seeds']}, {row['items']:,}, {100 * row['seed_sd']:g}"


def _powers(rows: pd.DataFrame) -> list[dict[str, Any]]:
    lines = []
    place = ["items", "seed_sd", "moved", "seeds", "delta"]
    for (items, spread, moved, seeds, delta), tests in rows.groupby(place, sort=False):
        shares = {
            row.method: f"{numbers.points(row.share)} ({numbers.points(row.error)})"
            for row in tests.itertuples()
        }
        formula = tests[tests["mark"] != ""].iloc[0]
        lines.append(
            {
                "Items, seed SD, moved": f"{items:,}, {100 * spread:g}, {100 * moved:g}%",
                "Seeds": seeds,
                "Difference": numbers.points(delta),
                **{test: shares.get(test, numbers.NONE) for test in (SEEDS, TWO_WAY, SIGN_FLIPS)},
                "Mark": f"{formula['mark']} ({formula['method']})",
            }
        )
    return lines


def draw(findings: Findings) -> Figure:
    """The figure; same findings, same picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 9.4), layout="constrained")
    axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": [1, 2]})
    misses = [_shares(findings, quantity, "") for quantity in INTERVALS]
    for axis, rows, quantity in zip(axes[0], misses, INTERVALS, strict=True):
        rows[["estimate", "low", "high"]] = 1.0 - rows[["estimate", "high", "low"]]
        band = 1.0 - COVERAGE[1], 1.0 - COVERAGE[0]
        forest(axis, rows, TITLES[quantity], "truth outside the interval", band)
    suffixes = {EQUAL: "", FAMILY: ", Holm", MOVED: ", Holm, moved"}
    tests = pd.concat([_shares(findings, quantity, name) for quantity, name in suffixes.items()])
    family = f"Equal methods told apart (Holm: any of {findings.protocol.family})"
    forest(axes[1][0], tests, family, "tables", LEVEL)
    powers = findings.rows[findings.rows["quantity"].isin((NEEDED, DETECTABLE))]
    powers = powers[powers["mark"] != ""]
    slack = ERRORS * powers["error"]
    rows = powers.assign(
        label=[
            f"{row.seeds} x {row.items:,}, SD {100 * row.seed_sd:g}, {100 * row.moved:g}% moved: "
            f"{numbers.points(row.delta)}"
            for row in powers.itertuples()
        ],
        group=powers["quantity"],
        estimate=powers["share"],
        low=powers["share"] - slack,
        high=powers["share"] + slack,
    )
    forest(axes[1][1], rows, "Power, seeds x items: difference", "differences detected", POWER)
    ticks = {
        FLOOR: "≤0.2%",
        0.01: "1%",
        0.03: "3%",
        0.07: "7%",
        0.2: "20%",
        0.5: "50%",
        1.0: "100%",
    }
    for axis in (*axes[0], axes[1][0]):
        axis.set_xscale("log")
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.minorticks_off()
    return figure


def _shares(findings: Findings, quantity: str, suffix: str) -> pd.DataFrame:
    """Mean and extremes over the points of every method that was not only tried, by seeds."""
    rows = findings.of(quantity)
    rows = rows[~rows["method"].isin(TRIED)]
    shares = rows.groupby(["method", "seeds"], sort=False)["share"]
    extremes = shares.agg(estimate="mean", low="min", high="max").clip(FLOOR, 1.0 - FLOOR)
    return extremes.reset_index().assign(
        label=lambda table: table["method"] + suffix,
        group=lambda table: table["seeds"].astype(str) + " seeds",
    )
