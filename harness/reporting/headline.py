"""Sentences that the numbers allow: a report's headline and failures; how numbers are written.

Every sentence is built from verdicts and intervals, none is written by hand, so that a page
cannot claim what its table does not show.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from harness.experiment.config import TESTBED_CONTROLS
from harness.reporting.numbers import MEAN, interval, listing, p_value, percent, plural, points
from harness.reporting.results import CONTROLS, Results

NAMED = 2
"""Rows that a headline names before it counts them."""


def headline(results: Results, table: pd.DataFrame) -> list[str]:
    """One sentence per fraction saying which selectors differ from the reference."""
    sentences = []
    for fraction in results.fractions:
        sentence = _verdicts(results, judged(results, table, fraction))
        if len(results.fractions) > 1:
            sentence = f"Keeping {percent(fraction)}: {sentence}"
        elif sentence.startswith("no selector"):
            sentence = "N" + sentence[1:]
        sentences.append(sentence)
    absent = sum(cell.status == "missing" for cell in results.cells)
    if absent:
        sentences.append(f"Provisional: {absent} of {len(results.cells)} cells have not run.")
    return sentences


def judged(results: Results, table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The selectors' lines on the primary mean at one fraction: no controls, no reference."""
    aside = [*CONTROLS, results.reference, *results.again]
    chosen = (table["task"] == MEAN) & (table["fraction"] == fraction)
    return table[chosen & ~table["row"].isin(aside)]


def _verdicts(results: Results, lines: pd.DataFrame) -> str:
    reference = results.reference
    tested = lines[lines["verdict"].isin(["better", "worse", "tie"])]
    if tested.empty:
        return f"no selector could be compared with {reference}."
    won = tested[tested["verdict"] == "better"].sort_values("diff", ascending=False)
    lost = tested[tested["verdict"] == "worse"].sort_values("diff")
    tied = len(tested) - len(won) - len(lost)
    clauses = []
    if won.empty and lost.empty:
        clauses.append(_nothing(tested, reference))
    if len(won):
        clauses.append(_differ(won, len(tested), ("beats", "beat"), reference))
    if len(lost):
        other = "it" if clauses else reference
        clauses.append(_differ(lost, len(tested), ("falls short of", "fall short of"), other))
    if tied and clauses and tied < len(tested):
        clauses.append("the other ties" if tied == 1 else f"the other {tied} tie")
    if len(lines) > len(tested):
        clauses.append(f"{plural(len(lines) - len(tested), 'selector')} could not be judged")
    return "; ".join(clauses) + "."


def _nothing(tested: pd.DataFrame, reference: str) -> str:
    largest = tested.loc[tested["diff"].abs().idxmax()]
    return (
        f"no selector differs detectably from {reference} (largest difference: {largest['row']}, "
        f"{points(largest['diff'], signed=True)} points "
        f"{interval(largest['diff_low'], largest['diff_high'])}, {_holm(largest)})"
    )


def _differ(lines: pd.DataFrame, tested: int, verbs: tuple[str, str], other: str) -> str:
    """Rows on one side of the reference, the largest difference first; many are counted."""
    first = lines.iloc[0]
    low, high, diff = first["diff_low"], first["diff_high"], first["diff"]
    low, high = (-high, -low) if diff < 0 else (low, high)
    effect = f"{points(abs(diff))} points {interval(low, high)}"
    if len(lines) == 1:
        return f"{first['row']} {verbs[0]} {other} by {effect}, {_holm(first)}"
    if len(lines) > NAMED:
        count = f"{len(lines)} of {tested} selectors"
        return f"{count} {verbs[1]} {other}, by up to {effect} ({first['row']})"
    each = [
        f"{line['row']} ({points(line['diff'], signed=True)} points "
        f"{interval(line['diff_low'], line['diff_high'])})"
        for _, line in lines.iterrows()
    ]
    return f"{listing(each)} {verbs[1]} {other}"


def _holm(line: pd.Series[Any]) -> str:
    p = p_value(line["p_holm"])
    return f"Holm p < {p[1:]}" if p.startswith("<") else f"Holm p = {p}"


def controls(results: Results, table: pd.DataFrame) -> str:
    """Where the rows stand that know the answer, and the A/A rows: whatever that says."""
    return " ".join(filter(None, (_planted(results, table), again(results, table))))


def _planted(results: Results, table: pd.DataFrame) -> str:
    """One sentence on the rows that choose by the planted quality."""
    lines = table[(table["task"] == MEAN) & table["row"].isin(TESTBED_CONTROLS)]
    lines = lines[lines["diff"].notna()]
    stated = []
    for line in lines.itertuples():
        side = "above" if line.diff > 0 else "below"
        tie = " (a tie)" if line.verdict == "tie" else ""
        stated.append(f"{line.row}{_kept(results, line)} {_size(line)} {side}{tie}")
    if not stated:
        return ""
    return (
        f"Controls that know the planted quality, against {results.reference}: {listing(stated)}."
    )


def again(results: Results, table: pd.DataFrame) -> str:
    """The A/A control: how far apart two rows are that only chance tells apart."""
    lines = table[(table["task"] == MEAN) & table["row"].isin(results.again)]
    lines = lines[lines["diff"].notna()]
    stated = []
    for line in lines.itertuples():
        side = "above" if line.diff > 0 else "below"
        told = "a tie, as it should be" if line.verdict == "tie" else f"{line.verdict}, by chance"
        stated.append(f"{line.row}{_kept(results, line)} {_size(line)} {side} ({told})")
    if not stated:
        return ""
    rows = listing(dict.fromkeys(lines["row"]))
    has = "has" if lines["row"].nunique() == 1 else "have"
    return (
        f"A/A: {rows} {has} the selector and the parameters of {results.reference}, so that only "
        f"chance sets them apart: {listing(stated)}."
    )


def _kept(results: Results, line: Any) -> str:
    """The fraction behind a row's name, where there are several."""
    return f" at {percent(line.fraction)}" if len(results.fractions) > 1 else ""


def _size(line: Any) -> str:
    """A difference and its interval, told without their sign."""
    sign = math.copysign(1, line.diff)
    low, high = sorted((sign * line.diff_low, sign * line.diff_high))
    return f"{points(abs(line.diff))} {interval(low, high)}"


def failures(results: Results) -> list[tuple[str, str]]:
    """What has no result, by name: cells that did not run, then failed ones with their error."""
    found = []
    for (row, fraction), cells in results.groups.items():
        absent = [str(cell.seed) for cell in cells if cell.status == "missing"]
        if absent:
            word = "seed" if len(absent) == 1 else "seeds"
            found.append((f"{row}@{fraction:g}", f"not run, {word} {listing(absent)}"))
    for cell in results.cells:
        if cell.status == "failed":
            step = cell.error.get("step")
            where = str(cell.error.get("stage", "unknown stage"))
            where += f", step {step}" if step is not None else ""
            found.append((cell.name, f"{where}: {cell.error.get('message', 'no message')}"))
    return found
