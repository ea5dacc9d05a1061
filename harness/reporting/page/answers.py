"""The explorer of answers: items that flip between rows and between seeds, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from harness.reporting import numbers
from harness.reporting import quotes as texts
from harness.reporting.page.examples import told
from harness.reporting.page.item_choice import ROWS, SEEDS, Items, Shown, choose, finished, gather
from harness.reporting.results import TRUNCATED, Results

FEW = 5
"""Items of each order that are readable without the page's script, and in print."""
LIMIT = 600
"""Characters of a response that a page holds."""
ANSWER = 80
"""Characters of an answer in a table."""
COLUMNS = ("task", "item", "decode", "correct", "answer", "response", TRUNCATED)
RESPONSES = 6000
"""Responses that a page holds at most."""
SEEDS_SHOWN = 3
"""Seeds of each row whose responses a page shows, where there is room."""
TITLES = {ROWS: "Rows differ most", SEEDS: "Seeds differ most"}


@dataclass(frozen=True)
class Explorer:
    """What the template shows without script, and what the script gets as data."""

    about: str
    lists: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...]
    data: Mapping[str, Any]


def shown(results: Results) -> tuple[tuple[str, str], ...]:
    """Task and item of the questions whose texts a page shows."""
    items = gather(results)
    if items is None:
        return ()
    return tuple(items.keys[position] for position in choose(items).positions)


def explorer(results: Results) -> Explorer | None:
    """All that a page says about single items; None where nothing is finished or nothing flips."""
    items = gather(results)
    found = choose(items) if items is not None else None
    if items is None or found is None or not found.positions:
        return None
    where = {position: place for place, position in enumerate(found.positions)}
    seeds = _seeds(results, items, len(found.positions))
    entries = _entries(results, items, found)
    quoted = _responses(results, items, found, seeds)
    reference = items.rows[items.reference] if items.reference is not None else None
    data = {
        "of": f"{len(items.keys):,}",
        "rows": [
            {"name": row, "seeds": seeds[row], "changed": _changed(items, i)}
            for i, row in enumerate(items.rows)
        ],
        "reference": reference,
        "items": [
            entry | {"cells": cells} for entry, cells in zip(entries, quoted.cells, strict=True)
        ],
        "texts": quoted.texts,
        "orders": {name: [where[p] for p in order] for name, order in found.orders.items()},
        "won": {row: [where[p] for p in order] for row, order in found.won.items()},
        "lost": {row: [where[p] for p in order] for row, order in found.lost.items()},
        "tasks": [task for task in results.tasks if any(e["task"] == task for e in entries)],
    }
    lists = tuple(
        (TITLES[name], tuple(entries[where[p]] for p in order[:FEW]))
        for name, order in found.orders.items()
        if order
    )
    return Explorer(_about(results, items, entries, seeds), lists, data)


def _about(
    results: Results, items: Items, entries: list[dict[str, Any]], seeds: Mapping[str, list[int]]
) -> str:
    at = f" at {numbers.percent(items.fraction)} of the pool" if len(results.fractions) > 1 else ""
    said = (
        f"{len(entries)} of {len(items.keys):,} items{at}: those on which rows differ most, those "
        f"on which the seeds of a row differ most, and what each row wins from {results.reference} "
        "and loses to it. Single items are anecdotes: the table above says whether rows differ."
    )
    if len(results.seeds) > max(map(len, seeds.values())):
        said += f" Responses of the first {max(map(len, seeds.values()))} seeds are shown."
    if int(results.protocol.get("evaluate", {}).get("decodes", 1)) > 1:
        said += " Of several decodes the first is shown."
    if not any(entry["question"] for entry in entries):
        said += " The questions were not stored with the results."
    return said


def _seeds(results: Results, items: Items, n_items: int) -> dict[str, list[int]]:
    """Seeds whose responses are shown, by row; none for rows that the limit leaves no room for."""
    room = RESPONSES // n_items
    each = min(SEEDS_SHOWN, max(1, room // len(items.rows)))
    return {
        row: [cell.seed for cell in finished(results, row)][: each if place < room else 0]
        for place, row in enumerate(items.rows)
    }


def _changed(items: Items, row: int) -> str:
    """On how many items a row is right more often than the reference, and less often."""
    change = items.change(row)
    if change is None:
        return ""
    more, less = int((change > 0).sum()), int((change < 0).sum())
    many = f"{len(items.keys):,}"
    return f"right more often on {more:,} of {many} items, less often on {less:,}"


def _entries(results: Results, items: Items, found: Shown) -> list[dict[str, Any]]:
    """One entry per shown item, without the responses."""
    stored = texts.read_questions(results.folder)
    entries = []
    for position in found.positions:
        task, item = items.keys[position]
        question, answer = stored.get((task, item), (None, None))
        counts = [
            f"{right[position]} of {asked[position]}" if asked[position] else numbers.NONE
            for right, asked in zip(items.right, items.asked, strict=True)
        ]
        entries.append(
            {
                "id": item,
                "task": task,
                "question": told(question),
                "answer": None if answer is None else _short(answer.kept),
                "counts": counts,
                "said": ", ".join(map(" ".join, zip(items.rows, counts, strict=True))),
            }
        )
    return entries


@dataclass(frozen=True)
class Quoted:
    """Responses of the shown items: cells by item, row and seed, and the texts that they number.

    A cell is [text, right, answer, cut by the token limit]; equal texts are held once.
    """

    texts: list[dict[str, str] | None]
    cells: list[list[list[list[Any] | None]]]


def _responses(
    results: Results, items: Items, found: Shown, seeds: Mapping[str, list[int]]
) -> Quoted:
    keys = [items.keys[position] for position in found.positions]
    numbers: dict[tuple[str, int] | None, int] = {}
    cells: list[list[list[list[Any] | None]]] = [[[] for _ in items.rows] for _ in keys]
    for i, row in enumerate(items.rows):
        for cell in finished(results, row):
            if cell.seed in seeds[row]:
                samples = _samples(results.folder / cell.record["samples"], keys)
                for entry, key in zip(cells, keys, strict=True):
                    line = samples.get(key)
                    entry[i].append(None if line is None else _cell(line, numbers))
    kept = [None if text is None else told(texts.Text(*text)) for text in numbers]
    return Quoted(kept, cells)


def _samples(path: Path, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The first decode of each of the items `keys`; columns that are absent stay out."""
    stored = set(pyarrow.parquet.read_schema(path).names)
    frame = pd.read_parquet(path, columns=[name for name in COLUMNS if name in stored])
    frame = frame[frame["item"].isin({item for _, item in keys})].sort_values("decode")
    frame = frame.drop_duplicates(["task", "item"])
    return {(line["task"], line["item"]): line for line in frame.to_dict("records")}


def _cell(line: Mapping[str, Any], numbers: dict[tuple[str, int] | None, int]) -> list[Any]:
    """One answer; its response is numbered, with None for one that was not stored."""
    response = line.get("response")
    text = texts.shortened(response, LIMIT) if isinstance(response, str) else None
    key = None if text is None else (text.kept, text.length)
    answer = line["answer"] if isinstance(line["answer"], str) else None
    short = None if answer is None else _short(answer)
    cut = line.get(TRUNCATED)
    number = numbers.setdefault(key, len(numbers))
    return [number, int(line["correct"]), short, int(cut is not None and bool(cut))]


def _short(answer: str) -> str:
    """An answer for a table."""
    return answer if len(answer) <= ANSWER else answer[:ANSWER] + "\N{HORIZONTAL ELLIPSIS}"
