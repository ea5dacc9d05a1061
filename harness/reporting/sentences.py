"""Sentences that the numbers allow: a report's headline, its failures and its notes.

Every sentence is built from verdicts and intervals, none is written by hand, so that a page
cannot claim what its table does not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.experiment.settings import TESTBED_CONTROLS
from harness.reporting.numbers import MEAN, interval, listing, p_value, percent, plural, points
from harness.reporting.results import CONTROLS, Results

NAMED = 2
"""Rows that a headline names before it counts them."""
OFTEN_TRUNCATED = 0.05
"""Share of truncated responses above which a row is named."""
TESTBED_NOTE = (
    "The testbed is synthetic modular arithmetic and a tiny model: these numbers are evidence "
    "about the pipeline and about how the selectors work, not about any real model or data set."
)


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
    sentences = []
    planted = _standing(results, table, TESTBED_CONTROLS, {"tie": " (a tie)"}, "")
    if planted:
        sentences.append(
            f"Controls that know the planted quality, against {results.reference}: {planted}."
        )
    tie = {"tie": " (a tie, as it should be)"}
    repeated = _standing(results, table, results.again, tie, " ({verdict}, by chance)")
    if repeated:
        lines = table[table["row"].isin(results.again) & table["diff"].notna()]
        rows = list(dict.fromkeys(lines.loc[lines["task"] == MEAN, "row"]))
        sentences.append(
            f"A/A: {listing(rows)} {'has' if len(rows) == 1 else 'have'} the selector and the "
            f"parameters of {results.reference}, so that only chance sets them apart: {repeated}."
        )
    return " ".join(sentences)


def _standing(
    results: Results,
    table: pd.DataFrame,
    rows: Sequence[str],
    words: Mapping[str, str],
    otherwise: str,
) -> str:
    """How far above or below the reference these rows lie on the mean, with a word by verdict."""
    lines = table[(table["task"] == MEAN) & table["row"].isin(rows) & table["diff"].notna()]
    parts = []
    for line in lines.itertuples():
        at = f" at {percent(line.fraction)}" if len(results.fractions) > 1 else ""
        side = "above" if line.diff > 0 else "below"
        word = words.get(line.verdict, otherwise.format(verdict=line.verdict))
        parts.append(f"{line.row}{at} {_size(line)} {side}{word}")
    return listing(parts)


def _size(line: Any) -> str:
    """A difference and its interval without their sign."""
    sign = math.copysign(1, line.diff)
    low, high = sorted((sign * line.diff_low, sign * line.diff_high))
    return f"{points(abs(line.diff))} {interval(low, high)}"


def failures(results: Results) -> list[tuple[str, str]]:
    """What has no result, by name: cells that did not run, then failed ones with their error."""
    failed = []
    for (row, fraction), cells in results.groups.items():
        absent = [str(cell.seed) for cell in cells if cell.status == "missing"]
        if absent:
            word = "seed" if len(absent) == 1 else "seeds"
            failed.append((f"{row}@{fraction:g}", f"not run, {word} {listing(absent)}"))
    for cell in results.cells:
        if cell.status == "failed":
            step = cell.error.get("step")
            where = str(cell.error.get("stage", "unknown stage"))
            where += f", step {step}" if step is not None else ""
            failed.append((cell.name, f"{where}: {cell.error.get('message', 'no message')}"))
    return failed


def notes(results: Results, table: pd.DataFrame) -> list[str]:
    """Footnotes of the main table: what each number is, and what it rests on."""
    return [
        _interval_note(results),
        _difference_note(results, table),
        *row_notes(table),
        _data_note(results, table),
        *task_notes(results),
        *_decodes_note(table),
        *truncation_notes(results, table),
        _machine_note(results),
        *query_notes(results),
        *overlap_notes(results),
        *testbed_notes(results),
    ]


def testbed_notes(results: Results) -> list[str]:
    """That the testbed says nothing about real models, where it is the pool."""
    return [TESTBED_NOTE] if results.testbed else []


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


def row_notes(table: pd.DataFrame) -> list[str]:
    """What is special about single rows: one checkpoint only, seeds missing, no spread."""
    if "note" not in table:
        return []
    lines = table[(table["task"] == MEAN) & (table["note"].fillna("") != "")]
    rows: dict[str, list[str]] = {}
    for line in lines.itertuples():
        rows.setdefault(line.note, []).append(f"{line.row}{_at(line.fraction)}")
    return [f"{listing(names)}: {note}." for note, names in rows.items()]


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
    facts = results.facts.get("tasks", {})
    return [
        f"{task}: {fact['items']:,} items of {fact['source']}, at most {fact['max_tokens']:,} "
        f"tokens per response, grader {fact['grader']}"
        + (f", prompt version {fact['version']}." if fact["version"] else ".")
        for task, fact in ((task, facts[task]) for task in results.tasks if task in facts)
    ]


def several(table: pd.DataFrame, task: str = MEAN) -> str:
    """How many decodes an item has on `task`, `K` where rows differ; empty where it is one."""
    counts = table.loc[(table["task"] == task) & (table["decodes"] > 1), "decodes"].unique()
    return "K" if len(counts) > 1 else "".join(f"{n:.0f}" for n in counts)


def _decodes_note(table: pd.DataFrame) -> list[str]:
    """What the columns for several decodes are, and that nothing is tested on them."""
    counts = dict.fromkeys(several(table, task) for task in table["task"].unique())
    k = "K" if len([count for count in counts if count]) > 1 else "".join(counts)
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
    sentence = f"None of {len(recorded):,} responses was cut at the token limit"
    if cut:
        share = cut / len(recorded)
        part = "<0.1" if share < 0.0005 else points(share)
        verb, stand = ("was", "it stands") if cut == 1 else ("were", "they stand")
        sentence = f"{cut:,} of {len(recorded):,} responses ({part}%) {verb} cut at the token limit"
        sentence += f" and graded as {stand}"
    if unknown:
        sentence += f"; of {unknown:,} more this was not recorded"
    return [f"{sentence}.{_most_truncated(table)}"]


def _most_truncated(table: pd.DataFrame) -> str:
    """The rows whose responses are cut most often, where that is often."""
    lines = table[(table["task"] == MEAN) & (table["truncated"] > OFTEN_TRUNCATED)]
    lines = lines.sort_values("truncated", ascending=False, kind="stable")
    if lines.empty:
        return ""
    named = listing(
        f"{line.row}{_at(line.fraction)} ({points(line.truncated)}%)"
        for line in lines.head(NAMED).itertuples()
    )
    where = f"{len(lines)} lines of the table, most in {named}" if len(lines) > NAMED else named
    return f" More than {percent(OFTEN_TRUNCATED)} are cut in {where}."


def _at(fraction: float) -> str:
    """The fraction behind a row's name; `base` and `full` have none."""
    return f" at {percent(fraction)}" if 0 < fraction < 1 else ""


