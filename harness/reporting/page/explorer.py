"""The explorers of a page: single examples of the pool, and single items with their answers.

Both have one shape. An entry has quotes, terms and a line per row; lists of entries are orders over
all rows and each row's own two ends; a tag (planted class, task) filters them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet

from harness.reporting import numbers, quotes
from harness.reporting.quotes import Choices, Items, Lists, RowChoices, Text
from harness.reporting.results import TRUNCATED, Results

FEW = 5
"""Entries of each order that are readable without the page's script, and in print."""
LIMIT = 600
"""Characters of a response that a page holds."""
ANSWER = 80
"""Characters of an answer in a table."""
RESPONSES = 6000
"""Responses that a page holds at most."""
SEEDS_SHOWN = 3
"""Seeds of each row whose responses a page shows, where there is room."""
INFLUENCE = ("s_C", "s_I")
SAMPLE_COLUMNS = ("task", "item", "decode", "correct", "answer", "response", TRUNCATED)
RIGHT, WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Explorer:
    """One section of a page.

    `shows`: names and titles of the lists; `lists`: what stands there without script; `data`: JSON
    for the script; `sides`: the rows whose responses stand side by side at first.
    """

    name: str
    title: str
    about: str
    tag: str
    shows: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, tuple[Entry, ...]], ...]
    data: Mapping[str, Any]
    sides: tuple[str, ...] = ()


def _explorer(
    lists: Lists, entries: Sequence[Entry], titles: Mapping[str, str], **parts: Any
) -> Explorer:
    """An explorer of `entries`, which follow `lists.positions`."""
    place = {position: i for i, position in enumerate(lists.positions)}
    orders = {name: [place[p] for p in order] for name, order in lists.orders.items() if order}
    own = {
        name: {row: [place[p] for p in order] for row, order in rows.items()}
        for name, rows in lists.own.items()
        if rows
    }
    data = parts.pop("data") | {
        "top": quotes.TOP,
        "entries": [{k: v for k, v in entry.items() if k != "summary"} for entry in entries],
        "orders": orders,
        "own": own,
    }
    few = tuple(
        (titles[name], tuple(entries[i] for i in order[:FEW])) for name, order in orders.items()
    )
    shows = tuple((name, titles[name]) for name in (*orders, *own))
    return Explorer(shows=shows, lists=few, data=data, **parts)


def examples(results: Results) -> Explorer | None:
    """What rows keep, prune and disagree about; None where no row chose any."""
    choices = quotes.choices(results)
    if choices is None:
        return None
    lists = choices.lists()
    entries = _example_entries(results, choices, lists)
    of = f"{len(choices.ids):,}"
    return _explorer(
        lists,
        entries,
        {
            quotes.KEPT: "Most kept",
            quotes.PRUNED: "Most pruned",
            quotes.APART: "Rows disagree most",
            quotes.BEST: "Best by a row's score",
            quotes.WORST: "Worst by a row's score",
        },
        name="examples",
        title="Examples",
        about=_about_examples(results, choices, entries),
        tag="Planted class",
        data={
            "of": of,
            "caption": "Scores, row by row, of",
            "heads": ["Row", "Kept", "Score", f"Place of {of}", "Further scores"],
            "rows": [chosen.row for chosen in choices.rows],
            "tags": sorted({entry["tag"] for entry in entries if entry["tag"]}),
        },
    )


def _about_examples(results: Results, choices: Choices, entries: Sequence[Entry]) -> str:
    """Which rows the orders are over, and whether texts are there."""
    names = [chosen.row for chosen in choices.judged]
    over = f"the {len(names)} selectors"
    if len(names) == 1:
        over = names[0]
    elif names == [chosen.row for chosen in choices.rows]:
        over = numbers.listing(names)
    level = "all fractions and seeds" if len(results.fractions) > 1 else "all seeds"
    about = (
        f"{len(entries)} of the pool's {len(choices.ids):,} examples: those that {over} keep and "
        f"prune most over {level}, those about which they disagree most (the variance of the "
        "share kept, between rows), and each row's best and worst by its own score."
    )
    if not any(text for entry in entries for _, text in entry["quotes"]):
        about += " The texts of this pool were not stored with the results."
    return about


def _example_entries(results: Results, choices: Choices, lists: Lists) -> list[Entry]:
    stored = quotes.read_examples(results.folder, results.arm)
    share = choices.share
    correct = results.facts.get("correct_classes")
    errors = set() if correct is None else {c for c in choices.classes if c} - set(correct)
    places = [_places(chosen) for chosen in choices.rows]
    entries = []
    for position in lists.positions:
        name = choices.ids[position]
        prompt, response = stored.get(name, (None, None))
        kept = f"kept in {numbers.percent(round(float(share[position]), 2))} of choices"
        entries.append(
            {
                "id": name,
                "tag": choices.classes[position],
                "flagged": choices.classes[position] in errors,
                "facts": " · ".join([*_lengths(results, position), kept]),
                "quotes": [["Prompt", _quote(prompt)], ["Response", _quote(response)]],
                "terms": [*_influence(choices, position), *_keepers(choices, position)],
                "lines": [
                    _score_line(chosen, place, position)
                    for chosen, place in zip(choices.rows, places, strict=True)
                ],
            }
        )
    return entries


