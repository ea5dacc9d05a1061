"""What a table consists of, apart from how it is written: numbers for programs, texts for readers.

A sheet is what one file holds. Its numbers are the CSV; its tables, with the notes that explain
them, become Markdown and LaTeX. A new table is one function that returns a sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A text in one or several parts, such as a number and its interval."""

    parts: tuple[str, ...]
    bold: bool = False


def cell(*parts: str, bold: bool = False) -> Cell:
    """A cell of these parts."""
    return Cell(parts, bold)


Line = tuple[Cell, ...]
"""The cells of one row, one per column."""


@dataclass(frozen=True)
class Column:
    """A heading over the parts of its cells, each of a kind: `l` and `r` are texts, `S` numbers.

    `joint` stands between the parts in Markdown; `short` is the heading where a page is narrow.
    `only` is "md" or "tex" for a column that the other has not.
    """

    head: str
    kinds: str = "S"
    joint: str = " "
    short: str = ""
    only: str = ""


@dataclass(frozen=True)
class Group:
    """Lines under a heading of their own."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Groups of lines under the same columns; the first `keys` of these name the row."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    title: str = ""
    keys: int = 1

    def of(self, medium: str) -> Table:
        """The table as "md" or "tex" shows it: without columns that only the other has."""
        kept = [at for at, column in enumerate(self.columns) if column.only in ("", medium)]
        return self.taken(kept, self.groups)

    def taken(self, columns: Sequence[int], groups: Sequence[Group]) -> Table:
        """Some of the columns, and some groups of this table or parts of them."""
        parts = tuple(
            Group(group.title, tuple(tuple(line[at] for at in columns) for line in group.lines))
            for group in groups
        )
        return Table(tuple(self.columns[at] for at in columns), parts, self.title, self.keys)


@dataclass(frozen=True)
class Sheet:
    """One file's tables. `lead`: what they say in short; `said`: what to know before reading them.

    `failures`: what has no result, and why.
    """

    name: str
    title: str
    numbers: pd.DataFrame
    tables: tuple[Table, ...]
    notes: Sequence[str]
    lead: Sequence[str] = ()
    said: Sequence[str] = ()
    failures: Sequence[tuple[str, str]] = ()


def csv(sheet: Sheet) -> str:
    """The numbers: shares of one, ten digits, empty where undefined."""
    text: str = sheet.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text