def _machine_note(results: Results) -> str:
    engines = (cell.provenance.get("engine") or {} for cell in results.done)
    names = sorted({f"{e.get('name', '?')} {e.get('version', '?')}" for e in engines})
    devices = sorted({str(cell.provenance.get("device", "?")) for cell in results.done})
    note = f"Engine: {listing(names) or 'none'}; device: {listing(devices) or 'none'}."
    if any(name.startswith("hf ") for name in names):
        wanted = results.protocol.get("evaluate", {}).get("engine", "auto") == "hf"
        why = "as the experiment asks" if wanted else "since vLLM was not installed"
        note += f" hf is transformers' own generation, used {why}."
    return note


def query_notes(results: Results) -> list[str]:
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
    parts = []
    for side, one, many in (("pool", "pool row", "pool rows"), ("query", "query", "queries")):
        overlap = results.facts.get("overlap", {}).get(side, {"rows": 0})
        if not overlap["rows"]:
            continue
        rows = f"1 {one} overlaps" if overlap["rows"] == 1 else f"{overlap['rows']} {many} overlap"
        sets = listing("the query set" if name == "query" else name for name in overlap["pairs"])
        was = "was" if overlap["rows"] == 1 else "were"
        parts.append(f"{rows} with {sets} and {was} {fates[overlap['action']]}")
    return [f"Overlap: {'; '.join(parts)}."] if parts else []


def _stability_note(results: Results) -> list[str]:
    """How much the choice of each row depends on the queries; one line for all of them."""
    parts = []
    for (row, fraction), cells in results.groups.items():
        facts_of = [
            facts for cell in cells if "stability" in (facts := cell.record.get("facts", {}))
        ]
        if not facts_of:
            continue
        first = facts_of[0]["stability"]  # scores do not depend on the training seed
        at = f" at {percent(fraction)}" if len(results.fractions) > 1 else ""
        used = first["queries"].items()
        drawn = listing(f"{n} of {facts_of[0][f'n_{side}']} in {side}" for side, n in used)
        parts.append(
            f"{row}{at} {first['jaccard']:.2f} [{first['low']:.2f}, {first['high']:.2f}] "
            f"(random sets {first['random']:.2f}; {plural(first['replicates'], 'draw')} of the "
            f"queries behind its ranks: {drawn})"
        )
    if not parts:
        return []
    return [
        "Stability of the chosen set under a bootstrap over queries, as Jaccard overlap with the "
        f"choice by all of them [95% interval]: {listing(parts)}."
    ]