def _quote(text: Text | None, *notes: str) -> dict[str, str] | None:
    """A text and, where a part is missing, how much."""
    if text is None:
        return None
    cut = f"cut: the first {len(text.kept):,} of {text.length:,} characters" if text.cut else ""
    return {"text": text.kept, "note": "; ".join(filter(None, (cut, *notes)))}


def _lengths(results: Results, position: int) -> list[str]:
    if results.pool is None:
        return []
    line = results.pool.iloc[position]
    units = {"response_tokens": "token", "steps": "step"}
    values = {noun: line.get(name) for name, noun in units.items()}
    return [
        numbers.plural(int(value), noun)
        for noun, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _influence(choices: Choices, position: int) -> list[list[str]]:
    """s_C and s_I by the first row that has both."""
    for chosen in choices.rows:
        if set(INFLUENCE) <= set(chosen.scores):
            line = chosen.scores.iloc[position]
            scores = ", ".join(f"{name} {numbers.significant(line[name])}" for name in INFLUENCE)
            return [["Influence", f"{scores} ({chosen.row})"]]
    return []


def _keepers(choices: Choices, position: int) -> list[list[str]]:
    """Rows that always kept the example, those that did so at times, those that never did."""
    keepers: dict[str, list[str]] = {"Kept by": [], "In part": [], "Pruned by": []}
    for chosen in choices.rows:
        share = float(chosen.share[position])
        if share in (0.0, 1.0):
            keepers["Kept by" if share else "Pruned by"].append(chosen.row)
        else:
            keepers["In part"].append(f"{chosen.row} ({numbers.percent(round(share, 2))})")
    return [[name, ", ".join(rows)] for name, rows in keepers.items() if rows]


def _places(chosen: RowChoices) -> npt.NDArray[Any] | None:
    """Place of every example by the row's score, 1 the best; equal scores share a place."""
    if chosen.score is None:
        return None
    return np.searchsorted(np.sort(-chosen.score), -chosen.score) + 1


def _score_line(chosen: RowChoices, places: npt.NDArray[Any] | None, position: int) -> list[str]:
    """Times kept, score, place and further scores of one row."""
    kept = [f"{c[position]} of {n}" for c, n in zip(chosen.counts, chosen.seeds, strict=True)]
    if len(kept) > 1:
        shares = map(numbers.percent, chosen.fractions)
        kept = [f"{share}: {times}" for share, times in zip(shares, kept, strict=True)]
    line = {name: numbers.significant(v) for name, v in chosen.scores.iloc[position].items()}
    score = line.pop("score", numbers.NONE)
    place = f"{places[position]:,}" if places is not None else numbers.NONE
    return [", ".join(kept), score, place, ", ".join(map(" ".join, line.items()))]


def answers(results: Results, best: str) -> Explorer | None:
    """Items that flip between rows and between seeds, side by side; None where nothing does.

    `best`: the row that stands beside the reference at first.
    """
    items = quotes.items(results)
    lists = items.lists() if items is not None else None
    if items is None or lists is None or not lists.positions:
        return None
    keys = [items.keys[position] for position in lists.positions]
    seeds = _seeds(results, items, len(keys))
    columns = sorted(set().union(*seeds.values()))
    entries, texts = _answer_entries(results, items, lists, seeds, columns)
    reference = items.rows[items.reference] if items.reference is not None else items.rows[0]
    return _explorer(
        lists,
        entries,
        {
            quotes.ROWS: "Rows differ most",
            quotes.SEEDS: "Seeds differ most",
            quotes.WON: f"Won from {results.reference} by a row",
            quotes.LOST: f"Lost to {results.reference} by a row",
        },
        name="answers",
        title="Answers",
        about=_about_answers(results, items, entries, max(map(len, seeds.values()))),
        tag="Task",
        sides=(reference, best if best in items.rows else items.rows[0]),
        data={
            "of": f"{len(items.keys):,}",
            "caption": "Answers of every row to",
            "heads": ["Row", "Right", *(f"Seed {seed}" for seed in columns)],
            "rows": list(items.rows),
            "tags": list(dict.fromkeys(entry["tag"] for entry in entries)),
            "reference": reference,
            "columns": columns,
            "seeds": seeds,
            "changes": {row: _change(results, items, i) for i, row in enumerate(items.rows)},
            "texts": texts,
        },
    )


def _about_answers(results: Results, items: Items, entries: Sequence[Entry], n_seeds: int) -> str:
    at = f" at {numbers.percent(items.fraction)} of the pool" if len(results.fractions) > 1 else ""
    about = (
        f"{len(entries)} of {len(items.keys):,} items{at}: those on which rows differ most, those "
        f"on which the seeds of a row differ most, and what each row wins from {results.reference} "
        "and loses to it. Single items are anecdotes: the table above says whether rows differ."
    )
    if len(results.seeds) > n_seeds:
        about += f" Responses of the first {n_seeds} seeds are shown."
    if int(results.protocol.get("evaluate", {}).get("decodes", 1)) > 1:
        about += " Of several decodes the first is shown."
    if not any(text for entry in entries for _, text in entry["quotes"]):
        about += " The questions were not stored with the results."
    return about


def _seeds(results: Results, items: Items, n_items: int) -> dict[str, list[int]]:
    """Seeds whose responses are shown, by row; none for rows that the limit leaves no room for."""
    room = RESPONSES // n_items
    each = min(SEEDS_SHOWN, max(1, room // len(items.rows)))
    return {
        row: [cell.seed for cell in quotes.finished(results, row)][: each if i < room else 0]
        for i, row in enumerate(items.rows)
    }


def _change(results: Results, items: Items, row: int) -> str:
    """On how many items a row is right more often than the reference, and less often."""
    change = items.change(row)
    if change is None:
        return ""
    more, less = int((change > 0).sum()), int((change < 0).sum())
    return (
        f"{items.rows[row]} is right more often than {results.reference} on {more:,} of "
        f"{len(items.keys):,} items, less often on {less:,}"
    )


def _answer_entries(
    results: Results,
    items: Items,
    lists: Lists,
    seeds: Mapping[str, Sequence[int]],
    columns: Sequence[int],
) -> tuple[list[Entry], list[dict[str, str] | None]]:
    """One entry per shown item, and the responses that it numbers by row and column, held once."""
    stored = quotes.read_questions(results.folder)
    places: dict[tuple[str, int, bool] | None, int] = {}
    entries: list[Entry] = []
    for position in lists.positions:
        task, item = items.keys[position]
        question, answer = stored.get((task, item), (None, None))
        counts = [
            f"{right[position]} of {asked[position]}" if asked[position] else numbers.NONE
            for right, asked in zip(items.right, items.asked, strict=True)
        ]
        entries.append(
            {
                "id": item,
                "tag": task,
                "flagged": False,
                "facts": "",
                "quotes": [["Question", _quote(question)]],
                "terms": [
                    ["Right answer", "not stored" if answer is None else _short(answer.kept)]
                ],
                "summary": [
                    ["Right", ", ".join(map(" ".join, zip(items.rows, counts, strict=True)))]
                ],
                "lines": [[count, *[numbers.NONE] * len(columns)] for count in counts],
                "texts": [[None] * len(columns) for _ in items.rows],
            }
        )
    keys = [items.keys[position] for position in lists.positions]
    for i, row in enumerate(items.rows):
        for cell in quotes.finished(results, row):
            if cell.seed not in seeds[row]:
                continue
            at = columns.index(cell.seed)
            samples = _samples(results.folder / cell.record["samples"], keys)
            for entry, key in zip(entries, keys, strict=True):
                if key in samples:
                    text, entry["texts"][i][at] = _answer(samples[key], places)
                    entry["lines"][i][1 + at] = text
    limit = "cut at the token limit"
    texts = [
        None if key is None else _quote(Text(*key[:2]), limit if key[2] else "") for key in places
    ]
    return entries, texts


def _samples(path: Path, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The first decode of each of the items `keys`; columns that are absent stay out."""
    stored = set(pyarrow.parquet.read_schema(path).names)
    frame = pd.read_parquet(path, columns=[name for name in SAMPLE_COLUMNS if name in stored])
    frame = frame[frame["item"].isin({item for _, item in keys})].sort_values("decode")
    frame = frame.drop_duplicates(["task", "item"])
    return {(line["task"], line["item"]): line for line in frame.to_dict("records")}


def _answer(
    sample: Mapping[str, Any], places: dict[tuple[str, int, bool] | None, int]
) -> tuple[str, int]:
    """A verdict with its answer, and the place of the response, new ones added to `places`."""
    answer = _short(sample["answer"]) if isinstance(sample["answer"], str) else "none"
    response, cut = sample.get("response"), sample.get(TRUNCATED)
    key = None
    if isinstance(response, str):
        key = (response[:LIMIT], len(response), cut is not None and bool(cut))
    place = places.setdefault(key, len(places))
    return f"{RIGHT if sample['correct'] else WRONG} {answer}", place


def _short(answer: str) -> str:
    """An answer for a table."""
    return answer if len(answer) <= ANSWER else answer[:ANSWER] + "\N{HORIZONTAL ELLIPSIS}"
