"""Sentences that the numbers allow: the headline, footnotes and failures of a report.

Every sentence is built from verdicts and intervals, none is written by hand, so that a page
cannot claim what its table does not show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.config import TESTBED_CONTROLS
from harness.results import CONTROLS, Results

MEAN = "mean"
NONE = "\N{EN DASH}"
"""Stands where a number is undefined."""
NAMED = 2
"""Rows that a headline names before it counts them."""
RAMBLING = 0.05
"""Share of truncated responses above which a row is named."""
MINUS = "\N{MINUS SIGN}"
TESTBED_NOTE = (
    "The testbed is synthetic modular arithmetic and a tiny model: these numbers are evidence "
    "about the pipeline and about how the selectors work, not about any real model or data set."
)


def number(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number for a reader, with a true minus sign; a dash where it is undefined."""
    if not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return ("" if zero else MINUS if value < 0 else "+" if signed else "") + text


def points(value: float, *, signed: bool = False) -> str:
    """A share of one in percent or percentage points, one decimal."""
    return number(100 * value, 1, signed=signed)


def interval(low: float, high: float) -> str:
    """`[low, high]` in percent, empty where undefined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """A p value for a reader."""
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seconds(value: float) -> str:
    """Seconds with about three digits."""
    if not math.isfinite(value):
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def percent(fraction: float) -> str:
    """A fraction of the pool as a percentage."""
    return f"{100 * fraction:g}%"


def listing(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(parts)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


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
    aside = [*CONTROLS, results.reference]
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
    """One sentence on the rows that know the answer: where they stand, whatever that says."""
    lines = table[(table["task"] == MEAN) & table["row"].isin(TESTBED_CONTROLS)]
    lines = lines[lines["diff"].notna()]
    stated = []
    for line in lines.itertuples():
        at = f" at {percent(line.fraction)}" if len(results.fractions) > 1 else ""
        side = "above" if line.diff > 0 else "below"
        sign = math.copysign(1, line.diff)
        low, high = sorted((sign * line.diff_low, sign * line.diff_high))
        tie = " (a tie)" if line.verdict == "tie" else ""
        stated.append(f"{line.row}{at} {points(abs(line.diff))} {interval(low, high)} {side}{tie}")
    if not stated:
        return ""
    return (
        f"Controls that know the planted quality, against {results.reference}: {listing(stated)}."
    )


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


def notes(results: Results, table: pd.DataFrame) -> list[str]:
    """Footnotes of the main table: what each number is, and what it rests on."""
    found = [_interval_note(results), _difference_note(results, table), *_row_notes(table)]
    found += [_data_note(results, table), *task_notes(results), *_decodes_note(table)]
    found += [*truncation_notes(results, table), _machine_note(results), *fact_notes(results)]
    found += overlap_notes(results)
    if results.testbed:
        found.append(TESTBED_NOTE)
    return found


def _interval_note(results: Results) -> str:
    level = percent(1 - results.alpha)
    return (
        f"Accuracy: mean over {plural(len(results.tasks), 'task')} "
        f"({', '.join(results.tasks)}) in percent, [{level} interval]: two-way random-effects t "
        "interval, for new training seeds and new items of the same kind."
    )


def _difference_note(results: Results, table: pd.DataFrame) -> str:
    family = int(table.loc[table["task"] == MEAN, "p_holm"].notna().sum())
    floor = 2 / 2 ** len(results.seeds)
    return (
        f"Difference: paired with {results.reference} at the same fraction, seeds and items, in "
        f"percentage points; base and full, which have no fraction, with {results.reference} at "
        f"the middle one. p is Holm-adjusted over {plural(family, 'comparison')}: every row and "
        "fraction on this mean, controls included. Better or worse means that it is below "
        f"{results.alpha:g} and that the adjusted interval excludes 0; anything else is a tie. "
        "The sign-flip p of main.csv speaks about these items only and cannot go below "
        f"{floor:.2g} with {plural(len(results.seeds), 'seed')}. Verdicts on single tasks are "
        "exploratory (Benjamini-Hochberg)."
    )


def _row_notes(table: pd.DataFrame) -> list[str]:
    """What is special about single rows: one checkpoint only, seeds missing, no spread."""
    if "note" not in table:
        return []
    lines = table[(table["task"] == MEAN) & (table["note"].fillna("") != "")]
    found: dict[str, list[str]] = {}
    for line in lines.itertuples():
        found.setdefault(line.note, []).append(f"{line.row}{_at(line.fraction)}")
    return [f"{listing(rows)}: {note}." for note, rows in found.items()]


def _data_note(results: Results, table: pd.DataFrame) -> str:
    single = table[(table["task"] != MEAN) & (table["n_items"] > 0)]
    counts = [int(n) for n in sorted(single["n_items"].unique())]
    each = " to ".join(str(n) for n in dict.fromkeys([*counts[:1], *counts[-1:]])) or "no"
    evaluate = results.protocol.get("evaluate", {})
    decodes = int(evaluate.get("decodes", 1))
    temperature = float(evaluate.get("temperature", 0.0))
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    seeds = plural(len(results.seeds), "training seed")
    return f"Data: {seeds}, {each} items per task, {plural(decodes, 'decode')} per item ({how})."


def task_notes(results: Results) -> list[str]:
    """How the items of each task are asked and graded, where the run has noted it."""
    noted = results.facts.get("tasks", {})
    return [
        f"{task}: {known['items']:,} items of {known['source']}, at most {known['max_tokens']:,} "
        f"tokens per response, grader {known['grader']}"
        + (f", prompt version {known['version']}." if known["version"] else ".")
        for task, known in ((task, noted[task]) for task in results.tasks if task in noted)
    ]


def several(table: pd.DataFrame, task: str = MEAN) -> str:
    """How many decodes an item has on `task`, `K` where rows differ; empty where it is one."""
    counts = table.loc[(table["task"] == task) & (table["decodes"] > 1), "decodes"].unique()
    return "K" if len(counts) > 1 else "".join(f"{n:.0f}" for n in counts)


def _decodes_note(table: pd.DataFrame) -> list[str]:
    """What the columns for several decodes are, and that nothing is tested on them."""
    found = dict.fromkeys(several(table, task) for task in table["task"].unique())
    k = "K" if len([n for n in found if n]) > 1 else "".join(found)
    if not k:
        return []
    return [
        f"Accuracy is the mean over the {k} decodes of an item. pass@{k}: share of items with a "
        f"right answer among their {k} (arXiv 2107.03374 at k = n). Majority: share of items "
        "whose most frequent answer is right; wrong answers are told apart by their normalised "
        "text, decodes without an answer do not vote, and a tie counts as the share of tied "
        "answers that is right. Both are extra columns: without intervals or tests, and no "
        "verdict rests on them."
    ]


def truncation_notes(results: Results, table: pd.DataFrame) -> list[str]:
    """How many responses the token limit cut, and the rows that have most of them."""
    recorded = results.outcomes["truncated"].dropna()
    unknown = len(results.outcomes) - len(recorded)
    if recorded.empty:
        return ["Whether the token limit cut responses was not recorded."] if unknown else []
    cut = int(recorded.sum())
    said = f"None of {len(recorded):,} responses was cut at the token limit"
    if cut:
        share = cut / len(recorded)
        part = "<0.1" if share < 0.0005 else points(share)
        verb, stand = ("was", "it stands") if cut == 1 else ("were", "they stand")
        said = f"{cut:,} of {len(recorded):,} responses ({part}%) {verb} cut at the token limit"
        said += f" and graded as {stand}"
    if unknown:
        said += f"; of {unknown:,} more this was not recorded"
    return [f"{said}.{_rambling(table)}"]


def _rambling(table: pd.DataFrame) -> str:
    """The rows whose responses are cut most often, where that is often."""
    lines = table[(table["task"] == MEAN) & (table["truncated"] > RAMBLING)]
    lines = lines.sort_values("truncated", ascending=False, kind="stable")
    if lines.empty:
        return ""
    named = listing(
        f"{line.row}{_at(line.fraction)} ({points(line.truncated)}%)"
        for line in lines.head(NAMED).itertuples()
    )
    where = f"{len(lines)} lines of the table, most in {named}" if len(lines) > NAMED else named
    return f" More than {percent(RAMBLING)} are cut in {where}."


def _at(fraction: float) -> str:
    """The fraction behind a row's name; `base` and `full` have none."""
    return f" at {percent(fraction)}" if 0 < fraction < 1 else ""


