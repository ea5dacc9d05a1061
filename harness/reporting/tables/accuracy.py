"""Accuracy: the main table, strategies by task, and how far evaluation alone moves it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.reporting import numbers, sentences
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import CONTROLS, MAIN, OWN, Results, mean_cost
from harness.reporting.tables.sheet import (
    DOWN,
    PLUS_MINUS,
    UP,
    Cell,
    Column,
    Group,
    Line,
    Sheet,
    Table,
    by_task,
    cell,
    estimate,
    filled,
    titled,
)
from harness.stats import SUMMARY_COLUMNS, pass_at_k

SECONDS = ("select_seconds", "train_seconds", "eval_seconds")
MAIN_COLUMNS = [
    "row", "fraction", "task", "mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items",
    "diff", "diff_low", "diff_high", "p", "p_sign_flip", "p_holm", "verdict",
    *SECONDS, *pass_at_k.COLUMNS,
]  # fmt: skip
STRATEGY_COLUMNS = [
    "selector", "row", "fraction", "task", "mean", "ci_low", "ci_high", "half_width", "n_seeds",
    "diff", "adjusted_low", "adjusted_high", "verdict",
]  # fmt: skip
NOISE_COLUMNS = (
    "n_items", "n_decodes", "accuracy", "sd", "sd_low", "sd_high", "binomial_sd", "low", "high",
    "verdicts_changed", "texts_changed",
)  # fmt: skip
KEYS = ["row", "fraction", "task"]
TEXTS = ("verdict", "method", "test", "note")
EXTRAS = ("pass_at_k", "majority")


def main(results: Results, summary: pd.DataFrame) -> pd.DataFrame:
    """One line per row, fraction and task in protocol order; failed rows stay, empty."""
    entries = [
        {"row": row, "fraction": fraction, "task": task}
        | {name: mean_cost(results.groups[row, fraction], name) for name in SECONDS}
        | {"status": _status(results, row, fraction)}
        for row, fraction in sorted(results.groups, key=lambda group: group[1])
        for task in (*results.tasks, MEAN)
    ]
    table = pd.DataFrame(entries)
    if summary.empty:
        summary = pd.DataFrame(columns=list(SUMMARY_COLUMNS))
    for part in (summary, pass_at_k.summarise(results.outcomes)):
        table = table.merge(part, on=KEYS, how="left", validate="one_to_one")
    empty = table["status"].isin(["failed", "missing"])
    verdict = table["verdict"].astype(object).mask(empty, table["status"])
    table["verdict"] = verdict.where(verdict.notna(), "")
    for name in ("n_seeds", "n_items"):
        table[name] = table[name].fillna(0).astype(int)
    numeric = [c for c in (*MAIN_COLUMNS, *SUMMARY_COLUMNS) if c not in (*KEYS, *TEXTS)]
    numeric = list(dict.fromkeys(numeric))
    table[numeric] = table[numeric].apply(pd.to_numeric)
    return table


def _status(results: Results, row: str, fraction: float) -> str:
    states = [cell.status for cell in results.groups[row, fraction]]
    return next((state for state in ("done", "failed") if state in states), "missing")


def order(results: Results, table: pd.DataFrame, rows: list[str]) -> list[str]:
    """Rows by their mean over fractions, best first; ties and empty ones in protocol order."""
    means = table[table["task"] == MEAN].groupby("row")["mean"].mean()
    value = {row: float(means.get(row, math.nan)) for row in rows}
    return sorted(rows, key=lambda row: -value[row] if math.isfinite(value[row]) else math.inf)


def main_sheet(results: Results, table: pd.DataFrame) -> Sheet:
    """main.csv, .md and .tex."""
    controls = sentences.controls(results, table)
    return Sheet(
        name=MAIN,
        title=titled(results),
        numbers=table[MAIN_COLUMNS],
        tables=(accuracies(results, table),),
        notes=sentences.notes(results, table),
        lead=sentences.headline(results, table),
        remarks=[controls] if controls else [],
        failures=sentences.failures(results),
    )


def accuracies(results: Results, table: pd.DataFrame, task: str = MEAN) -> Table:
    """The selectors per fraction, best first, then the controls.

    On a single task without what belongs to the mean alone: tests and costs.
    """
    whole = task == MEAN
    columns = (
        Column("Row", "l"),
        Column("Accuracy, %", "Sr"),
        Column(f"Difference to {results.reference}, points", "Sr", short="Difference, points"),
        *((Column("Holm p"), Column("Verdict", "l"), Column("Seeds", "r")) if whole else ()),
        *(Column(name, short=name.removesuffix(", %")) for name in extras(table, task)),
        *([Column("Seconds: select / train / eval", "SSS", " / ", tex=False)] if whole else []),
    )
    part = table[table["task"] == task].sort_values(
        "mean", ascending=False, kind="stable", na_position="last"
    )
    control = part["row"].isin(CONTROLS)
    blocks = {
        f"{numbers.percent(fraction)} of the pool kept": part[
            (part["fraction"] == fraction) & ~control
        ]
        for fraction in results.fractions
    } | {"Controls": part[control]}
    groups = (
        Group(title, tuple(_line(results, entry, table, task) for _, entry in lines.iterrows()))
        for title, lines in blocks.items()
    )
    return Table(columns, filled(groups))


def extras(table: pd.DataFrame, task: str = MEAN) -> list[str]:
    """Headings of the columns that stand only where items have several decodes; empty elsewhere."""
    k = sentences.several(table, task)
    return [f"pass@{k}, %", "Majority, %"] if k else []


def _line(results: Results, entry: pd.Series[Any], table: pd.DataFrame, task: str) -> Line:
    cells = results.groups[entry["row"], entry["fraction"]]
    done = sum(cell.status == "done" for cell in cells)
    reference = entry["row"] == results.reference
    name = entry["row"]
    if entry["row"] in CONTROLS and len(results.fractions) > 1 and 0 < entry["fraction"] < 1:
        name += f" at {numbers.percent(entry['fraction'])}"
    interval = numbers.interval(entry["ci_low"], entry["ci_high"])
    diff = ("", "reference")  # where the interval would stand: it is no number
    if not reference:
        diff = (numbers.points(entry["diff"], signed=True),
                numbers.interval(entry["diff_low"], entry["diff_high"]))  # fmt: skip
    line = [cell(name), cell(numbers.points(entry["mean"]), interval), cell(*diff)]
    extra = [cell(numbers.points(entry[name])) for name in EXTRAS] if extras(table, task) else []
    if task != MEAN:
        return (*line, *extra)
    return (
        *line,
        cell(NONE if reference else numbers.p_value(entry["p_holm"])),
        cell(entry["verdict"] if entry["verdict"] != "reference" else ""),
        cell(str(done) if done == len(cells) else f"{done} of {len(cells)}"),
        *extra,
        cell(*(numbers.seconds(entry[name]) for name in SECONDS)),
    )


def strategies(results: Results, table: pd.DataFrame) -> Sheet:
    """strategies.csv, .md and .tex: by task at each fraction, as a paper shows them."""
    selectors, lines = _selectors(results), by_task(table)
    several = len(results.tasks) > 1
    tasks = (*(results.tasks if several else ()), MEAN)
    chosen = {row: name for row, name in selectors.items() if row not in OWN}
    sole = {row: name for row, name in selectors.items() if row in OWN}
    groups = [
        Group(f"{numbers.percent(f)} of the pool kept", _strategy_lines(lines, tasks, chosen, f))
        for f in results.fractions
    ]
    groups.append(Group("Without selection", _strategy_lines(lines, tasks, sole, results.middle)))
    columns = (
        Column("Selector", "l"),
        Column("Variant", "l"),
        *(Column(name, "Srl") for name in (*tasks[:-1], "Mean" if several else results.tasks[0])),
    )
    places = {row: place for place, row in enumerate(selectors)}
    values = table.assign(
        selector=table["row"].map(selectors),
        half_width=(table["ci_high"] - table["ci_low"]) / 2,
        place=table["row"].map(places),
    )
    return Sheet(
        name="strategies",
        title=titled(results, "strategies by task, accuracy in %"),
        numbers=values.sort_values(["fraction", "place"], kind="stable")[STRATEGY_COLUMNS],
        tables=(Table(columns, filled(groups)),),
        notes=_strategy_notes(results, table),
    )


def _selectors(results: Results) -> dict[str, str]:
    """Rows with their selectors, those of one selector together; controls are their own."""
    names = {e["row"]: str(e.get("selector") or e["row"]) for e in results.protocol["rows"]}
    first = {name: place for place, name in reversed(list(enumerate(names.values())))}
    return dict(sorted(names.items(), key=lambda entry: first[entry[1]]))


def _strategy_lines(
    lines: Mapping[tuple[str, float], Mapping[str, Any]],
    tasks: Sequence[str],
    selectors: Mapping[str, str],
    fraction: float,
) -> tuple[Line, ...]:
    rows = []
    last = ""
    for row, selector in selectors.items():
        entries = lines[row, OWN.get(row, fraction)]
        names = ("" if selector == last else selector, row.removeprefix(selector).lstrip("/"))
        cells = (estimate(entries[task], "mean", "ci_low", "ci_high") for task in tasks)
        rows.append((*map(cell, names), *cells))
        last = selector
    return tuple(rows)


def _strategy_notes(results: Results, table: pd.DataFrame) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    return [
        f"Accuracy in % {PLUS_MINUS} half of its {level} interval over seeds and items "
        "(two-way random-effects t). Half-widths are no test of a difference: the pairing with "
        f"{reference} takes out what both share.",
        f"{UP} better and {DOWN} worse than {reference} at the same fraction, by "
        f"paired tests (base and full at {numbers.percent(results.middle)}). The mean counts: "
        "Holm-adjusted over all rows and fractions, and bold only where the adjusted interval of "
        "the difference lies above 0. Marks on single tasks are exploratory (Benjamini-Hochberg "
        "over rows, fractions and tasks).",
        "The best number of a column is not marked as such: of rows that tie, none is ranked above "
        "another.",
        *sentences.row_notes(table),
        *sentences.testbed_notes(results),
    ]


def noise(results: Results) -> Sheet | None:
    """noise.csv, .md and .tex: one checkpoint, evaluated again; None where none was measured."""
    if not results.noise:
        return None
    measured = {
        name: (entry, [*entry["tasks"].items(), (MEAN, entry["mean"])])
        for name, entry in results.noise.items()
    }
    columns = (
        Column("Task", "l"),
        Column("Accuracy, %"),
        Column("SD, points", "Sr"),
        Column("Binomial SD"),
        Column("Range, %", "r"),
        Column("Verdicts changed", "r"),
        Column("Texts changed", "r"),
    )
    groups = tuple(
        Group(_noise_title(name, entry), tuple(_noise_line(*part) for part in parts))
        for name, (entry, parts) in measured.items()
    )
    return Sheet(
        name="noise",
        title=titled(results, "decode noise"),
        numbers=pd.DataFrame(
            {"cell": name, "task": task, "repetitions": entry["repetitions"]}
            | {key: values[key] for key in NOISE_COLUMNS}
            for name, (entry, parts) in measured.items()
            for task, values in parts
        ),
        tables=(Table(columns, groups),),
        notes=_noise_notes(results),
    )


def _noise_title(name: str, entry: Mapping[str, Any]) -> str:
    engine, decoding = entry["engine"], entry["decoding"]
    how = "greedy answers"
    if decoding["temperature"] > 0:
        decodes = numbers.plural(decoding["decodes"], "decode")
        how = f"{decodes} per item at temperature {decoding['temperature']:g}"
    return (
        f"{name}: {entry['repetitions']} repetitions, {how}, {engine['name']} {engine['version']} "
        f"on {engine['device']}"
    )


def _noise_line(task: str, values: Mapping[str, Any]) -> Line:
    sd, low, high, binomial = (
        None if values[name] is None else numbers.number(100 * values[name], 2)
        for name in ("sd", "sd_low", "sd_high", "binomial_sd")
    )
    interval = "" if None in (low, high) else f"[{low}, {high}]"
    ends = (numbers.points(values[name]) for name in ("low", "high"))
    return (
        cell(task),
        cell(numbers.points(values["accuracy"])),
        Cell((sd or NONE, interval)),
        cell(binomial or NONE),
        cell(" to ".join(ends)),
        cell(f"{values['verdicts_changed']} of {values['n_items']}"),
        cell(str(values["texts_changed"])),
    )


def _noise_notes(results: Results) -> list[str]:
    notes = [
        "The same weights, evaluated again in other orders and, for sampled answers, with other "
        "seeds. SD: standard deviation of the accuracy over repetitions, in percentage points, "
        "[95% interval] by chi-square; a deviation of 0 has none. No number of training seeds "
        "explains this part of a difference.",
        "Binomial SD: what independent draws on these very items would give; greedy answers have "
        "none.",
        "Changed: items whose verdict, or text, was not the same in all repetitions.",
    ]
    for name, entry in results.noise.items():
        for part, values in entry.get("mixed", {}).items():
            listed = numbers.listing(map(str, values))
            notes.append(f"{name}: repetitions differ in {part} ({listed}), part of what is seen.")
    return notes
