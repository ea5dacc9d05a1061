"""The main table: how accurate every row is, and how far it stands from the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.reporting import footnotes, headline, numbers
from harness.reporting.numbers import MEAN
from harness.reporting.results import CONTROLS, MAIN, Results, mean_cost
from harness.reporting.tables.cells import titled
from harness.reporting.tables.sheet import Column, Group, Sheet, Table, cell
from harness.reporting.tables.sheet import Line as Cells
from harness.stats import SUMMARY_COLUMNS, pass_at_k

MAIN_COLUMNS = [
    "row", "fraction", "task", "mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items",
    "diff", "diff_low", "diff_high", "p", "p_sign_flip", "p_holm", "verdict",
    "select_seconds", "train_seconds", "eval_seconds", *pass_at_k.COLUMNS,
]  # fmt: skip
KEYS = ["row", "fraction", "task"]
TEXTS = ("verdict", "method", "test", "note")
COUNTS = ("n_seeds", "n_items")
EXTRAS = ("pass_at_k", "majority")
REFERENCE = "reference"
SECONDS = ("select_seconds", "train_seconds", "eval_seconds")


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
    def _difference(self) -> tuple[str, str]:
        """A word in the place of a number stands where the interval would."""
        return ("", self.diff) if self.diff == REFERENCE else (self.diff, self.diff_interval)

    @property
    def cells(self) -> Cells:
        """Under the columns of `columns`."""
        return (
            cell(self.row),
            cell(self.accuracy, self.interval),
            cell(*self._difference),
            cell(self.p),
            cell(self.verdict),
            cell(self.seeds),
            *map(cell, self.extras),
            cell(*self.seconds),
            cell(self.seconds[0]),
        )


@dataclass(frozen=True)
class Block:
    """Lines under one heading."""

    title: str
    lines: tuple[Line, ...]


def main(results: Results, summary: pd.DataFrame) -> pd.DataFrame:
    """One line per row, fraction and task in protocol order; failed rows stay, empty."""
    cells = [
        {"row": row, "fraction": fraction, "task": task}
        | {name: mean_cost(results.groups[row, fraction], name) for name in SECONDS}
        | {"status": _status(results, row, fraction)}
        for row, fraction in sorted(results.groups, key=lambda group: group[1])
        for task in (*results.tasks, MEAN)
    ]
    table = pd.DataFrame(cells)
    if summary.empty:
        summary = pd.DataFrame(columns=list(SUMMARY_COLUMNS))
    for part in (summary, pass_at_k.summarise(results.outcomes)):
        table = table.merge(part, on=KEYS, how="left", validate="one_to_one")
    table["verdict"] = table["verdict"].astype(object)
    empty = table["status"].isin(["failed", "missing"])
    table.loc[empty, "verdict"] = table.loc[empty, "status"]
    table["verdict"] = table["verdict"].where(table["verdict"].notna(), "")
    for name in COUNTS:
        table[name] = table[name].fillna(0).astype(int)
    numeric = [c for c in (*MAIN_COLUMNS, *SUMMARY_COLUMNS) if c not in (*KEYS, *TEXTS)]
    numeric = list(dict.fromkeys(numeric))
    table[numeric] = table[numeric].apply(pd.to_numeric)
    return table


def _status(results: Results, row: str, fraction: float) -> str:
    states = [cell.status for cell in results.groups[row, fraction]]
    if "done" in states:
        return "done"
    return "failed" if "failed" in states else "missing"


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
        title = f"{numbers.percent(fraction)} of the pool kept"
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
        name += f" at {numbers.percent(entry['fraction'])}"
    return Line(
        row=name,
        fraction=numbers.percent(entry["fraction"]),
        accuracy=numbers.points(entry["mean"]),
        interval=numbers.interval(entry["ci_low"], entry["ci_high"]),
        diff=REFERENCE if reference else numbers.points(entry["diff"], signed=True),
        diff_interval=numbers.interval(entry["diff_low"], entry["diff_high"]),
        p=numbers.NONE if reference else numbers.p_value(entry["p_holm"]),
        verdict=entry["verdict"] if entry["verdict"] != "reference" else "",
        seeds=str(done) if done == len(cells) else f"{done} of {len(cells)}",
        extras=tuple(numbers.points(entry[name]) for name in EXTRAS) if extra else (),
        seconds=tuple(numbers.seconds(entry[name]) for name in SECONDS),  # type: ignore[arg-type]
    )


def sheet(results: Results, table: pd.DataFrame) -> Sheet:
    """main.csv, main.md and main.tex."""
    groups = [
        Group(block.title, tuple(line.cells for line in block.lines))
        for block in blocks(results, table)
    ]
    control = headline.controls(results, table)
    return Sheet(
        name=MAIN,
        title=titled(results),
        numbers=table[MAIN_COLUMNS],
        tables=(Table(columns(results, table), tuple(groups)),),
        notes=footnotes.notes(results, table),
        lead=headline.headline(results, table),
        said=[control] if control else [],
        failures=headline.failures(results),
    )


def columns(results: Results, table: pd.DataFrame) -> tuple[Column, ...]:
    """Headings of the main table."""
    return (
        Column("Row", "l"),
        Column("Accuracy, %", "Sr"),
        Column(f"Difference to {results.reference}, points", "Sr", short="Difference, points"),
        Column("Holm p"),
        Column("Verdict", "l"),
        Column("Seeds", "r"),
        *(Column(name, short=name.removesuffix(", %")) for name in extras(table)),
        Column("Seconds: select / train / eval", "SSS", joint=" / ", only="md"),
        Column("Seconds to select", short="Select, s", only="tex"),
    )
