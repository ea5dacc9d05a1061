r"""Sheets as LaTeX for `\input`: numbers aligned by siunitx, tables cut so that a page holds them.

What is wider than a page of the article class lies on its side, and what is wider still is cut into
parts that repeat the names of the rows. Widths are estimated from above.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.reporting.numbers import MINUS
from harness.reporting.tables.escape import PLUS_MINUS, TEX_SPECIAL, tex_text
from harness.reporting.tables.sheet import Cell, Column, Group, Sheet, Table

NEEDS = "% Needs \\usepackage{booktabs,siunitx,rotating}."
NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?")
EM = 7.97
"""Points: the size of Computer Modern at 7 points, whose letters are drawn wider."""
ADVANCES = {
    0.28: "ijl.,:;!'|[]",
    0.4: " ()frst-",
    0.5: "0123456789aceogz/?_*",
    0.84: "mw%@+<>=" + MINUS + PLUS_MINUS,
    1.03: "MW",
}
"""Widths of characters in `EM`, as far as they differ from most."""
STACK = 36.0
"""Points below which a heading is not broken into lines."""


@dataclass(frozen=True)
class Page:
    """Room for one float: points across, lines down; points on either side of a column."""

    environment: str
    width: float
    lines: int
    gap: float


PAGES = (
    Page("table", 345.0, 64, 3.0),
    Page("table", 345.0, 64, 2.0),
    Page("sidewaystable", 550.0, 36, 3.0),
)
"""Pages of the article class, in the order in which a table is tried on them."""


@dataclass(frozen=True)
class Look:
    """How a column is set: digits before and after the point and sign of each part, its heading."""

    formats: tuple[tuple[int, int, bool] | None, ...]
    width: float
    head: tuple[str, ...]


def tex(sheet: Sheet) -> str:
    """All tables of a sheet; the notes stand below the last one, where it leaves room."""
    parts = [NEEDS]
    notes = [*sheet.notes, *(f"No result: {name}: {why}." for name, why in sheet.failures)]
    caption = " ".join(sheet.lead)
    floats = [one for table in sheet.tables for one in _floats(table.of("tex"))]
    page, table = floats[-1]
    if not _fits(notes, *floats[-1]) and len(table.groups) > 1:
        every = range(len(table.columns))
        ends = (table.groups[:-1], table.groups[-1:])
        floats[-1:] = [(page, table.taken(every, end)) for end in ends]
    for at, (page, table) in enumerate(floats):
        end = [f"\\end{{{page.environment}}}"]
        if at == len(floats) - 1:
            inside = _fits(notes, page, table)
            end = [*_notes(notes, inside), *end] if inside else [*end, *_notes(notes, inside)]
        parts += [
            f"\\begin{{{page.environment}}}",
            f"\\centering\\scriptsize\\setlength{{\\tabcolsep}}{{{page.gap:g}pt}}"
            "\\setlength{\\belowcaptionskip}{4pt}\\sisetup{retain-explicit-plus}",
            f"\\caption{{{tex_text(caption if caption and not at else _caption(sheet, table))}}}",
            *_tabular(table),
            *end,
        ]
    return "\n".join(parts) + "\n"


def _fits(notes: Sequence[str], page: Page, table: Table) -> bool:
    """Whether a page has room for the notes below a table."""
    lines = sum(_width(note) // page.width + 1 for note in notes)
    return lines <= page.lines - _height(table)


def _caption(sheet: Sheet, table: Table) -> str:
    """What a float shows: the sheet, the table and, where it stands alone, the group."""
    titles = [group.title for group in table.groups if group.title]
    named = [sheet.title, table.title, *(titles if len(titles) == 1 else [])]
    return ". ".join(name for name in named if name)


def _notes(notes: Sequence[str], inside: bool) -> list[str]:
    """Notes below a table, or as paragraphs of their own that pages may break."""
    lines = [tex_text(note) + "\\par" for note in notes]
    if not inside:
        return ["\\begingroup\\scriptsize\\raggedright", *lines, "\\endgroup"]
    start = "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright"
    return ["", "\\medskip", start, *lines, "\\end{minipage}"]


def _floats(table: Table) -> Iterator[tuple[Page, Table]]:
    """Parts of a table that fit a page, by columns and then by lines."""
    looks = _looks(table)
    fitting = (page for page in PAGES if _across(looks, page) <= page.width)
    page = next(fitting, PAGES[-1])
    for columns in _columns(looks, table.keys, page):
        for groups in _pages(table.groups, page.lines):
            yield page, table.taken(columns, groups)


def _across(looks: Iterable[Look], page: Page) -> float:
    return sum(look.width + 2 * page.gap for look in looks)


def _columns(looks: Sequence[Look], keys: int, page: Page) -> list[list[int]]:
    """Which columns stand together; the first ones, which name the row, stand in every part."""
    parts = [[*range(keys)]]
    for at in range(keys, len(looks)):
        longer = [*parts[-1], at]
        if _across((looks[one] for one in longer), page) > page.width and len(parts[-1]) > keys:
            longer = [*range(keys), at]
            parts.append(longer)
        parts[-1] = longer
    return parts


def _pages(groups: Sequence[Group], room: int) -> Iterator[list[Group]]:
    """Groups that one float holds; one that is longer than a page is cut."""
    page: list[Group] = []
    used = 0
    for group in groups:
        for start in range(0, max(len(group.lines), 1), room - 6):
            part = Group(group.title, group.lines[start : start + room - 6])
            if page and used + len(part.lines) + 1 > room - 5:
                yield page
                page, used = [], 0
            page.append(part)
            used += len(part.lines) + 1
    if page:
        yield page


def _height(table: Table) -> int:
    """Lines that a float takes: caption, heading, groups with their titles."""
    return 5 + sum(len(group.lines) + 1 for group in table.groups)


def _looks(table: Table) -> list[Look]:
    return [
        _look(column, [line[at] for group in table.groups for line in group.lines])
        for at, column in enumerate(table.columns)
    ]


def _look(column: Column, cells: Sequence[Cell]) -> Look:
    formats, widths = [], []
    for part, kind in enumerate(column.kinds):
        texts = [cell.parts[part] for cell in cells if part < len(cell.parts)]
        known = _format(texts) if kind == "S" else None
        formats.append(known)
        widths.append(max([_width(text) for text in texts] + [_number_width(known)]))
    inner = sum(widths) + _width(" ") * (len(widths) - 1)
    head = _stacked(column.short or column.head, inner)
    return Look(tuple(formats), max([inner, *map(_width, head)]), tuple(head))


def _stacked(text: str, room: float) -> list[str]:
    """A heading in lines that are no wider than the column, where its words allow that."""
    words = text.split()
    room = max([room, STACK, *map(_width, words)])
    stack = [""]
    for word in words:
        longer = f"{stack[-1]} {word}".strip()
        if _width(longer) <= room:
            stack[-1] = longer
        else:
            stack.append(word)
    return stack


def _format(texts: Sequence[str]) -> tuple[int, int, bool] | None:
    """Digits before and after the point, and whether there are signs; None without a number."""
    found = [match for text in texts if (match := NUMBER.fullmatch(_plain(text)))]
    if not found:
        return None
    before = max(len(match[2]) for match in found)
    after = max(len(match[3] or "") for match in found)
    return before, after, any(match[1] for match in found)


def _number_width(known: tuple[int, int, bool] | None) -> float:
    if known is None:
        return 0.0
    before, after, signed = known
    return _width("0" * (before + after) + ("." if after else "") + ("+" if signed else ""))


def _width(text: str) -> float:
    """Points of a text in the article class's script size, rounded up by kinds of characters."""
    return EM * sum(map(_advance, text))


