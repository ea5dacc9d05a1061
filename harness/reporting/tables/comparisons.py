"""Paired differences to the reference: what they rest on, where they carry over, what they cost.

What choosing costs is counted in runs of the reference: with F operations for a selection and f for
one fine-tuning of the reference at the same fraction, F / f more runs, or F / f times its steps,
would have cost as much. Seconds give the same ratio where records lack operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.reporting import numbers, sentences
from harness.reporting.numbers import MEAN, NONE
from harness.reporting.results import CONTROLS, MAIN, OWN, Cell, Results, mean_cost
from harness.reporting.tables.accuracy import SECONDS
from harness.reporting.tables.sheet import (
    DOWN,
    PLUS_MINUS,
    UP,
    Column,
    Group,
    Line,
    Sheet,
    Table,
    absent,
    by_task,
    cell,
    compared_at,
    filled,
    gain,
    kept,
    mark,
    ranked,
    titled,
)
from harness.reporting.tables.sheet import Cell as Shown

DIFFERENCE_COLUMNS = [
    "row", "fraction", "task", "n_pairs", "n_items", "diff", "diff_low", "diff_high", "p",
    "p_sign_flip", "p_floor", "p_holm", "p_bh", "adjusted_low", "adjusted_high", "p_improvement",
    "verdict", "sd_diff", "detectable", "seeds_1", "seeds_2", "seeds_3", "test",
]  # fmt: skip
TRANSFER_COLUMNS = [
    "arm", "row", "fraction", "task", "diff", "diff_low", "diff_high", "p", "p_holm", "p_bh",
    "verdict",
]  # fmt: skip
FLOPS = ("select_flops", "train_flops")
RUNS = {"select_runs": "by FLOP", "select_runs_by_seconds": "by seconds"}
COST_COLUMNS = [
    "row", "fraction", *SECONDS, "total_seconds", *FLOPS, "total_flops", *RUNS, "select_steps",
    "diff", "diff_low", "diff_high", "verdict",
]  # fmt: skip
TERA = 1e12


def _difference_column(results: Results, kinds: str) -> Column:
    head = f"Difference to {results.reference}, points"
    return Column(head, kinds, short="Difference, points")


def differences(results: Results, table: pd.DataFrame) -> Sheet | None:
    """differences.csv, .md and .tex; None where only the reference is there."""
    rivals = table[table["row"] != results.reference]
    if rivals.empty:
        return None
    primary = Table(
        _difference_columns(results, "Holm p"),
        _difference_groups(results, rivals, MEAN, "p_holm"),
        f"Mean over {numbers.plural(len(results.tasks), 'task')}",
    )
    single = Table(
        _difference_columns(results, "BH p"),
        tuple(
            Group(": ".join(filter(None, (task, group.title))), group.lines)
            for task in results.tasks
            for group in _difference_groups(results, rivals, task, "p_bh")
        ),
        "Single tasks (exploratory)",
    )
    return Sheet(
        name="differences",
        title=titled(results, f"differences to {results.reference}"),
        numbers=rivals[DIFFERENCE_COLUMNS],
        tables=(primary, single) if len(results.tasks) > 1 else (primary,),
        notes=_difference_notes(results, table),
    )


def _difference_groups(
    results: Results, table: pd.DataFrame, task: str, corrected: str
) -> tuple[Group, ...]:
    """By fraction; the largest difference first, controls below."""
    groups = []
    for fraction in results.fractions:
        lines = ranked(compared_at(results, table[table["task"] == task], fraction), "diff")
        cells = tuple(_difference_line(entry, corrected) for _, entry in lines.iterrows())
        groups.append(Group(kept(results, fraction), cells))
    return filled(groups)


def _difference_columns(results: Results, corrected: str) -> tuple[Column, ...]:
    return (
        Column("Row", "l"),
        _difference_column(results, "Sr"),
        Column("p"),
        Column("Flip p (floor)", "Sr"),
        Column(corrected),
        Column("P(better)"),
        Column("Verdict", "l"),
        Column("Detectable, points", short="Detectable"),
        Column("Seeds for 1 / 2 / 3 points", "SSS", " / ", short="Seeds for 1, 2, 3 points"),
    )


def _difference_line(entry: pd.Series[Any], corrected: str) -> Line:
    several = entry["n_pairs"] > 1
    flip = (numbers.p_value(entry["p_sign_flip"]), f"({numbers.p_value(entry['p_floor'])})")
    return (
        cell(entry["row"]),
        cell(
            numbers.points(entry["diff"], signed=True),
            numbers.interval(entry["diff_low"], entry["diff_high"]),
        ),
        cell(numbers.p_value(entry["p"])),
        cell(*flip) if several else cell(NONE, ""),
        cell(numbers.p_value(entry[corrected])),
        cell(numbers.number(entry["p_improvement"], 2) if several else NONE),
        cell(entry["verdict"]),
        cell(numbers.points(entry["detectable"])),
        cell(*(numbers.number(entry[f"seeds_{delta}"], 0) for delta in (1, 2, 3))),
    )


def _difference_notes(results: Results, table: pd.DataFrame) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    families = [int(table[name].notna().sum()) for name in ("p_holm", "p_bh")]
    single = (
        f"Single tasks are exploratory: Benjamini-Hochberg over "
        f"{numbers.plural(families[1], 'comparison')} of rows, fractions and tasks."
    )
    return [
        f"Difference: row minus {reference}, paired by seed and item, in percentage points, "
        f"[{level} interval]: two-way random-effects t, for new seeds and new items of the same "
        f"kind; p belongs to it. base and full are compared with {reference} at "
        f"{numbers.percent(results.middle)}.",
        "Flip p: sign-flip test over seeds, exact up to 20 seeds; it speaks about these items only "
        "and cannot go below the floor in parentheses, 2 / 2^R with R seeds.",
        f"Verdict, on the mean over tasks: Holm over {numbers.plural(families[0], 'comparison')}; "
        f"better or worse means an adjusted p below {results.alpha:g} and an adjusted interval "
        "(adjusted_low, adjusted_high of the CSV) that excludes 0.",
        *([single] if len(results.tasks) > 1 else []),
        f"P(better): chance that one run of the row has a higher accuracy than one run of "
        f"{reference} on these items, ties half.",
        f"Detectable: about the true difference that such a test at {results.alpha:g}, before any "
        "correction, would find with 80% power, at the spread, the seeds and the items seen here; "
        "with 3 seeds it is found less often (reports/validation/statistics.md).",
        "Seeds: how many would find a true difference of 1, 2 or 3 points with 80% power on these "
        "very items, from the standard deviation over seeds seen here; more seeds do not lessen "
        "what new items would change.",
        *sentences.row_notes(table),
        *sentences.testbed_notes(results),
    ]


def transfer(
    results: Results, table: pd.DataFrame, arms: Mapping[str, pd.DataFrame]
) -> Sheet | None:
    """transfer.csv, .md and .tex: does a choice made for the queries help on other tasks and pools?

    None where there is neither a second task nor a second arm. `arms` holds the main tables of all
    arms; they are set side by side in the main arm's report.
    """
    shown = dict(arms) if results.arm == MAIN and len(arms) > 1 else {results.arm: table}
    rivals = table[table["row"] != results.reference]
    tables = []
    if len(results.tasks) > 1:
        tables.append(_by_task(results, rivals))
    if len(shown) > 1:
        tables.append(_by_arm(results, shown))
    if rivals.empty or not tables:
        return None
    values = pd.concat([part.assign(arm=arm) for arm, part in shown.items()], ignore_index=True)
    return Sheet(
        name="transfer",
        title=titled(results, f"differences to {results.reference} across tasks"),
        numbers=values.loc[values["row"] != results.reference, TRANSFER_COLUMNS],
        tables=tuple(tables),
        notes=_transfer_notes(results, shown),
    )


def _by_task(results: Results, table: pd.DataFrame) -> Table:
    columns = (
        Column("Row", "l"),
        *(Column(name, "Srl") for name in (*results.tasks, "Mean")),
        Column("Tasks above", "r"),
    )
    entries = by_task(table)
    primary = table[table["task"] == MEAN]
    groups = []
    for fraction in results.fractions:
        lines = []
        for row in ranked(compared_at(results, primary, fraction), "diff")["row"]:
            entry = entries[row, OWN.get(row, fraction)]
            diffs = [entry[t].diff for t in results.tasks if pd.notna(entry[t].diff)]
            above = f"{sum(diff > 0 for diff in diffs)} of {len(diffs)}" if diffs else NONE
            gains = (gain(entry[task]) for task in (*results.tasks, MEAN))
            lines.append((cell(row), *gains, cell(above)))
        groups.append(Group(kept(results, fraction), tuple(lines)))
    title = f"By task: row minus {results.reference}, points"
    return Table(columns, filled(groups), title)


def _by_arm(results: Results, arms: Mapping[str, pd.DataFrame]) -> Table:
    """The same row in every arm, on the mean over tasks."""
    entries = {arm: by_task(table) for arm, table in arms.items()}
    groups = []
    for fraction in sorted({key[1] for each in entries.values() for key in each} - {0.0, 1.0}):
        lines = []
        for row in results.rows:
            key = (row, OWN.get(row, fraction))
            found = [each.get(key, {}).get(MEAN) for each in entries.values()]
            aside = row == results.reference or (row in OWN and fraction != results.middle)
            if not aside and any(found):
                gains = (cell(NONE) if line is None else gain(line) for line in found)
                lines.append((cell(row), *gains))
        groups.append(Group(f"{numbers.percent(fraction)} of the pool kept", tuple(lines)))
    columns = (Column("Row", "l"), *(Column(arm, "Srl") for arm in arms))
    title = f"By arm: row minus {results.reference} of the same arm, mean over tasks, points"
    return Table(columns, filled(groups), title)


def _transfer_notes(results: Results, shown: Mapping[str, pd.DataFrame]) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    query = results.protocol.get("query", {}).get("dataset")
    notes = [
        f"Difference to {reference} on the same seeds and items in percentage points "
        f"{PLUS_MINUS} half of its {level} interval (differences.csv has its ends; "
        f"base and full are compared with {reference} at {numbers.percent(results.middle)}).",
        f"{UP} better, {DOWN} worse: on the mean by Holm over all rows and fractions "
        "(bold: better, and the adjusted interval lies above 0); on single tasks exploratory, by "
        "Benjamini-Hochberg. No mark is a tie: it does not show that a gain is absent.",
        "Tasks above: tasks on which the row's accuracy is higher, whatever its interval.",
    ]
    if query:
        notes.append(
            f"Selectors that ask for queries see those of {query}, which is none of these tasks. "
            "How much a task resembles them is not measured here."
        )
    if len(shown) > 1:
        notes.append(
            "Arms differ in their pools. Each is tested in a family of its own; whether a "
            "difference changes between arms is not tested."
        )
    return [*notes, *sentences.testbed_notes(results)]


def cost(results: Results, table: pd.DataFrame) -> Sheet:
    """cost.csv, .md and .tex: what choosing costs against what it gains."""
    spent = _spent(results, table)
    flops = [name for name in (*FLOPS, "total_flops") if spent[name].notna().any()]
    runs = [name for name in RUNS if spent[name].notna().any()]
    flops, runs = flops or ["select_flops"], runs or ["select_runs_by_seconds"]
    groups = []
    for fraction in results.fractions:
        part = compared_at(results, spent, fraction)
        part = part.assign(control=part["row"].isin(CONTROLS))
        part = part.sort_values(["control", "select_seconds"], kind="stable")
        lines = tuple(_cost_line(results, entry, flops, runs) for _, entry in part.iterrows())
        groups.append(Group(kept(results, fraction), lines))
    columns = (
        Column("Row", "l"),
        _several("Seconds", ["select", "train", "eval"]),
        _several("TFLOP", [n.removesuffix("_flops").replace("total", "both") for n in flops]),
        _several("Runs", [RUNS[name] for name in runs]),
        *([Column("Steps")] if "select_runs" in runs else []),
        _difference_column(results, "Srl"),
    )
    return Sheet(
        name="cost",
        title=titled(results, "cost per cell and gain"),
        numbers=spent[COST_COLUMNS],
        tables=(Table(columns, filled(groups)),),
        notes=_cost_notes(results, spent, runs),
    )


def _spent(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Means over the finished cells of every row and fraction; nan where a number is unknown."""
    spent = table[table["task"] == MEAN].copy()
    pairs = list(zip(spent["row"], spent["fraction"], strict=True))
    for name in FLOPS:
        spent[name] = [mean_cost(results.groups[pair], name, whole=True) for pair in pairs]
    spent["total_seconds"] = sum(spent[name] for name in SECONDS)
    spent["total_flops"] = spent["select_flops"] + spent["train_flops"]
    rivals = [_rival(results, *pair) for pair in pairs]
    for name, paid, unit in (
        ("select_runs", "select_flops", "train_flops"),
        ("select_runs_by_seconds", "select_seconds", "train_seconds"),
    ):
        run = pd.Series([mean_cost(cells, unit, whole=True) for cells in rivals], spent.index)
        spent[name] = spent[paid] / run.where(run > 0)
    spent["select_steps"] = spent["select_runs"] * [_steps(cells) for cells in rivals]
    return spent


