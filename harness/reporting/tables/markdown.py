"""Sheets as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from harness.reporting.tables.escape import markdown_text
from harness.reporting.tables.sheet import Cell, Column, Sheet, Table

SIDES = {"l": ":--"}
"""How the first part of a cell aligns its column; everything else stands on the right."""


def markdown(sheet: Sheet) -> str:
    """The whole page of a sheet."""
    parts = [f"# {markdown_text(sheet.title)}", ""]
    parts += [f"**{markdown_text(said)}**\n" for said in sheet.lead]
    parts += [f"{markdown_text(said)}\n" for said in sheet.said]
    for table in sheet.tables:
        parts += _table(table.of("md"))
    if sheet.failures:
        told = [f"{markdown_text(name)}: {markdown_text(why)}" for name, why in sheet.failures]
        parts += ["## Without a result", "", *(f"- {one}" for one in told), ""]
    parts += ["## Notes", "", *(f"- {markdown_text(note)}" for note in sheet.notes)]
    return "\n".join(parts) + "\n"


def pipes(heads: Sequence[str], sides: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of one table; all texts are escaped already."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(sides) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _table(table: Table) -> list[str]:
    heads = [markdown_text(column.head) for column in table.columns]
    sides = [SIDES.get(column.kinds[0], "--:") for column in table.columns]
    parts = [f"## {markdown_text(table.title)}", ""] if table.title else []
    level = "###" if table.title else "##"
    for group in table.groups:
        parts += [f"{level} {markdown_text(group.title)}", ""] if group.title else []
        rows = [list(map(_text, table.columns, line)) for line in group.lines]
        parts += [*pipes(heads, sides, rows), ""]
    return parts


def _text(column: Column, cell: Cell) -> str:
    text = markdown_text(column.joint.join(part for part in cell.parts if part))
    return f"**{text}**" if cell.bold and text else text
