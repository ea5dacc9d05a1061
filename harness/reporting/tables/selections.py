"""What was chosen: how stable it is, how it overlaps with the reference, what it goes along with.

On the testbed also which planted classes were kept, and so which share of the errors was pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.data.jaccard import expected_jaccard
from harness.reporting import numbers, sentences
from harness.reporting.numbers import NONE
from harness.reporting.results import OWN, Results
from harness.reporting.tables.sheet import (
    Cell,
    Column,
    Group,
    Line,
    Sheet,
    Table,
    cell,
    filled,
    kept,
    titled,
)
from harness.stats import jaccard, rank_correlation, stability
from harness.stats.set_overlap import Chosen

COLUMNS = [
    "row", "fraction", "n_seeds", "n_chosen", "jaccard_seeds", "jaccard_seeds_random",
    "jaccard_reference", "jaccard_reference_random", "score", "spearman_response_tokens",
    "spearman_steps",
]  # fmt: skip
FACTS = ("response_tokens", "steps")
"""What scores are correlated with."""
PRUNED = "errors_pruned"
TITLE = "Overlap of chosen sets, and what the scores go with"
Stored = Mapping[tuple[str, float], Mapping[int, pd.DataFrame]]


def selections(results: Results) -> Sheet | None:
    """selections.csv, .md and .tex; None where no selection is stored."""
    stored = _stored(results)
    if not stored:
        return None
    classes = _classes(results)
    values = pd.DataFrame(
        {"row": row, "fraction": fraction}
        | _overlaps(results, stored, row, fraction)
        | _correlations(results, frames)
        | _kept_classes(results, frames, classes)
        for (row, fraction), frames in stored.items()
    )
    tables = [Table(_columns(results), _groups(results, values, _line), TITLE)]
    if classes:
        columns = (
            Column("Row", "l"),
            *(Column(name) for name in classes),
            Column("Errors pruned"),
        )
        groups = _groups(results, values, lambda entry: _class_line(entry, classes))
        tables.append(Table(columns, groups, "Share of each planted class that was kept, %"))
    names = [f"kept_{name}" for name in classes] + ([PRUNED] if classes else [])
    return Sheet(
        name="selections",
        title=titled(results, "what was chosen"),
        numbers=values[[*COLUMNS, *names]],
        tables=tuple(tables),
        notes=_notes(results, classes),
    )


def _stored(results: Results) -> Stored:
    """The selections of every row and fraction by seed, in the order of ids.

    A row that chooses everything, or nothing, has none worth a look.
    """
    ordered: dict[int, pd.DataFrame] = {}
    stored: dict[tuple[str, float], dict[int, pd.DataFrame]] = {}
    for row, fraction in results.groups:
        for seed, frame in results.selections(row, fraction).items() if row not in OWN else ():
            if id(frame) not in ordered:  # seeds that share a choice share the frame
                ordered[id(frame)] = frame.sort_values("id", kind="stable")
            stored.setdefault((row, fraction), {})[seed] = ordered[id(frame)]
    return stored


def _chosen(frame: pd.DataFrame) -> Chosen:
    flags: Chosen = frame["chosen"].to_numpy(dtype=np.bool_)
    return flags


def _overlaps(results: Results, stored: Stored, row: str, fraction: float) -> dict[str, Any]:
    """Overlaps between a row's seeds, and with the reference on the same seeds."""
    sets = {seed: _chosen(frame) for seed, frame in stored[row, fraction].items()}
    reference = {} if row == results.reference else stored.get((results.reference, fraction), {})
    pairs = [(sets[s], _chosen(frame)) for s, frame in reference.items() if s in sets]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    sizes = [int(chosen.sum()) for chosen in sets.values()]
    first = next(iter(sets.values()))
    return {
        "n_seeds": len(sets),
        "n_chosen": float(np.mean(sizes)),
        "jaccard_seeds": stability(list(sets.values())) if len(sets) > 1 else math.nan,
        "jaccard_seeds_random": expected_jaccard(len(first), sizes[0], sizes[0]),
        "jaccard_reference": _mean([jaccard(a, b) for a, b in pairs]),
        "jaccard_reference_random": _mean(
            [expected_jaccard(len(a), int(a.sum()), int(b.sum())) for a, b in pairs]
        ),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _correlations(results: Results, frames: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """Rank correlations of the first score of the first seed; empty for rows without scores."""
    frame = next(iter(frames.values()))
    names = [name for name in frame.columns if name not in ("id", "chosen")]
    unknown = {f"spearman_{name}": math.nan for name in FACTS}
    if not names:
        return {"score": "", **unknown}
    known = {}
    if results.pool is not None:
        facts = results.pool.set_index("id").reindex(frame["id"])
        for name in FACTS:
            if name in facts and facts[name].notna().all():
                known[f"spearman_{name}"] = rank_correlation(frame[names[0]], facts[name])
    return {"score": names[0], **unknown, **known}


def _classes(results: Results) -> dict[str, bool]:
    """The planted classes of the pool and whether each is correct, these first."""
    if results.pool is None or "correct_classes" not in results.facts:
        return {}
    correct = set(results.facts["correct_classes"])
    names = sorted(results.pool["quality"].dropna().unique(), key=lambda n: (n not in correct, n))
    return {str(name): name in correct for name in names}


def _kept_classes(
    results: Results, frames: Mapping[int, pd.DataFrame], classes: Mapping[str, bool]
) -> dict[str, float]:
    """Shares of each class that were kept, means over seeds, and of errors that were not."""
    if not classes:
        return {}
    assert results.pool is not None
    first = next(iter(frames.values()))
    quality = results.pool.set_index("id")["quality"].reindex(first["id"]).to_numpy()
    share = np.mean([_chosen(frame) for frame in frames.values()], axis=0)
    wrong = np.isin(quality, [name for name, correct in classes.items() if not correct])
    shares = {f"kept_{name}": float(share[quality == name].mean()) for name in classes}
    return shares | {PRUNED: 1 - float(share[wrong].mean()) if wrong.any() else math.nan}


def _groups(
    results: Results, values: pd.DataFrame, line: Callable[[pd.Series[Any]], Line]
) -> tuple[Group, ...]:
    """By fraction, in protocol order."""
    groups = []
    for fraction in results.fractions:
        part = values[values["fraction"] == fraction]
        lines = tuple(line(entry) for _, entry in part.iterrows())
        groups.append(Group(kept(results, fraction), lines))
    return filled(groups)


def _columns(results: Results) -> tuple[Column, ...]:
    return (
        Column("Row", "l"),
        Column("Overlap between seeds (random sets)", "Sr", short="Between seeds (random sets)"),
        Column(
            f"Overlap with {results.reference} (random sets)",
            "Sr",
            short=f"With {results.reference} (random sets)",
        ),
        Column("First score", "l"),
        Column("Goes with length"),
        Column("Goes with steps"),
    )


def _line(entry: pd.Series[Any]) -> Line:
    return (
        cell(entry["row"]),
        _against_chance(entry, "jaccard_seeds"),
        _against_chance(entry, "jaccard_reference"),
        cell(entry["score"] or NONE),
        *(cell(numbers.number(entry[f"spearman_{name}"], 2)) for name in FACTS),
    )


def _against_chance(entry: pd.Series[Any], name: str) -> Cell:
    if not math.isfinite(entry[name]):
        return cell(NONE)
    return cell(numbers.number(entry[name], 2), f"({numbers.number(entry[f'{name}_random'], 2)})")


def _class_line(entry: pd.Series[Any], classes: Mapping[str, bool]) -> Line:
    names = [*(f"kept_{name}" for name in classes), PRUNED]
    return (cell(entry["row"]), *(cell(numbers.points(entry[name])) for name in names))


def _notes(results: Results, classes: Mapping[str, bool]) -> list[str]:
    notes = [
        "Overlap of chosen sets as Jaccard's |A and B| / |A or B|: mean over all pairs of a row's "
        f"seeds, and with {results.reference} on the same seeds; in parentheses what two random "
        "sets of these sizes would be expected to share. A row that chooses the same for every "
        "seed has 1.00.",
        "First score: the first that the row stores, for its first seed; goes with: its rank "
        "correlation (Spearman) over the whole pool with the tokens and with the reasoning steps "
        "of the response. Rows that choose sets store none.",
    ]
    if classes:
        wrong = numbers.listing(name for name, correct in classes.items() if not correct)
        notes.append(
            "Planted classes, which selectors never see: means over seeds; a random choice keeps "
            f"the fraction of each. Errors are {wrong or 'not in this pool'}; errors pruned is the "
            "share of them that was left out."
        )
    return [*notes, *sentences.testbed_notes(results)]
