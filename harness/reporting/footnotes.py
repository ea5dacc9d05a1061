"""Footnotes of a report: what each number is, how answers were made, and what was left out."""

from __future__ import annotations

import pandas as pd

from harness.reporting.headline import NAMED
from harness.reporting.numbers import MEAN, listing, percent, plural, points
from harness.reporting.results import Results

RAMBLING = 0.05
"""Share of truncated responses above which a row is named."""
TESTBED_NOTE = (
    "The testbed is synthetic modular arithmetic and a tiny model: these numbers are evidence "
    "about the pipeline and about how the selectors work, not about any real model or data set."
)


def notes(results: Results, table: pd.DataFrame) -> list[str]:
    """Footnotes of the main table: what each number is, and what it rests on."""
    found = [_interval_note(results), _difference_note(results, table), *row_notes(table)]
    found += [_data_note(results, table), *task_notes(results), *_decodes_note(table)]
    found += [*truncation_notes(results, table), _machine_note(results), *fact_notes(results)]
    return [*found, *overlap_notes(results), *testbed_notes(results)]


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