def _rival(results: Results, row: str, fraction: float) -> tuple[Cell, ...]:
    """The reference's cells that a row is compared with."""
    at = results.middle if row in OWN else fraction
    return results.groups.get((results.reference, OWN.get(results.reference, at)), ())


def _steps(cells: tuple[Cell, ...]) -> float:
    steps = [c.record["train"]["steps"] for c in cells if c.record.get("train")]
    return math.fsum(steps) / len(steps) if steps else math.nan


def _several(what: str, parts: Sequence[str]) -> Column:
    """A column of several numbers that its heading names."""
    short = f"{what}: {', '.join(parts)}"
    return Column(f"{what}: {' / '.join(parts)}", "S" * len(parts), " / ", short)


def _cost_line(
    results: Results, entry: pd.Series[Any], flops: Sequence[str], runs: Sequence[str]
) -> Line:
    steps = numbers.number(entry["select_steps"], 0)
    return (
        cell(entry["row"]),
        cell(*(numbers.seconds(entry[name]) for name in SECONDS)),
        cell(*(numbers.compact(entry[name] / TERA) for name in flops)),
        cell(*(numbers.compact(entry[name]) for name in runs)),
        *([cell(steps)] if "select_runs" in runs else []),
        cell("", "reference") if entry["row"] == results.reference else _gain(entry),
    )


