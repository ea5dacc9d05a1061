r"""What a table consists of, and how it is written: CSV, Markdown and LaTeX.

A sheet is what one file holds. Its numbers are the CSV (for programs); its tables, with the notes
that explain them, become Markdown and LaTeX (for readers). A new table is one function that returns
a sheet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.reporting.numbers import MEAN, MINUS, NONE, percent, points
from harness.reporting.results import CONTROLS, MAIN, OWN, Results

UP, DOWN, PLUS_MINUS = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}", "\N{PLUS-MINUS SIGN}"
TEX = str.maketrans(
    {character: "\\" + character for character in "{}&%$#_"}
    | {character: f"{{{character}}}" for character in "[]*"}  # \\ would read them as options
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", MINUS: "$-$", NONE: "--"}
    | {UP: r"$\uparrow$", DOWN: r"$\downarrow$", PLUS_MINUS: r"$\pm$"}
)
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
PREAMBLE = (
    "% Needs \\usepackage{booktabs,longtable,pdflscape,siunitx}.\n"
    "\\begingroup\\setlength{\\tabcolsep}{3pt}\\sisetup{detect-weight,retain-explicit-plus}"
)
UPRIGHT, SIDEWAYS = 95, 150
"""Characters of script size that fit across a page of the article class."""


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

    `separator` stands between the parts in Markdown; `short` is the heading in LaTeX, which leaves
    a column out if `tex` is false.
    """

    head: str
    kinds: str = "S"
    separator: str = " "
    short: str = ""
    tex: bool = True


@dataclass(frozen=True)
class Group:
    """Lines under a heading of their own."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Groups of lines under the same columns."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    title: str = ""

    @property
    def width(self) -> int:
        """Columns of a page's table, where several numbers of one kind stand in columns apart."""
        return sum(len(c.kinds) if set(c.kinds) == {"S"} else 1 for c in self.columns)


@dataclass(frozen=True)
class Sheet:
    """One file's tables. `lead`: their findings in short; `remarks`: what to know before reading.

    `failures`: what has no result, and why.
    """

    name: str
    title: str
    numbers: pd.DataFrame
    tables: tuple[Table, ...]
    notes: Sequence[str]
    lead: Sequence[str] = ()
    remarks: Sequence[str] = ()
    failures: Sequence[tuple[str, str]] = ()


def csv(sheet: Sheet) -> str:
    """The numbers: shares of one, empty where undefined.

    Ten significant digits: enough for any use, and few enough that the last bits of a linear
    algebra library do not change the file.
    """
    text: str = sheet.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(text.split()))


def markdown(sheet: Sheet) -> str:
    """All tables of a sheet between its findings and its notes."""
    parts = [f"# {markdown_text(sheet.title)}", ""]
    parts += [f"**{markdown_text(sentence)}**\n" for sentence in sheet.lead]
    parts += [f"{markdown_text(remark)}\n" for remark in sheet.remarks]
    for table in sheet.tables:
        parts += _markdown_table(table)
    if sheet.failures:
        lines = [f"- {markdown_text(name)}: {markdown_text(why)}" for name, why in sheet.failures]
        parts += ["## Without a result", "", *lines, ""]
    parts += ["## Notes", "", *(f"- {markdown_text(note)}" for note in sheet.notes)]
    return "\n".join(parts) + "\n"


