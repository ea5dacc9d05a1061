"""Tables of an experiment, each once as numbers and twice for readers: CSV, Markdown and LaTeX.

Every table is a function from the records to a `Sheet`; how sheets are written is the same for all.
The CSV keeps ten significant digits: enough for any use, and few enough that the last bits of a
linear algebra library do not change the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from harness.reporting.results import Results
from harness.reporting.tables import (
    accuracy,
    cost,
    differences,
    noise,
    selections,
    strategies,
    transfer,
)
from harness.reporting.tables.accuracy import (
    KEYS,
    MAIN_COLUMNS,
    SECONDS,
    blocks,
    extras,
    main,
    order,
)
from harness.reporting.tables.escape import markdown_text, tex_text
from harness.reporting.tables.markdown import markdown, pipes
from harness.reporting.tables.render import tex
from harness.reporting.tables.sheet import Sheet, csv

__all__ = [
    "ENDINGS",
    "KEYS",
    "MAIN_COLUMNS",
    "SECONDS",
    "SHEETS",
    "Sheet",
    "blocks",
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
ENDINGS = {"csv": csv, "md": markdown, "tex": tex}


def sheets(
    results: Results, table: pd.DataFrame, arms: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, Sheet]:
    """All sheets that the records can fill, by name.

    `table` is the arm's main table (`main`); `arms` holds those of all arms, for comparing them.
    """
    made = (
        accuracy.sheet(results, table),
        differences.sheet(results, table),
        strategies.sheet(results, table),
        transfer.sheet(results, table, arms or {results.arm: table}),
        cost.sheet(results, table),
        noise.sheet(results),
        selections.sheet(results),
    )
    return {sheet.name: sheet for sheet in made if sheet is not None}


def written(sheet: Sheet) -> dict[str, str]:
    """A sheet's texts by the name of their file."""
    return {f"{sheet.name}.{ending}": write(sheet) for ending, write in ENDINGS.items()}
