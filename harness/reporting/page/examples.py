"""The explorer of examples: what rows keep, prune and disagree about, in words for a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.reporting import numbers, quotes
from harness.reporting.page.example_choice import (
    APART,
    KEPT,
    PRUNED,
    TOP,
    Choices,
    Chosen,
    Shown,
    choose,
    gather,
)
from harness.reporting.results import Results

FEW = 5
"""Examples of each order that are readable without the page's script, and in print."""
INFLUENCE = ("s_C", "s_I")
TITLES = {
    KEPT: "Most kept",
    PRUNED: "Most pruned",
    APART: "Rows disagree most",
}


@dataclass(frozen=True)
class Explorer:
    """What the template shows without script, and what the script gets as data."""

    about: str
    lists: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...]
    data: Mapping[str, Any]


def shown(results: Results) -> tuple[str, ...]:
    """Ids of the examples whose texts a page shows."""
    choices = gather(results)
    if choices is None:
        return ()
    return tuple(choices.ids[position] for position in choose(choices).positions)


def explorer(results: Results) -> Explorer | None:
    """All that a page says about single examples; None where no row chose any."""
    choices = gather(results)
    if choices is None:
        return None
    found = choose(choices)
    where = {position: place for place, position in enumerate(found.positions)}
    entries = _entries(results, choices, found)
    orders = {name: [where[p] for p in order] for name, order in found.orders.items()}
    data = {
        "of": f"{len(choices.ids):,}",
        "top": TOP,
        "rows": [chosen.row for chosen in choices.rows],
        "examples": entries,
        "orders": orders,
        "best": {row: [where[p] for p in order] for row, order in found.best.items()},
        "worst": {row: [where[p] for p in order] for row, order in found.worst.items()},
        "classes": sorted({entry["class"] for entry in entries if entry["class"]}),
    }
    lists = tuple(
        (TITLES[name], tuple(entries[place] for place in order[:FEW]))
        for name, order in orders.items()
    )
    return Explorer(_about(results, choices, entries), lists, data)


def _about(results: Results, choices: Choices, entries: list[dict[str, Any]]) -> str:
    """Which rows the orders are over, and whether texts are there."""
    names = [chosen.row for chosen in choices.judged]
    over = f"the {len(names)} selectors"
    if len(names) == 1:
        over = names[0]
    elif names == [chosen.row for chosen in choices.rows]:
        over = numbers.listing(names)
    level = "all fractions and seeds" if len(results.fractions) > 1 else "all seeds"
    said = (
        f"{len(entries)} of the pool's {len(choices.ids):,} examples: those that {over} keep and "
        f"prune most over {level}, those about which they disagree most (the variance of the "
        "share kept, between rows), and each row's best and worst by its own score."
    )
    if not any(entry["prompt"] for entry in entries):
        said += " The texts of this pool were not stored with the results."
    return said


def _entries(results: Results, choices: Choices, found: Shown) -> list[dict[str, Any]]:
    """One entry per shown example."""
    stored = quotes.read_examples(results.folder, results.arm)
    share = choices.share
    right = results.facts.get("correct_classes")
    errors = set() if right is None else {c for c in choices.classes if c} - set(right)
    places = [_places(chosen) for chosen in choices.rows]
    entries = []
    for position in found.positions:
        name = choices.ids[position]
        prompt, response = stored.get(name, (None, None))
        entries.append(
            {
                "id": name,
                "class": choices.classes[position],
                "planted": choices.classes[position] in errors,
                "facts": " · ".join(
                    [
                        *_lengths(results, position),
                        f"kept in {numbers.percent(round(float(share[position]), 2))} of choices",
                    ]
                ),
                "influence": _influence(choices, position),
                "prompt": told(prompt),
                "response": told(response),
                **_keepers(choices, position),
                "lines": [
                    _line(chosen, place, position)
                    for chosen, place in zip(choices.rows, places, strict=True)
                ],
            }
        )
    return entries


def told(text: quotes.Text | None) -> dict[str, str] | None:
    """A text and, where a part is missing, how much."""
    if text is None:
        return None
    note = f"cut: the first {len(text.kept):,} of {text.length:,} characters" if text.cut else ""
    return {"text": text.kept, "note": note}


def _lengths(results: Results, position: int) -> list[str]:
    if results.pool is None:
        return []
    line = results.pool.iloc[position]
    found = []
    for name, noun in (("response_tokens", "token"), ("steps", "step")):
        value = line.get(name)
        if value is not None and math.isfinite(value):
            found.append(numbers.plural(int(value), noun))
    return found


def _influence(choices: Choices, position: int) -> str:
    """s_C and s_I by the first row that has both."""
    for chosen in choices.rows:
        if set(INFLUENCE) <= set(chosen.scores):
            line = chosen.scores.iloc[position]
            said = ", ".join(f"{name} {significant(line[name])}" for name in INFLUENCE)
            return f"{said} ({chosen.row})"
    return ""


def _keepers(choices: Choices, position: int) -> dict[str, str]:
    """Rows that always kept the example, those that did so at times, those that never did."""
    found: dict[str, list[str]] = {"kept": [], "some": [], "pruned": []}
    for chosen in choices.rows:
        share = float(chosen.share[position])
        if share in (0.0, 1.0):
            found["kept" if share else "pruned"].append(chosen.row)
        else:
            found["some"].append(f"{chosen.row} ({numbers.percent(round(share, 2))})")
    return {name: ", ".join(rows) for name, rows in found.items()}


def _places(chosen: Chosen) -> np.ndarray[Any, Any] | None:
    """Place of every example by the row's score, 1 the best; equal scores share a place."""
    if chosen.score is None:
        return None
    return np.searchsorted(np.sort(-chosen.score), -chosen.score) + 1


def _line(chosen: Chosen, places: np.ndarray[Any, Any] | None, position: int) -> list[str]:
    """Times kept, score, place and further scores of one row."""
    kept = [f"{c[position]} of {n}" for c, n in zip(chosen.counts, chosen.seeds, strict=True)]
    if len(kept) > 1:
        shares = map(numbers.percent, chosen.fractions)
        kept = [f"{share}: {times}" for share, times in zip(shares, kept, strict=True)]
    line = chosen.scores.iloc[position]
    others = [f"{name} {significant(line[name])}" for name in chosen.scores if name != "score"]
    score = significant(line["score"]) if places is not None else numbers.NONE
    place = f"{places[position]:,}" if places is not None else numbers.NONE
    return [", ".join(kept), score, place, ", ".join(others)]


def significant(value: float) -> str:
    """A score with three significant digits, or all of its digits before the point."""
    if not math.isfinite(value):
        return numbers.NONE
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", numbers.MINUS)
