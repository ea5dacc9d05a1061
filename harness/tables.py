"""The main table, once as numbers and three times for readers: CSV, Markdown and LaTeX.

The CSV keeps ten significant digits: enough for any use, and few enough that the last bits of a
linear algebra library do not change the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness import decodes, footnotes, wording
from harness.results import CONTROLS, Results
from harness.wording import MEAN

MAIN_COLUMNS = [
    "row", "fraction", "task", "mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items",
    "diff", "diff_low", "diff_high", "p", "p_sign_flip", "p_holm", "verdict",
    "select_seconds", "train_seconds", "eval_seconds", *decodes.COLUMNS,
]  # fmt: skip
KEYS = ["row", "fraction", "task"]
COUNTS = ("n_seeds", "n_items")
EXTRAS = ("pass_at_k", "majority")
SECONDS = ("select_seconds", "train_seconds", "eval_seconds")
PAGE_LINES = 32
"""Lines that one LaTeX table holds on a page, notes included."""
TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


@dataclass(frozen=True)
class Line:
    """One row at one fraction, formatted."""

    row: str
    fraction: str
    accuracy: str
    interval: str
    diff: str
    diff_interval: str
    p: str
    verdict: str
    seeds: str
    extras: tuple[str, ...]
    seconds: tuple[str, str, str]

    @property
    def texts(self) -> list[str]:
        """Columns of the Markdown and LaTeX tables."""
        spent = " / ".join(self.seconds)
        return [
            self.row,
            f"{self.accuracy} {self.interval}".strip(),
            f"{self.diff} {self.diff_interval}".strip(),
            self.p,
            self.verdict,
            self.seeds,
            *self.extras,
            spent,
        ]


@dataclass(frozen=True)
class Block:
    """Lines under one heading."""

    title: str
    lines: tuple[Line, ...]


def main(results: Results, summary: pd.DataFrame) -> pd.DataFrame:
    """One line per row, fraction and task in protocol order; failed rows stay, empty."""
    cells = [
        {"row": row, "fraction": fraction, "task": task}
        | {name: _mean_cost(results, row, fraction, name) for name in SECONDS}
        | {"status": _status(results, row, fraction)}
        for row, fraction in sorted(results.groups, key=lambda group: group[1])
        for task in (*results.tasks, MEAN)
    ]
    table = pd.DataFrame(cells)
    if summary.empty:
        beside = (*SECONDS, *decodes.COLUMNS)
        summary = pd.DataFrame(columns=[c for c in MAIN_COLUMNS if c not in beside])
    for part in (summary, decodes.summarise(results.outcomes)):
        table = table.merge(part, on=KEYS, how="left", validate="one_to_one")
    table["verdict"] = table["verdict"].astype(object)
    empty = table["status"].isin(["failed", "missing"])
    table.loc[empty, "verdict"] = table.loc[empty, "status"]
    table["verdict"] = table["verdict"].where(table["verdict"].notna(), "")
    for name in COUNTS:
        table[name] = table[name].fillna(0).astype(int)
    numeric = [c for c in MAIN_COLUMNS if c not in (*KEYS, "verdict")]
    table[numeric] = table[numeric].apply(pd.to_numeric)
    return table


def _status(results: Results, row: str, fraction: float) -> str:
    states = [cell.status for cell in results.groups[row, fraction]]
    if "done" in states:
        return "done"
    return "failed" if "failed" in states else "missing"


def _mean_cost(results: Results, row: str, fraction: float, name: str) -> float:
    done = (cell for cell in results.groups[row, fraction] if cell.status == "done")
    spent = [cell.costs[name] for cell in done if cell.costs.get(name) is not None]
    return math.fsum(spent) / len(spent) if spent else math.nan


def csv(table: pd.DataFrame) -> str:
    """main.csv: shares of one, ten digits, empty where undefined."""
    text: str = table[MAIN_COLUMNS].to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text


def order(results: Results, table: pd.DataFrame, rows: list[str]) -> list[str]:
    """Rows by their mean over fractions, best first; ties and empty ones in protocol order."""
    means = table[table["task"] == MEAN].groupby("row")["mean"].mean()
    value = {row: float(means.get(row, math.nan)) for row in rows}
    return sorted(rows, key=lambda row: -value[row] if math.isfinite(value[row]) else math.inf)


def blocks(results: Results, table: pd.DataFrame, task: str = MEAN) -> list[Block]:
    """The selectors per fraction, best first, then the controls."""
    part = table[table["task"] == task]
    extra = bool(extras(table, task))
    found = []
    for fraction in results.fractions:
        lines = part[(part["fraction"] == fraction) & ~part["row"].isin(CONTROLS)]
        title = f"{wording.percent(fraction)} of the pool kept"
        found.append(Block(title, _lines(results, lines, extra)))
    lines = part[part["row"].isin(CONTROLS)]
    found.append(Block("Controls", _lines(results, lines, extra, controls=True)))
    return [block for block in found if block.lines]


def extras(table: pd.DataFrame, task: str = MEAN) -> list[str]:
    """Titles of the columns that stand only where items have several decodes; empty elsewhere."""
    k = footnotes.several(table, task)
    return [f"pass@{k}, %", "Majority, %"] if k else []


def _lines(
    results: Results, part: pd.DataFrame, extra: bool, controls: bool = False
) -> tuple[Line, ...]:
    ranked = part.sort_values("mean", ascending=False, kind="stable", na_position="last")
    name_fraction = controls and len(results.fractions) > 1
    return tuple(_line(results, entry, extra, name_fraction) for _, entry in ranked.iterrows())


def _line(results: Results, entry: pd.Series[Any], extra: bool, name_fraction: bool) -> Line:
    cells = results.groups[entry["row"], entry["fraction"]]
    done = sum(cell.status == "done" for cell in cells)
    reference = entry["row"] == results.reference
    name = entry["row"]
    if name_fraction and 0 < entry["fraction"] < 1:
        name += f" at {wording.percent(entry['fraction'])}"
    return Line(
        row=name,
        fraction=wording.percent(entry["fraction"]),
        accuracy=wording.points(entry["mean"]),
        interval=wording.interval(entry["ci_low"], entry["ci_high"]),
        diff="reference" if reference else wording.points(entry["diff"], signed=True),
        diff_interval=wording.interval(entry["diff_low"], entry["diff_high"]),
        p=wording.NONE if reference else wording.p_value(entry["p_holm"]),
        verdict=entry["verdict"] if entry["verdict"] != "reference" else "",
        seeds=str(done) if done == len(cells) else f"{done} of {len(cells)}",
        extras=tuple(wording.points(entry[name]) for name in EXTRAS) if extra else (),
        seconds=tuple(wording.seconds(entry[name]) for name in SECONDS),  # type: ignore[arg-type]
    )


def headings(results: Results, table: pd.DataFrame) -> list[str]:
    """Column titles of the Markdown and LaTeX tables."""
    return [
        "Row",
        "Accuracy, %",
        f"Difference to {results.reference}, points",
        "Holm p",
        "Verdict",
        "Seeds",
        *extras(table),
        "Seconds: select / train / eval",
    ]


def markdown(results: Results, table: pd.DataFrame) -> str:
    """main.md."""
    title = results.experiment + ("" if results.arm == "main" else f", {results.arm}")
    parts = [f"# {markdown_text(title)}", ""]
    parts += [f"**{markdown_text(s)}**\n" for s in wording.headline(results, table)]
    heads = headings(results, table)
    sides = ["--:"] * len(heads)
    sides[0] = sides[heads.index("Verdict")] = ":--"
    for block in blocks(results, table):
        parts += [f"## {markdown_text(block.title)}", ""]
        parts.append("| " + " | ".join(markdown_text(head) for head in heads) + " |")
        parts.append("|" + "|".join(sides) + "|")
        parts += [
            "| " + " | ".join(markdown_text(text) for text in line.texts) + " |"
            for line in block.lines
        ]
        parts.append("")
    failed = wording.failures(results)
    if failed:
        parts += ["## Without a result", ""]
        parts += [f"- {markdown_text(name)}: {markdown_text(why)}" for name, why in failed]
        parts.append("")
    parts += ["## Notes", ""]
    parts += [f"- {markdown_text(note)}" for note in footnotes.notes(results, table)]
    return "\n".join(parts) + "\n"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(text.split()))


def tex(results: Results, table: pd.DataFrame) -> str:
    r"""main.tex: for `\input`, needs only booktabs; what no page holds becomes several tables."""
    found = blocks(results, table)
    together = sum(len(block.lines) for block in found) <= PAGE_LINES
    parts = ["% Needs \\usepackage{booktabs}."]
    extra = extras(table)
    gap = "2pt" if extra else "3pt"
    groups = [found] if together else [[block] for block in found]
    caption = " ".join(wording.headline(results, table))
    for group in groups:
        parts += [
            "\\begin{table}",
            f"\\centering\\scriptsize\\setlength{{\\tabcolsep}}{{{gap}}}",
            f"\\caption{{{tex_text(caption if group is groups[0] else group[0].title)}}}",
            *_tabular(group, extra),
        ]
        parts += (_tex_notes(results, table) if group is groups[-1] else []) + ["\\end{table}"]
    return "\n".join(parts) + "\n"


def _tabular(group: list[Block], extra: list[str]) -> list[str]:
    short = [name.removesuffix(", %") for name in extra]  # a page is narrow
    names = ["Row", "Accuracy, %", "Difference, points", "Holm p", "Verdict", "Seeds", *short]
    names.append("Select, s")
    parts = [f"\\begin{{tabular}}{{lrrrl{'r' * (len(names) - 5)}}}", "\\toprule"]
    parts.append(" & ".join(tex_text(name) for name in names) + r" \\")
    for block in group:
        title = f"\\multicolumn{{{len(names)}}}{{l}}{{\\emph{{{tex_text(block.title)}}}}}"
        parts += ["\\midrule", title + r" \\"]
        for line in block.lines:
            texts = [*line.texts[:-1], line.seconds[0]]
            parts.append(" & ".join(map(tex_text, texts)) + r" \\")
    return [*parts, "\\bottomrule", "\\end{tabular}"]


def _tex_notes(results: Results, table: pd.DataFrame) -> list[str]:
    notes = ["Select: seconds to choose, mean per cell.", *footnotes.notes(results, table)]
    notes += [f"No result: {name}: {why}." for name, why in wording.failures(results)]
    lines = [tex_text(note) + "\\par" for note in notes]
    start = "\\begin{minipage}{\\linewidth}\\raggedright"
    return ["", "\\medskip", start, *lines, "\\end{minipage}"]


def tex_text(text: str) -> str:
    """Text that LaTeX prints as it is, on one line; what no default font has, as its code point."""
    return "".join(_tex_character(character) for character in " ".join(text.split()))


def _tex_character(character: str) -> str:
    if character in TEX_SPECIAL:
        return TEX_SPECIAL[character]
    return character if " " <= character <= "~" else f"U+{ord(character):04X}"