def pipes(heads: Sequence[str], sides: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of one Markdown table; all texts are escaped already."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(sides) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _markdown_table(table: Table) -> list[str]:
    heads = [markdown_text(column.head) for column in table.columns]
    sides = [":--" if column.kinds[0] == "l" else "--:" for column in table.columns]
    parts = [f"## {markdown_text(table.title)}", ""] if table.title else []
    level = "###" if table.title else "##"
    for group in table.groups:
        parts += [f"{level} {markdown_text(group.title)}", ""] if group.title else []
        rows = [list(map(_markdown_cell, table.columns, line)) for line in group.lines]
        parts += [*pipes(heads, sides, rows), ""]
    return parts


def _markdown_cell(column: Column, cell: Cell) -> str:
    text = markdown_text(column.separator.join(part for part in cell.parts if part))
    return f"**{text}**" if cell.bold and text else text


def tex_text(text: str) -> str:
    """Text that LaTeX prints as it is, on one line; what no default font has, as its code point."""
    plain = " ".join(text.split()).translate(TEX)
    return re.sub(r"[^ -~]", lambda match: f"U+{ord(match[0]):04X}", plain)


def latex(sheet: Sheet) -> str:
    r"""All tables of a sheet as long tables for `\input`, then its notes as paragraphs."""
    parts = [PREAMBLE]
    for place, table in enumerate(sheet.tables):
        title = ". ".join(filter(None, (sheet.title, table.title)))
        parts.append(_long_table(table, title if place or not sheet.lead else " ".join(sheet.lead)))
    failures = (f"No result: {name}: {why}." for name, why in sheet.failures)
    notes = [tex_text(note) + "\\par" for note in (*sheet.notes, *failures)]
    return "\n".join([*parts, "\\scriptsize\\raggedright", *notes, "\\endgroup"]) + "\n"


def _long_table(table: Table, caption: str) -> str:
    """A table as pandas writes it, on its side or in tiny letters where it would be too wide."""
    columns = [column for column in table.columns if column.tex]
    heads = [(tex_text(c.short or c.head), f"{i} {j}") for i, c in enumerate(columns)
             for j in range(len(c.kinds))]  # fmt: skip
    rows, lengths = [], [[len(column.short or column.head) for column in columns]]
    for group in table.groups:
        if group.title:  # in no column's width: the other cells of its line are empty
            title = f"\\rule{{0pt}}{{3ex}}\\rlap{{\\emph{{{tex_text(group.title)}}}}}"
            rows.append([title, *[""] * (len(heads) - 1)])
        for line in group.lines:
            cells = [cell for cell, column in zip(line, table.columns, strict=True) if column.tex]
            rows.append([part for pair in zip(columns, cells, strict=True)
                         for part in _tex_parts(*pair)])  # fmt: skip
            lengths.append([len(" ".join(cell.parts)) for cell in cells])
    width = sum(map(max, zip(*lengths, strict=True))) + 1.7 * len(heads)
    frame = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(heads))
    text: str = (
        frame.style.hide(axis="index")
        .hide(axis="columns", level=1)
        .to_latex(
            environment="longtable",
            caption=tex_text(caption),
            column_format="".join("@{ }".join(column.kinds) for column in columns),
            hrules=True,
            multicol_align="c",
            siunitx=True,
        )
    )
    size = "\\scriptsize" if width <= SIDEWAYS else "\\tiny"
    sides = ("\\begin{landscape}\n", "\\end{landscape}\n") if width > UPRIGHT else ("", "")
    return f"{size}\n{sides[0]}{text}{sides[1]}".rstrip("\n")


def _tex_parts(column: Column, cell: Cell) -> Iterator[str]:
    """The parts of a cell; in a column of numbers all else is hidden from siunitx in braces."""
    for at, kind in enumerate(column.kinds):
        text = cell.parts[at] if at < len(cell.parts) else ""
        plain, bold = text.replace(MINUS, "-"), "\\bfseries " if cell.bold and text else ""
        if kind == "S" and NUMBER.fullmatch(plain):
            yield bold + plain
        else:
            yield (
                f"{{{bold}{tex_text(text)}}}" if text and (bold or kind == "S") else tex_text(text)
            )


# What the sheets of an experiment share: titles, order, and cells from lines of the main table.


def titled(results: Results, what: str = "") -> str:
    """The title of a sheet: the experiment, its arm, and what is shown."""
    name = results.experiment + ("" if results.arm == MAIN else f", {results.arm}")
    return f"{name}: {what}" if what else name


def kept(results: Results, fraction: float) -> str:
    """The heading of a fraction; none where there is one only."""
    return f"{percent(fraction)} of the pool kept" if len(results.fractions) > 1 else ""


def compared_at(results: Results, lines: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Lines that meet the reference at a fraction: `base` and `full` do so at the middle one."""
    sole = lines["row"].isin(OWN)
    here = (lines["fraction"] == fraction) & ~sole
    return lines[here | sole] if fraction == results.middle else lines[here]


def ranked(lines: pd.DataFrame, by: str) -> pd.DataFrame:
    """The largest first, controls below, lines without a number last."""
    return lines.assign(control=lines["row"].isin(CONTROLS)).sort_values(
        ["control", by], ascending=[True, False], kind="stable", na_position="last"
    )


def by_task(table: pd.DataFrame) -> dict[tuple[str, float], dict[str, Any]]:
    """Lines of the main table by row and fraction, and then by task."""
    lines: dict[tuple[str, float], dict[str, Any]] = {}
    for line in table.itertuples():
        lines.setdefault((line.row, line.fraction), {})[line.task] = line
    return lines


def mark(line: Any) -> str:
    """An arrow where the verdict is not a tie."""
    return {"better": UP, "worse": DOWN}.get(line.verdict, "")


def estimate(line: Any, name: str, low: str, high: str, *, signed: bool = False) -> Cell:
    """A number with half of its interval, marked by the verdict; bold where it beats the reference.

    Bold needs Holm's interval on the mean over tasks to lie above 0.
    """
    value, half = getattr(line, name), (getattr(line, high) - getattr(line, low)) / 2
    if not math.isfinite(value):
        return absent(line)
    beats = line.task == MEAN and line.verdict == "better" and line.adjusted_low > 0
    width = f"{PLUS_MINUS} {points(half)}" if math.isfinite(half) else ""
    return cell(points(value, signed=signed), width, mark(line), bold=bool(beats))


def gain(line: Any) -> Cell:
    """The difference to the reference, as `estimate` shows it."""
    return estimate(line, "diff", "diff_low", "diff_high", signed=True)


def absent(line: Any) -> Cell:
    """What stands in the place of a number: that all cells failed or did not run, or a dash."""
    return cell(line.verdict if line.verdict in ("failed", "missing") else NONE)


def filled(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Groups with lines."""
    return tuple(group for group in groups if group.lines)
