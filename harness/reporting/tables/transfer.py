"""Does what was chosen for the query set carry over: differences by task, and by arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.reporting import footnotes, numbers
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import MAIN, Results
from harness.reporting.tables import cells
from harness.reporting.tables.escape import DOWN, PLUS_MINUS, UP
from harness.reporting.tables.sheet import Column, Group, Line, Sheet, Table, cell

COLUMNS = [
    "arm", "row", "fraction", "task", "diff", "diff_low", "diff_high", "p", "p_holm", "p_bh",
    "verdict",
]  # fmt: skip


def sheet(results: Results, table: pd.DataFrame, arms: Mapping[str, pd.DataFrame]) -> Sheet | None:
    """transfer.csv, .md and .tex; None where there is neither a second task nor a second arm.

    `arms` holds the main tables of all arms; they are set side by side in the main arm's report.
    """
    shown = {results.arm: table}
    if results.arm == MAIN and len(arms) > 1:
        shown = dict(arms)
    rivals = table[table["row"] != results.reference]
    tables = []
    if len(results.tasks) > 1:
        tables.append(_by_task(results, rivals))
    if len(shown) > 1:
        tables.append(_by_arm(results, shown))
    if rivals.empty or not tables:
        return None
    numbers = pd.concat([one.assign(arm=arm) for arm, one in shown.items()], ignore_index=True)
    return Sheet(
        name="transfer",
        title=cells.titled(results, f"differences to {results.reference} across tasks"),
        numbers=numbers.loc[numbers["row"] != results.reference, COLUMNS],
        tables=tuple(tables),
        notes=_notes(results, shown),
    )


def _by_task(results: Results, table: pd.DataFrame) -> Table:
    columns = (
        Column("Row", "l"),
        *(Column(name, "Srl") for name in (*results.tasks, "Mean")),
        Column("Tasks above", "r"),
    )
    known = cells.indexed(table)
    groups = []
    for fraction in results.fractions:
        primary = table[table["task"] == MEAN]
        rows = cells.ranked(cells.compared_at(results, primary, fraction), "diff")["row"]
        found = tuple(_tasks(results, row, known[row, cells.own(row, fraction)]) for row in rows)
        groups.append(Group(cells.kept(results, fraction), found))
    title = f"By task: row minus {results.reference}, points"
    return Table(columns, cells.filled(groups), title)


def _tasks(results: Results, row: str, entries: Mapping[str, Any]) -> Line:
    known = [entries[task].diff for task in results.tasks if pd.notna(entries[task].diff)]
    above = f"{sum(diff > 0 for diff in known)} of {len(known)}" if known else NONE
    numbers = (cells.gain(entries[task]) for task in (*results.tasks, MEAN))
    return (cell(row), *numbers, cell(above))


def _by_arm(results: Results, arms: Mapping[str, pd.DataFrame]) -> Table:
    """The same row in every arm, on the mean over tasks."""
    known = {arm: cells.indexed(table) for arm, table in arms.items()}
    groups = []
    for fraction in sorted({place[1] for one in known.values() for place in one} - {0.0, 1.0}):
        found = []
        for row in results.rows:
            place = (row, cells.own(row, fraction))
            entries = [one.get(place, {}).get(MEAN) for one in known.values()]
            aside = row == results.reference or (row in cells.SOLE and fraction != results.middle)
            if not aside and any(entries):
                gains = (cell(NONE) if line is None else cells.gain(line) for line in entries)
                found.append((cell(row), *gains))
        groups.append(Group(f"{numbers.percent(fraction)} of the pool kept", tuple(found)))
    columns = (Column("Row", "l"), *(Column(arm, "Srl") for arm in arms))
    title = f"By arm: row minus {results.reference} of the same arm, mean over tasks, points"
    return Table(columns, cells.filled(groups), title)


def _notes(results: Results, shown: Mapping[str, pd.DataFrame]) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    query = results.protocol.get("query", {}).get("dataset")
    found = [
        f"Difference to {reference} on the same seeds and items in percentage points "
        f"{PLUS_MINUS} half of its {level} interval (differences.csv has its ends; "
        f"base and full are compared with {reference} at {numbers.percent(results.middle)}).",
        f"{UP} better, {DOWN} worse: on the mean by Holm over all rows and fractions "
        "(bold: better, and the adjusted interval lies above 0); on single tasks exploratory, by "
        "Benjamini-Hochberg. No mark is a tie: it does not show that a gain is absent.",
        "Tasks above: tasks on which the row's accuracy is higher, whatever its interval.",
    ]
    if query:
        found.append(
            f"Selectors that ask for queries see those of {query}, which is none of these tasks. "
            "How much a task resembles them is not measured here."
        )
    if len(shown) > 1:
        found.append(
            "Arms differ in their pools. Each is tested in a family of its own; whether a "
            "difference changes between arms is not tested."
        )
    return [*found, *footnotes.testbed_notes(results)]
