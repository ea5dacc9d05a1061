"""Strategies by task at each fraction, as a paper shows them: accuracy, half-width, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from harness.reporting import footnotes, numbers
from harness.reporting.numbers import MEAN
from harness.reporting.results import Results
from harness.reporting.tables import cells
from harness.reporting.tables.escape import DOWN, PLUS_MINUS, UP
from harness.reporting.tables.sheet import Column, Group, Line, Sheet, Table, cell

COLUMNS = [
    "selector", "row", "fraction", "task", "mean", "ci_low", "ci_high", "half_width", "n_seeds",
    "diff", "adjusted_low", "adjusted_high", "verdict",
]  # fmt: skip


def sheet(results: Results, table: pd.DataFrame) -> Sheet:
    """strategies.csv, .md and .tex."""
    selectors, known = selectors_of(results), cells.indexed(table)
    several = len(results.tasks) > 1
    tasks = results.tasks if several else ()
    chosen = {row: name for row, name in selectors.items() if row not in cells.SOLE}
    sole = {row: name for row, name in selectors.items() if row in cells.SOLE}
    groups = [
        Group(
            f"{numbers.percent(fraction)} of the pool kept", _lines(known, tasks, chosen, fraction)
        )
        for fraction in results.fractions
    ]
    groups.append(Group("Without selection", _lines(known, tasks, sole, results.middle)))
    columns = (
        Column("Selector", "l"),
        Column("Variant", "l"),
        *(Column(name, "Srl") for name in (*tasks, "Mean" if several else results.tasks[0])),
    )
    return Sheet(
        name="strategies",
        title=cells.titled(results, "strategies by task, accuracy in %"),
        numbers=_numbers(table, selectors),
        tables=(Table(columns, cells.filled(groups), keys=2),),
        notes=_notes(results, table),
    )


def selectors_of(results: Results) -> dict[str, str]:
    """Rows with their selectors, those of one selector together; controls are their own."""
    known = {e["row"]: str(e.get("selector") or e["row"]) for e in results.protocol["rows"]}
    first = {name: at for at, name in reversed(list(enumerate(known.values())))}
    return dict(sorted(known.items(), key=lambda entry: first[entry[1]]))


def _lines(
    known: cells.Indexed, tasks: Sequence[str], selectors: Mapping[str, str], fraction: float
) -> tuple[Line, ...]:
    found = []
    last = ""
    for row, selector in selectors.items():
        entries = known[row, cells.own(row, fraction)]
        names = ("" if selector == last else selector, row.removeprefix(selector).lstrip("/"))
        numbers = (cells.accuracy(entries[task]) for task in (*tasks, MEAN))
        found.append((*map(cell, names), *numbers))
        last = selector
    return tuple(found)


def _numbers(table: pd.DataFrame, selectors: Mapping[str, str]) -> pd.DataFrame:
    places = {row: at for at, row in enumerate(selectors)}
    numbers = table.assign(
        selector=table["row"].map(selectors),
        half_width=(table["ci_high"] - table["ci_low"]) / 2,
        place=table["row"].map(places),
    )
    return numbers.sort_values(["fraction", "place"], kind="stable")[COLUMNS]


def _notes(results: Results, table: pd.DataFrame) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    return [
        f"Accuracy in % {PLUS_MINUS} half of its {level} interval over seeds and items "
        "(two-way random-effects t). Half-widths are no test of a difference: the pairing with "
        f"{reference} takes out what both share.",
        f"{UP} better and {DOWN} worse than {reference} at the same fraction, by "
        f"paired tests (base and full at {numbers.percent(results.middle)}). The mean counts: "
        "Holm-adjusted over all rows and fractions, and bold only where the adjusted interval of "
        "the difference lies above 0. Marks on single tasks are exploratory (Benjamini-Hochberg "
        "over rows, fractions and tasks).",
        "The best number of a column is not marked as such: of rows that tie, none is ranked above "
        "another.",
        *footnotes.row_notes(table),
        *footnotes.testbed_notes(results),
    ]