def engines(results: Results) -> list[str]:
    """Names and versions of the engines that answered."""
    found = (cell.provenance.get("engine") or {} for cell in results.done)
    return sorted({f"{e.get('name', '?')} {e.get('version', '?')}" for e in found})


def devices(results: Results) -> list[str]:
    """Devices that the cells ran on."""
    return sorted({str(cell.provenance.get("device", "?")) for cell in results.done})


def _machine_note(results: Results) -> str:
    found = engines(results)
    said = f"Engine: {listing(found) or 'none'}; device: {listing(devices(results)) or 'none'}."
    if any(name.startswith("hf ") for name in found):
        asked = results.protocol.get("evaluate", {}).get("engine", "auto") == "hf"
        why = "as the experiment asks" if asked else "since vLLM was not installed"
        said += f" hf is transformers' own generation, used {why}."
    return said


def fact_notes(results: Results) -> list[str]:
    """What influence rests on: the queries that flipped, and how much its choice hangs on them."""
    n_c, n_i = results.facts.get("n_C"), results.facts.get("n_I")
    if n_c is None or n_i is None:
        return []
    total = results.facts.get("n_queries")
    among = f" of {total}" if total is not None else ""
    decodes = results.facts.get("query_decodes")
    rule = {"majority": "a majority", "any": "any", "all": "all"}
    settled = ""
    if decodes is not None:
        how = rule[results.facts["query_rule"]]
        settled = f" A query is right if {how} of its {decodes} decodes are."
    return [
        f"Influence: |C| = {n_c}{among} queries that fine-tuning on the whole pool made right and "
        f"|I| = {n_i} that it made wrong.{settled}",
        *_stability_note(results),
    ]


