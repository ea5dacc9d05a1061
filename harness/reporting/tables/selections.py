"""What was chosen: how stable it is, how it overlaps with the reference, what it goes along with.

On the testbed also which planted classes were kept, and so which share of the errors was pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.reporting import footnotes, numbers
from harness.reporting.numbers import NONE
from harness.reporting.results import Results
from harness.reporting.tables import cells
from harness.reporting.tables.sheet import Cell, Column, Group, Line, Sheet, Table, cell
from harness.stats import jaccard, overlap_of_random, rank_correlation, stability
from harness.stats.set_overlap import Chosen

COLUMNS = [
    "row", "fraction", "n_seeds", "n_chosen", "jaccard_seeds", "jaccard_seeds_random",
    "jaccard_reference", "jaccard_reference_random", "score", "spearman_response_tokens",
    "spearman_steps",
]  # fmt: skip
LENGTHS = ("response_tokens", "steps")
PRUNED = "errors_pruned"
TITLE = "Overlap of chosen sets, and what the scores go with"


def sheet(results: Results) -> Sheet | None:
    """selections.csv, .md and .tex; None where no selection is stored."""
    stored = _stored(results)
    if not stored:
        return None
    classes = _classes(results)
    numbers = pd.DataFrame(
        {"row": row, "fraction": fraction}
        | _alike(results, stored, row, fraction)
        | _goes_with(results, tables)
        | _kept(results, tables, classes)
        for (row, fraction), tables in stored.items()
    )
    tables = [Table(_columns(results), _groups(results, numbers, _line), TITLE)]
    if classes:
        columns = (
            Column("Row", "l"),
            *(Column(name) for name in classes),
            Column("Errors pruned"),
        )
        groups = _groups(results, numbers, lambda entry: _class_line(entry, classes))
        tables.append(Table(columns, groups, "Share of each planted class that was kept, %"))
    names = [f"kept_{name}" for name in classes] + ([PRUNED] if classes else [])
    return Sheet(
        name="selections",
        title=cells.titled(results, "what was chosen"),
        numbers=numbers[[*COLUMNS, *names]],
        tables=tuple(tables),
        notes=_notes(results, classes),
    )


Stored = Mapping[tuple[str, float], Mapping[int, pd.DataFrame]]


def _stored(results: Results) -> Stored:
    """The selections of every row and fraction by seed, in the order of ids; files are read once.

    A row that chooses everything, or nothing, has none worth a look.
    """
    read: dict[str, pd.DataFrame] = {}
    found: dict[tuple[str, float], dict[int, pd.DataFrame]] = {}
    for one in results.done:
        path = one.record.get("selection")
        if not path or one.row in cells.SOLE:
            continue
        if path not in read:
            read[path] = pd.read_parquet(results.folder / path).sort_values("id", kind="stable")
        found.setdefault((one.row, one.fraction), {})[one.seed] = read[path]
    return found


def _chosen(table: pd.DataFrame) -> Chosen:
    flags: Chosen = table["chosen"].to_numpy(dtype=np.bool_)
    return flags


def _alike(results: Results, stored: Stored, row: str, fraction: float) -> dict[str, Any]:
    """Overlaps between a row's seeds, and with the reference on the same seeds."""
    mine = {seed: _chosen(table) for seed, table in stored[row, fraction].items()}
    rival = {} if row == results.reference else stored.get((results.reference, fraction), {})
    theirs = {seed: _chosen(table) for seed, table in rival.items()}
    pairs = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
    sizes = [int(chosen.sum()) for chosen in mine.values()]
    first = next(iter(mine.values()))
    return {
        "n_seeds": len(mine),
        "n_chosen": float(np.mean(sizes)),
        "jaccard_seeds": stability(list(mine.values())) if len(mine) > 1 else math.nan,
        "jaccard_seeds_random": overlap_of_random(len(first), sizes[0], sizes[0]),
        "jaccard_reference": _mean([jaccard(a, b) for a, b in pairs]),
        "jaccard_reference_random": _mean(
            [overlap_of_random(len(a), int(a.sum()), int(b.sum())) for a, b in pairs]
        ),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _goes_with(results: Results, tables: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """Rank correlations of the first score of the first seed; empty for rows without scores."""
    table = next(iter(tables.values()))
    names = [name for name in table.columns if name not in ("id", "chosen")]
    unknown = {f"spearman_{name}": math.nan for name in LENGTHS}
    if not names:
        return {"score": "", **unknown}
    known = {}
    if results.pool is not None:
        facts = results.pool.set_index("id").reindex(table["id"])
        for name in LENGTHS:
            if name in facts and facts[name].notna().all():
                known[f"spearman_{name}"] = rank_correlation(table[names[0]], facts[name])
    return {"score": names[0], **unknown, **known}


def _classes(results: Results) -> dict[str, bool]:
    """The planted classes of the pool and whether each is correct, these first."""
    if results.pool is None or "correct_classes" not in results.facts:
        return {}
    correct = set(results.facts["correct_classes"])
    found = sorted(results.pool["quality"].dropna().unique(), key=lambda n: (n not in correct, n))
    return {str(name): name in correct for name in found}


def _kept(
    results: Results, tables: Mapping[int, pd.DataFrame], classes: Mapping[str, bool]
) -> dict[str, float]:
    """Shares of each class that were kept, means over seeds, and of errors that were not."""
    if not classes:
        return {}
    assert results.pool is not None
    quality = results.pool.set_index("id")["quality"]
    first = next(iter(tables.values()))
    of = quality.reindex(first["id"]).to_numpy()
    kept = np.mean([_chosen(table) for table in tables.values()], axis=0)
    wrong = np.isin(of, [name for name, correct in classes.items() if not correct])
    shares = {f"kept_{name}": float(kept[of == name].mean()) for name in classes}
    return shares | {PRUNED: 1 - float(kept[wrong].mean()) if wrong.any() else math.nan}


def _groups(results: Results, numbers: pd.DataFrame, write: Any) -> tuple[Group, ...]:
    """By fraction, in protocol order."""
    found = []
    for fraction in results.fractions:
        part = numbers[numbers["fraction"] == fraction]
        texts = tuple(write(entry) for _, entry in part.iterrows())
        found.append(Group(cells.kept(results, fraction), texts))
    return cells.filled(found)


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
        *(cell(numbers.number(entry[f"spearman_{name}"], 2)) for name in LENGTHS),
    )


def _against_chance(entry: pd.Series[Any], name: str) -> Cell:
    if not math.isfinite(entry[name]):
        return cell(NONE)
    return cell(numbers.number(entry[name], 2), f"({numbers.number(entry[f'{name}_random'], 2)})")


def _class_line(entry: pd.Series[Any], classes: Mapping[str, bool]) -> Line:
    names = [*(f"kept_{name}" for name in classes), PRUNED]
    return (cell(entry["row"]), *(cell(numbers.points(entry[name])) for name in names))


def _notes(results: Results, classes: Mapping[str, bool]) -> list[str]:
    found = [
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
        found.append(
            "Planted classes, which selectors never see: means over seeds; a random choice keeps "
            f"the fraction of each. Errors are {wrong or 'not in this pool'}; errors pruned is the "
            "share of them that was left out."
        )
    return [*found, *footnotes.testbed_notes(results)]
