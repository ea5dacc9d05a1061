"""Tables of an experiment, each once as numbers and twice for readers: CSV, Markdown and LaTeX.

Every table is a function from the records to a `Sheet`; how sheets are written is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from harness.reporting.results import Results
from harness.reporting.tables.accuracy import (
    SECONDS,
    accuracies,
    extras,
    main,
    main_sheet,
    noise,
    order,
    strategies,
)
from harness.reporting.tables.comparisons import cost, differences, transfer
from harness.reporting.tables.selections import selections
from harness.reporting.tables.sheet import (
    Sheet,
    csv,
    latex,
    markdown,
    markdown_text,
    pipes,
    tex_text,
)

__all__ = [
    "ENDINGS",
    "SECONDS",
    "SHEETS",
    "Sheet",
    "accuracies",
    "extras",
    "main",
    "markdown_text",
    "order",
    "pipes",
    "sheets",
    "tex_text",
    "written",
]

SHEETS = ("main", "differences", "strategies", "transfer", "cost", "noise", "selections")
"""Names of the files that there may be."""
ENDINGS = {"csv": csv, "md": markdown, "tex": latex}


def sheets(
    results: Results, table: pd.DataFrame, arms: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, Sheet]:
    """All sheets that the records can fill, by name.

    `table` is the arm's main table (`main`); `arms` holds those of all arms, for comparing them.
    """
    possible = (
        main_sheet(results, table),
        differences(results, table),
        strategies(results, table),
        transfer(results, table, arms or {results.arm: table}),
        cost(results, table),
        noise(results),
        selections(results),
    )
    return {sheet.name: sheet for sheet in possible if sheet is not None}


def written(sheet: Sheet) -> dict[str, str]:
    """A sheet's texts by the name of their file."""
    return {f"{sheet.name}.{ending}": write(sheet) for ending, write in ENDINGS.items()}
