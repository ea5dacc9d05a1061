"""How the report of a study is laid out: tables and notes as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiment.records import write_atomic
from harness.reporting import tables
from harness.reporting.figures.style import context, save

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

Table = tuple[str, list[str], list[list[str]]]
"""Title, headings, rows of text; the first column is a name."""


def write(
    reports: Path, stem: str, texts: Mapping[str, str], draw: Callable[[], Figure]
) -> list[Path]:
    """Write texts by ending and the figure; returns the paths."""
    reports.mkdir(parents=True, exist_ok=True)
    for ending, text in texts.items():
        write_atomic(reports / f"{stem}.{ending}", text.encode())
    with context():
        drawn = save(draw(), reports / stem)
    return [reports / f"{stem}.{ending}" for ending in texts] + drawn


def markdown_table(table: Table) -> list[str]:
    """Lines of one table under its heading."""
    title, heads, rows = table
    sides = [":--", *["--:"] * (len(heads) - 1)]
    texts = [[tables.markdown_text(text) for text in row] for row in (heads, *rows)]
    return [f"## {tables.markdown_text(title)}", "", *tables.pipes(texts[0], sides, texts[1:]), ""]


def markdown_list(title: str, notes: Sequence[str]) -> list[str]:
    """Lines of notes under a heading."""
    return [f"## {title}", "", *markdown_items(notes)]


def markdown_items(notes: Sequence[str]) -> list[str]:
    """Lines of a list."""
    return [f"- {tables.markdown_text(note)}" for note in notes]


def tex(content: Sequence[Table], notes: Sequence[str]) -> str:
    r"""For `\input`; needs only booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for title, heads, rows in content:
        parts += ["\\begin{table}", "\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}"]
        parts.append(f"\\caption{{{tables.tex_text(title)}}}")
        parts += [f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule"]
        parts.append(" & ".join(map(tables.tex_text, heads)) + r" \\")
        parts.append("\\midrule")
        parts += [" & ".join(map(tables.tex_text, row)) + r" \\" for row in rows]
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    lines = [tables.tex_text(note) + "\\par" for note in notes]
    return "\n".join([*parts, *lines]) + "\n"


def quoted(text: str) -> str:
    """A cell of a CSV file."""
    return f'"{text}"' if "," in text else text
