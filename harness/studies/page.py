"""The report of a study: tables with fixed captions as Markdown and LaTeX, numbers, one figure.

`forest` draws estimates with intervals, which is what all panels of the figures are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.experiment.records import write_atomic
from harness.reporting import tables
from harness.reporting.figures.style import LIGHT, OKABE_ITO, context, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAPES = "osD^vPX"


@dataclass(frozen=True)
class Table:
    """A frame of texts and counts, whose first column names the rows, and a caption for it."""

    title: str
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Page:
    """What the files of a report hold."""

    stem: str
    title: str
    figure_caption: str
    tables: Sequence[Table]
    notes: Sequence[str]
    numbers: pd.DataFrame

    def texts(self) -> dict[str, str]:
        """The files' texts by ending; numbers with ten digits, empty where undefined."""
        figure = tables.markdown_text(self.figure_caption)
        parts = [f"# {self.title}", "", f"![{self.title}]({self.stem}.png)", "", figure, ""]
        for table in self.tables:
            parts += _markdown(table)
        parts += ["## Notes", "", *(f"- {tables.markdown_text(note)}" for note in self.notes)]
        tex = ["% Needs \\usepackage{booktabs}.", *map(_tex, self.tables)]
        tex += [tables.tex_text(note) + "\\par" for note in self.notes]
        return {
            "md": "\n".join(parts) + "\n",
            "csv": self.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n"),
            "tex": "\n".join(tex) + "\n",
        }

    def write(self, reports: Path, draw: Callable[[], Figure]) -> list[Path]:
        """Write texts and figure; returns the paths."""
        reports.mkdir(parents=True, exist_ok=True)
        texts = self.texts()
        for ending, text in texts.items():
            write_atomic(reports / f"{self.stem}.{ending}", text.encode())
        with context():
            drawn = save(draw(), reports / self.stem)
        return [reports / f"{self.stem}.{ending}" for ending in texts] + drawn


def _markdown(table: Table) -> list[str]:
    heads, *rows = [
        [tables.markdown_text(text) for text in row]
        for row in (table.frame.columns, *table.frame.map(str).to_numpy())
    ]
    sides = [":--", *["--:"] * (len(heads) - 1)]
    title, caption = tables.markdown_text(table.title), tables.markdown_text(table.caption)
    return [f"## {title}", "", caption, "", *tables.pipes(heads, sides, rows), ""]


def _tex(table: Table) -> str:
    style = table.frame.map(str).style.hide(axis="index").format(tables.tex_text)
    text: str = style.format_index(tables.tex_text, axis="columns").to_latex(
        column_format="l" + "r" * (len(table.frame.columns) - 1),
        caption=tables.tex_text(f"{table.title}. {table.caption}"),
        position_float="centering",
        hrules=True,
    )
    return f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}\n{text}}}"


def forest(
    axis: Axes, rows: pd.DataFrame, title: str, quantity: str, band: tuple[float, float]
) -> None:
    """Draw `estimate` from `low` to `high`: a line per `label`, a colour per `group`."""
    labels, groups = list(rows["label"].unique()), list(rows["group"].unique())
    spread = 0.25 if rows["label"].duplicated().any() else 0.0
    axis.axvspan(*band, color=LIGHT, linewidth=0)
    for number, offset in enumerate(np.linspace(-spread, spread, len(groups))):
        own = rows[rows["group"] == groups[number]]
        axis.errorbar(
            own["estimate"],
            own["label"].map(labels.index) + offset,
            xerr=[own["estimate"] - own["low"], own["high"] - own["estimate"]],
            fmt=SHAPES[number % len(SHAPES)],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            markersize=3.5,
            label=groups[number],
        )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_title(title, fontsize=8.5, loc="left")
    axis.set_xlabel(quantity)
    if len(groups) > 1:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=len(groups))
