"""From long outcomes to the table of results: one line per row, fraction and task, plus "mean".

Who is compared with whom: a row with the reference at the same fraction. `base` and `full` exist
once, so they are compared with the reference at `reference_fraction`. Where the reference exists
once (`base` or `full` is the reference) every row is compared with that.

Two families. The primary metric, task "mean": Holm over all rows and fractions (`p_holm`). Single
tasks: Benjamini-Hochberg over rows x fractions x tasks (`p_bh`), exploratory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.stats.grid import FIXED, Grid, Line, Outcome, pivot
from harness.stats.interval import Estimate, estimate
from harness.stats.multiple import benjamini_hochberg, holm
from harness.stats.paired import Difference, common_seeds, difference
from harness.stats.power import detectable, seeds_needed

MEAN = "mean"
#: Rows that have one fraction of their own, whatever the grid.
SINGLE = ("base", "full")
#: Differences, in accuracy, for which the seeds needed are given.
DELTAS = (0.01, 0.02, 0.03)

SUMMARY_COLUMNS = (
    "row", "fraction", "task", "mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items",
    "diff", "diff_low", "diff_high", "p", "p_sign_flip", "p_holm", "verdict",
    "p_floor", "p_bh", "p_improvement", "adjusted_low", "adjusted_high", "sd_diff", "n_pairs",
    "detectable", "seeds_1", "seeds_2", "seeds_3", "method", "test", "note",
)  # fmt: skip
_ESTIMATED = ("mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items", "method")
_PAIRED = (
    "diff", "p", "p_sign_flip", "p_floor", "p_improvement", "p_holm", "p_bh",
    "adjusted_low", "adjusted_high", "verdict", "test",
)  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """One line of the summary before it is written out."""

    line: Line
    task: str
    estimate: Estimate | None
    difference: Difference | None
    is_reference: bool
    notes: tuple[str, ...]


def summarise(
    outcomes: pd.DataFrame,
    reference: str = "random",
    alpha: float = 0.05,
    reference_fraction: float | None = None,
    seeds: Collection[int] | None = None,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Means, intervals, paired differences and verdicts; columns `SUMMARY_COLUMNS`.

    `outcomes` has one line per decode: row, fraction, seed, task, item, decode, correct.
    `reference_fraction` defaults to the reference's only or middle fraction (the lower of two).
    `seeds` are those of the experiment (default: all that any row has); a row's seeds that are
    missing, or lack items, are left out of its numbers and named in `note`. Undefined is nan.
    `rng` is needed only beyond 20 seeds, for the sign flips.
    """
    grid = pivot(outcomes)
    if MEAN in grid.tasks:
        raise ValueError(f"task {MEAN!r}; expected another name: it stands for the mean over tasks")
    trained = grid.present[[row not in FIXED for row, _ in grid.lines]]
    known = np.array(grid.seeds)[trained.any(axis=0)].tolist() if len(trained) else []
    expected = set(known if seeds is None else seeds)
    entries = [
        _entry(grid, line, task, other, expected, alpha, rng)
        for line in grid.lines
        for other in [rival(grid, line, reference, reference_fraction)]
        for task in (*grid.tasks, MEAN)
    ]
    entries = _corrected(entries, alpha)
    return pd.DataFrame([_record(one, alpha) for one in entries], columns=list(SUMMARY_COLUMNS))