def _gain(entry: pd.Series[Any]) -> Shown:
    if not math.isfinite(entry["diff"]):
        return absent(entry)
    text = numbers.points(entry["diff"], signed=True)
    return cell(text, numbers.interval(entry["diff_low"], entry["diff_high"]), mark(entry))


def _cost_notes(results: Results, spent: pd.DataFrame, runs: Sequence[str]) -> list[str]:
    reference, level = results.reference, numbers.percent(1 - results.alpha)
    notes = [
        "Means per finished cell. Choosing counts everything that a row needs, also what other "
        "rows share with it, whoever paid first. A choice that does not depend on the seed is made "
        "once for all seeds, so it weighs less the more runs follow.",
        f"Runs: how many more fine-tunings of {reference} at the same fraction choosing would have "
        f"paid for (base and full: at {numbers.percent(results.middle)})"
        + (f"; steps: the same in training steps of {reference}" if "select_runs" in runs else "")
        + f". What {reference} would have gained by them was not measured.",
        "TFLOP: estimated, 2 per parameter and token of a forward pass and 6 with the backward "
        "pass, an upper bound with LoRA; evaluation is not counted.",
    ]
    if spent.loc[spent["train_seconds"] > 0, "train_flops"].isna().any():
        notes.append(
            "Some or all of these records are older than the count of operations of training: "
            "runs by seconds stand where it is lacking."
        )
    notes.append(
        f"Difference: paired, [{level} interval]; {UP} better and {DOWN} worse by the "
        "Holm-adjusted test on the mean over tasks."
    )
    return [*notes, *sentences.testbed_notes(results)]