def _advance(character: str) -> float:
    for width, characters in ADVANCES.items():
        if character in characters:
            return width
    if not character.isascii() and character not in TEX_SPECIAL:
        return 4.0  # printed as its code point
    return 0.78 if character.isupper() else 0.56


def _plain(text: str) -> str:
    return text.replace(MINUS, "-")


def _tabular(table: Table) -> list[str]:
    looks = _looks(table)
    specs = [_spec(column, look) for column, look in zip(table.columns, looks, strict=True)]
    span = sum(len(column.kinds) for column in table.columns)
    parts = [f"\\begin{{tabular}}{{{''.join(specs)}}}", "\\toprule"]
    parts.append(" & ".join(map(_head, table.columns, looks)) + r" \\")
    for group in table.groups:
        parts.append("\\midrule")
        if group.title:
            title = f"\\multicolumn{{{span}}}{{l}}{{\\emph{{{tex_text(group.title)}}}}}"
            parts.append(title + r" \\")
        for line in group.lines:
            cells = map(_cell, table.columns, looks, line)
            parts.append(" & ".join(cells) + r" \\")
    return [*parts, "\\bottomrule", "\\end{tabular}"]


def _spec(column: Column, look: Look) -> str:
    """The column specification; parts of one column stand close together."""
    found = []
    for kind, known in zip(column.kinds, look.formats, strict=True):
        if kind == "S" and known is not None:
            before, after, signed = known
            found.append(f"S[table-format={'+' if signed else ''}{before}.{after}]")
        else:
            found.append("r" if kind == "S" else kind)
    return "@{ }".join(found)


def _head(column: Column, look: Look) -> str:
    """A heading over all parts of its column, in lines."""
    text = "\\\\".join(map(tex_text, look.head))
    text = f"\\shortstack{{{text}}}" if len(look.head) > 1 else text
    if len(column.kinds) == 1:
        return text if column.kinds == "l" else f"{{{text}}}"
    return f"\\multicolumn{{{len(column.kinds)}}}{{c}}{{{text}}}"


def _cell(column: Column, look: Look, cell: Cell) -> str:
    parts = [*cell.parts, *[""] * (len(column.kinds) - len(cell.parts))]
    return " & ".join(
        _part(text, known, cell.bold) for text, known in zip(parts, look.formats, strict=True)
    )


def _part(text: str, known: tuple[int, int, bool] | None, bold: bool) -> str:
    """One part; in a column of numbers all else is hidden from siunitx in braces."""
    number = NUMBER.fullmatch(_plain(text))
    if known is None or not text:
        said = tex_text(text)
        return f"\\textbf{{{said}}}" if bold and text else said
    if number is None:
        return f"{{{tex_text(text)}}}"
    if not bold:
        return _plain(text)
    # Bold numbers differ between versions of siunitx; as a text of the same width they do not.
    before, after, signed = known
    lacking = "0" * (before - len(number[2])) + ("+" if signed and not number[1] else "")
    pad = f"\\phantom{{{lacking}}}" if lacking else ""
    behind = "0" * (after - len(number[3] or ""))
    behind = f"\\phantom{{{behind}}}" if behind else ""
    return f"{{\\bfseries{pad or ' '}{tex_text(text)}{behind}}}"