def _reference_line(grid: Grid, reference: str, fraction: float | None) -> Line | None:
    """The line of the reference that `base` and `full` are compared with."""
    fractions = sorted(part for row, part in grid.lines if row == reference)
    if fraction is not None and reference not in SINGLE:
        return (reference, fraction)
    return (reference, fractions[(len(fractions) - 1) // 2]) if fractions else None


def rival(
    grid: Grid, line: Line, reference: str, reference_fraction: float | None = None
) -> Line | None:
    """The line of the reference that a line is compared with; None where it has no outcomes."""
    row, fraction = line
    alone = row in SINGLE or reference in SINGLE
    found: Line | None = (reference, fraction)
    if alone and row != reference:
        found = _reference_line(grid, reference, reference_fraction)
    return found if found in grid.lines else None


def _entry(
    grid: Grid,
    line: Line,
    task: str,
    other: Line | None,
    expected: set[int],
    alpha: float,
    rng: np.random.Generator | None,
) -> _Entry:
    tasks = list(grid.tasks) if task == MEAN else [task]
    outcome, broken = grid.outcome(line, tasks)
    notes = [f"seeds incomplete: {_listed(broken)}"] if broken else []
    if line[0] not in FIXED:
        absent = expected - set(outcome.seeds if outcome else ()) - set(broken)
        notes += [f"seeds missing: {_listed(absent)}"] if absent else []
    if outcome is None:
        return _Entry(line, task, None, None, line == other, (*notes, "no complete seed"))
    found = estimate(outcome, alpha)
    notes += [found.note] if found.note else []
    if line == other:
        return _Entry(line, task, found, None, True, tuple(notes))
    paired, reasons = _difference(grid, outcome, other, tasks, alpha, rng)
    # One seed is said once, by the row itself.
    notes += [reason for reason in reasons if reason not in notes]
    return _Entry(line, task, found, paired, False, tuple(notes))


def _difference(
    grid: Grid,
    outcome: Outcome,
    rival: Line | None,
    tasks: Sequence[str],
    alpha: float,
    rng: np.random.Generator | None,
) -> tuple[Difference | None, list[str]]:
    """The comparison with the reference, or why there is none."""
    other = grid.outcome(rival, tasks)[0] if rival else None
    if other is None:
        return None, ["the reference has no complete outcomes here"]
    if not common_seeds(outcome, other):
        return None, ["no seed in common with the reference"]
    paired = difference(outcome, other, alpha, rng)
    reasons = [f"difference: {paired.note}"] if paired.note else []
    if paired.dropped:
        reasons.append(f"seeds unpaired: {_listed(paired.dropped)}")
    return paired, reasons


def _corrected(entries: list[_Entry], alpha: float) -> list[_Entry]:
    """Fill the adjusted p-values and verdicts of both families."""
    result = list(entries)
    for primary, correct in ((True, holm), (False, benjamini_hochberg)):
        places = [i for i, one in enumerate(entries) if (one.task == MEAN) is primary]
        tested = {i: one for i in places if (one := entries[i].difference) is not None}
        for i, one in zip(tested, correct(list(tested.values()), alpha), strict=True):
            result[i] = dataclasses.replace(entries[i], difference=one)
    return result


def _record(entry: _Entry, alpha: float) -> dict[str, object]:
    """One line of the summary; columns left out become nan."""
    verdict = "reference" if entry.is_reference else "not tested"
    record: dict[str, object] = {"row": entry.line[0], "fraction": entry.line[1]}
    record |= {"task": entry.task, "n_seeds": 0, "n_pairs": 0, "n_items": 0, "verdict": verdict}
    record |= {"method": "", "test": "", "note": "; ".join(entry.notes)}
    if (found := entry.estimate) is not None:
        for name in _ESTIMATED:
            record[name] = getattr(found, name)
    if (paired := entry.difference) is not None:
        for name in _PAIRED:
            record[name] = getattr(paired, name)
        record |= {"diff_low": paired.ci_low, "diff_high": paired.ci_high}
        record |= {"sd_diff": paired.sd_seeds, "n_pairs": paired.n_seeds}
        record["detectable"] = detectable(paired.spread, alpha)
        if not math.isnan(paired.sd_seeds):
            needed = [seeds_needed(paired.sd_seeds, delta, alpha) for delta in DELTAS]
            record |= dict(zip(("seeds_1", "seeds_2", "seeds_3"), needed, strict=True))
    return record


def _listed(seeds: Collection[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))