def overlap_notes(results: Results) -> list[str]:
    """Rows that overlap another data set and were kept or dropped, as the experiment says."""
    fates = {
        "keep": "kept, as the experiment says",
        "drop": "dropped before anything used the data, as the experiment says",
        "refuse": "refused",
    }
    stated = []
    for side, one, many in (("pool", "pool row", "pool rows"), ("query", "query", "queries")):
        known = results.facts.get("overlap", {}).get(side, {"rows": 0})
        if not known["rows"]:
            continue
        rows = f"1 {one} overlaps" if known["rows"] == 1 else f"{known['rows']} {many} overlap"
        sets = listing("the query set" if name == "query" else name for name in known["pairs"])
        was = "was" if known["rows"] == 1 else "were"
        stated.append(f"{rows} with {sets} and {was} {fates[known['action']]}")
    return [f"Overlap: {'; '.join(stated)}."] if stated else []


def _stability_note(results: Results) -> list[str]:
    """How much the choice of each row depends on the queries; one line for all of them."""
    stated = []
    for (row, fraction), cells in results.groups.items():
        known = [facts for cell in cells if "stability" in (facts := cell.record.get("facts", {}))]
        if not known:
            continue
        first = known[0]["stability"]  # scores do not depend on the training seed
        at = f" at {percent(fraction)}" if len(results.fractions) > 1 else ""
        used = first["queries"].items()
        drawn = listing(f"{n} of {known[0][f'n_{side}']} in {side}" for side, n in used)
        stated.append(
            f"{row}{at} {first['jaccard']:.2f} [{first['low']:.2f}, {first['high']:.2f}] "
            f"(random sets {first['random']:.2f}; {plural(first['replicates'], 'draw')} of the "
            f"queries behind its ranks: {drawn})"
        )
    if not stated:
        return []
    return [
        "Stability of the chosen set under a bootstrap over queries, as Jaccard overlap with the "
        f"choice by all of them [95% interval]: {listing(stated)}."
    ]
