"""What each paired difference to the reference rests on: tests, power, and the verdict."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.reporting import footnotes, numbers
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import Results
from harness.reporting.tables import cells
from harness.reporting.tables.sheet import Column, Group, Line, Sheet, Table, cell

COLUMNS = [
    "row", "fraction", "task", "n_pairs", "n_items", "diff", "diff_low", "diff_high", "p",
    "p_sign_flip", "p_floor", "p_holm", "p_bh", "adjusted_low", "adjusted_high", "p_improvement",
    "verdict", "sd_diff", "detectable", "seeds_1", "seeds_2", "seeds_3", "test",
]  # fmt: skip
SEEDS = ("seeds_1", "seeds_2", "seeds_3")


def sheet(results: Results, table: pd.DataFrame) -> Sheet | None:
    """differences.csv, .md and .tex; None where only the reference is there."""
    rivals = table[table["row"] != results.reference]
    if rivals.empty:
        return None
    primary = Table(
        _columns(results, "Holm p"),
        _groups(results, rivals, MEAN, "p_holm"),
        f"Mean over {numbers.plural(len(results.tasks), 'task')}",
    )
    single = Table(
        _columns(results, "BH p"),
        tuple(
            Group(": ".join(filter(None, (task, group.title))), group.lines)
            for task in results.tasks
            for group in _groups(results, rivals, task, "p_bh")
        ),
        "Single tasks (exploratory)",
    )
    return Sheet(
        name="differences",
        title=cells.titled(results, f"differences to {results.reference}"),
        numbers=rivals[COLUMNS],
        tables=(primary, single) if len(results.tasks) > 1 else (primary,),
        notes=_notes(results, table),
    )


def _groups(results: Results, table: pd.DataFrame, task: str, corrected: str) -> tuple[Group, ...]:
    """By fraction; the largest difference first, controls below."""
    found = []
    for fraction in results.fractions:
        part = cells.compared_at(results, table[table["task"] == task], fraction)
        texts = tuple(_line(line, corrected) for _, line in cells.ranked(part, "diff").iterrows())
        found.append(Group(cells.kept(results, fraction), texts))
    return cells.filled(found)


def _columns(results: Results, corrected: str) -> tuple[Column, ...]:
    return (
        Column("Row", "l"),
        Column(f"Difference to {results.reference}, points", "Sr", short="Difference, points"),
        Column("p"),
        Column("Flip p (floor)", "Sr"),
        Column(corrected),
        Column("P(better)"),
        Column("Verdict", "l"),
        Column("Detectable, points", short="Detectable"),
        Column("Seeds for 1 / 2 / 3 points", "SSS", joint=" / ", short="Seeds for 1, 2, 3 points"),
    )


def _line(entry: pd.Series[Any], corrected: str) -> Line:
    several = entry["n_pairs"] > 1
    flip = (numbers.p_value(entry["p_sign_flip"]), f"({numbers.p_value(entry['p_floor'])})")
    return (
        cell(entry["row"]),
        cell(
            numbers.points(entry["diff"], signed=True),
            numbers.interval(entry["diff_low"], entry["diff_high"]),
        ),
        cell(numbers.p_value(entry["p"])),
        cell(*flip) if several else cell(NONE, ""),
        cell(numbers.p_value(entry[corrected])),
        cell(numbers.number(entry["p_improvement"], 2) if several else NONE),
        cell(entry["verdict"]),
        cell(numbers.points(entry["detectable"])),
        cell(*(_count(entry[name]) for name in SEEDS)),
    )


def _count(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else NONE


def _notes(results: Results, table: pd.DataFrame) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    families = [int(table[name].notna().sum()) for name in ("p_holm", "p_bh")]
    found = [
        f"Difference: row minus {reference}, paired by seed and item, in percentage points, "
        f"[{level} interval]: two-way random-effects t, for new seeds and new items of the same "
        f"kind; p belongs to it. base and full are compared with {reference} at "
        f"{numbers.percent(results.middle)}.",
        "Flip p: sign-flip test over seeds, exact up to 20 seeds; it speaks about these items only "
        "and cannot go below the floor in parentheses, 2 / 2^R with R seeds.",
        f"Verdict, on the mean over tasks: Holm over {numbers.plural(families[0], 'comparison')}; "
        f"better or worse means an adjusted p below {results.alpha:g} and an adjusted interval "
        "(adjusted_low, adjusted_high of the CSV) that excludes 0.",
        f"P(better): chance that one run of the row has a higher accuracy than one run of "
        f"{reference} on these items, ties half.",
        f"Detectable: about the true difference that such a test at {results.alpha:g}, before any "
        "correction, would find with 80% power, at the spread, the seeds and the items seen here; "
        "with 3 seeds it is found less often (reports/validation/statistics.md).",
        "Seeds: how many would find a true difference of 1, 2 or 3 points with 80% power on these "
        "very items, from the standard deviation over seeds seen here; more seeds do not lessen "
        "what new items would change.",
    ]
    if len(results.tasks) > 1:
        found.insert(
            3,
            f"Single tasks are exploratory: Benjamini-Hochberg over "
            f"{numbers.plural(families[1], 'comparison')} of rows, fractions and tasks.",
        )
    return [*found, *footnotes.row_notes(table), *footnotes.testbed_notes(results)]
