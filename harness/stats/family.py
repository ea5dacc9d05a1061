"""From outcomes to verdicts: every row against a reference, corrected over families of comparisons.

Reports, `cotsieve compare` and `cotsieve stats` all go this way: `compare` gives estimates and
paired differences with their intervals and p values, `corrected` the adjusted p values and the
verdicts. A verdict needs both an adjusted p below alpha and an adjusted interval that excludes 0.

Two families. The primary metric, task `MEAN` (familywise error): Holm over all rows and fractions.
The comparison with the k-th smallest of m p values gets its interval at level alpha / (m - k + 1),
the level at which Holm's step-down tests it; tied p values share the smallest level. For t tests
the interval excludes 0 exactly where that step rejects. These intervals agree with Holm's decision;
they do not all cover at once with 1 - alpha (only alpha / m for each would promise that).

Single tasks (exploratory, false discovery rate): Benjamini-Hochberg over rows x fractions x tasks.
With r of m rejected, all intervals are at level max(r, 1) alpha / m: among the rejected ones, at
most alpha are expected to miss (Benjamini and Yekutieli, JASA 100, 2005).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from harness.stats.grid import FIXED, FloatArray, Grid, Line, Outcome, pivot
from harness.stats.interval import Estimate, estimate
from harness.stats.paired import Difference, Verdict, common_seeds, difference

MEAN = "mean"
#: Rows that have one fraction of their own, whatever the grid.
SINGLE = ("base", "full")

SUMMARY_COLUMNS = (
    "row", "fraction", "task", "mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items",
    "diff", "diff_low", "diff_high", "p", "p_sign_flip", "p_holm", "verdict",
    "p_floor", "p_bh", "p_improvement", "adjusted_low", "adjusted_high", "sd_diff", "n_pairs",
    "detectable", "seeds_1", "seeds_2", "seeds_3", "method", "test", "note",
)  # fmt: skip
_ESTIMATED = ("mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items", "method")
_PAIRED = (
    "diff", "p", "p_sign_flip", "p_floor", "p_improvement", "p_holm", "p_bh",
    "adjusted_low", "adjusted_high", "verdict", "test", "detectable",
)  # fmt: skip

K = TypeVar("K", bound=Hashable)
Correction = Callable[[Sequence[Difference], float], list[Difference]]


@dataclass(frozen=True)
class Sides:
    """A row's own outcome, and the outcomes of the row and of the reference that are paired."""

    own: Outcome | None = None
    pair: tuple[Outcome, Outcome] | None = None


@dataclass(frozen=True)
class Comparison:
    """A row on one task, or on the mean over tasks; None where there are no outcomes for it."""

    estimate: Estimate | None = None
    difference: Difference | None = None


def compare(
    sides: Mapping[K, Sides], alpha: float, rng: np.random.Generator | None = None
) -> dict[K, Comparison]:
    """Estimates and differences by the keys of `sides`, not corrected; `rng` as in `difference`."""
    return {
        key: Comparison(
            estimate(each.own, alpha) if each.own else None,
            difference(*each.pair, alpha, rng) if each.pair else None,
        )
        for key, each in sides.items()
    }


def corrected(
    family: Mapping[K, Comparison], correction: Correction, alpha: float
) -> dict[K, Comparison]:
    """The family with the adjusted p values and verdicts of `holm` or `benjamini_hochberg`."""
    tested = {key: each.difference for key, each in family.items() if each.difference}
    adjusted = dict(zip(tested, correction(list(tested.values()), alpha), strict=True))
    return {
        key: dataclasses.replace(each, difference=adjusted.get(key)) for key, each in family.items()
    }


def holm(family: Sequence[Difference], alpha: float = 0.05) -> list[Difference]:
    """The family with `p_holm`, adjusted intervals and verdicts."""
    p = _p_values(family)
    smaller = (p[None, :] < p[:, None]).sum(axis=1)
    return _decided(family, "p_holm", _adjusted(p, "holm"), alpha / (len(p) - smaller), alpha)


def benjamini_hochberg(family: Sequence[Difference], alpha: float = 0.05) -> list[Difference]:
    """The family with `p_bh`, adjusted intervals and (exploratory) verdicts."""
    adjusted = _adjusted(_p_values(family), "fdr_bh")
    level = max(int((adjusted < alpha).sum()), 1) * alpha / max(len(family), 1)
    return _decided(family, "p_bh", adjusted, np.full(len(family), level), alpha)


def _p_values(family: Sequence[Difference]) -> FloatArray:
    p = np.array([each.p for each in family], dtype=np.float64)
    if not np.isfinite(p).all():
        raise ValueError(f"p values {p.tolist()!r}; expected a finite p for every comparison")
    return p


def _adjusted(p: FloatArray, method: str) -> FloatArray:
    if not p.size:
        return p
    from statsmodels.stats.multitest import multipletests  # takes a second to import

    adjusted: FloatArray = multipletests(p, method=method)[1]
    return adjusted


def _decided(
    family: Sequence[Difference], name: str, p: FloatArray, levels: FloatArray, alpha: float
) -> list[Difference]:
    """The family with its adjusted p as field `name`, intervals at `levels`, and verdicts."""
    decided = []
    for each, adjusted, level in zip(family, p.tolist(), levels.tolist(), strict=True):
        low, high = each.spread.interval(level)
        verdict: Verdict = "tie"
        if adjusted < alpha and not low <= 0.0 <= high:
            verdict = "better" if low > 0.0 else "worse"
        changes: dict[str, Any] = {name: adjusted, "adjusted_low": low, "adjusted_high": high}
        decided.append(dataclasses.replace(each, **changes, verdict=verdict))
    return decided


def summarise(
    outcomes: pd.DataFrame,
    reference: str = "random",
    alpha: float = 0.05,
    reference_fraction: float | None = None,
    seeds: Collection[int] | None = None,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Means, intervals, paired differences and verdicts of an experiment; `SUMMARY_COLUMNS`.

    `outcomes` has one line per decode: row, fraction, seed, task, item, decode, correct.
    A row is compared with the reference at the same fraction. `base` and `full` exist once, so they
    are compared with the reference at `reference_fraction`, by default its only or middle one (the
    lower of two). Where the reference exists once every row is compared with that.
    `seeds` are those of the experiment (default: all that any row has); a row's seeds that are
    missing, or lack items, are left out of its numbers and named in `note`. Undefined is nan.
    `rng` is needed only beyond 20 seeds, for the sign flips.
    """
    grid = pivot(outcomes)
    _check_tasks(grid)
    trained = [grid.recorded(line) for line in grid.lines if line[0] not in FIXED]
    known = grid.named(np.any(trained, axis=0)) if trained else ()
    expected = set(known if seeds is None else seeds)
    rivals = {line: rival(grid, line, reference, reference_fraction) for line in grid.lines}
    pairings = {
        (line, task): _pairing(grid, line, other, task, expected)
        for line, other in rivals.items()
        for task in (*grid.tasks, MEAN)
    }
    comparisons = compare({key: each.sides for key, each in pairings.items()}, alpha, rng)
    for primary, correction in ((True, holm), (False, benjamini_hochberg)):
        family = {key: one for key, one in comparisons.items() if (key[1] == MEAN) is primary}
        comparisons |= corrected(family, correction, alpha)
    records = []
    for (line, task), each in comparisons.items():
        verdict = "reference" if line == rivals[line] else "not tested"
        key = {"row": line[0], "fraction": line[1], "task": task}
        note = "; ".join(_notes(each, pairings[line, task]))
        records.append(key | {"verdict": verdict} | _record(each) | {"note": note})
    return pd.DataFrame(records, columns=list(SUMMARY_COLUMNS))


def _check_tasks(grid: Grid) -> None:
    if MEAN in grid.tasks:
        raise ValueError(f"task {MEAN!r}; expected another name: it stands for the mean over tasks")
    for task, items in grid.tasks.items():
        if np.isnan(grid.accuracy[:, :, items]).any(axis=2).all():
            raise ValueError(
                f"task {task!r}: no row and seed has all of its {items.stop - items.start!r} "
                "items; expected the same items for every row"
            )


def rival(
    grid: Grid, line: Line, reference: str, reference_fraction: float | None = None
) -> Line | None:
    """The line of the reference that a line is compared with; None where it has no outcomes."""
    row, fraction = line
    if row != reference and (row in SINGLE or reference in SINGLE):
        fractions = sorted(share for name, share in grid.lines if name == reference)
        if reference_fraction is not None and reference not in SINGLE:
            fraction = reference_fraction
        elif fractions:
            fraction = fractions[(len(fractions) - 1) // 2]
    return (reference, fraction) if (reference, fraction) in grid.lines else None


class _Pairing(NamedTuple):
    """A line's sides, what its own lacks, and why there is no pair (empty where there is one)."""

    sides: Sides
    gaps: list[str]
    unpaired: str = ""


def _pairing(grid: Grid, line: Line, other: Line | None, task: str, expected: set[int]) -> _Pairing:
    """The complete seeds of a line and of the reference `other`."""
    tasks = list(grid.tasks) if task == MEAN else [task]
    own, broken = grid.outcome(line, tasks)
    gaps = [f"seeds incomplete: {_listed(broken)}"] if broken else []
    if line[0] not in FIXED:
        absent = expected - set(own.seeds if own else ()) - set(broken)
        gaps += [f"seeds missing: {_listed(absent)}"] if absent else []
    if own is None:
        return _Pairing(Sides(), gaps, "no complete seed")
    if line == other:
        return _Pairing(Sides(own), gaps)
    reference = grid.outcome(other, tasks)[0] if other else None
    if reference is None:
        return _Pairing(Sides(own), gaps, "the reference has no complete outcomes here")
    if not common_seeds(own, reference):
        return _Pairing(Sides(own), gaps, "no seed in common with the reference")
    return _Pairing(Sides(own, (own, reference)), gaps)


def _notes(comparison: Comparison, pairing: _Pairing) -> list[str]:
    """What a line's numbers rest on."""
    notes = [*pairing.gaps]
    if comparison.estimate is not None:
        notes.append(comparison.estimate.note)
    notes.append(pairing.unpaired)
    if (paired := comparison.difference) is not None:
        notes.append(paired.note and f"difference: {paired.note}")
        notes += [f"seeds unpaired: {_listed(paired.dropped)}"] if paired.dropped else []
    return [note for note in notes if note]


def _record(comparison: Comparison) -> dict[str, Any]:
    """The numbers of a line of the summary; columns left out become nan."""
    record: dict[str, Any] = {"n_seeds": 0, "n_pairs": 0, "n_items": 0, "method": "", "test": ""}
    if comparison.estimate is not None:
        record |= {name: getattr(comparison.estimate, name) for name in _ESTIMATED}
    if (paired := comparison.difference) is not None:
        record |= {name: getattr(paired, name) for name in _PAIRED}
        record |= {"diff_low": paired.ci_low, "diff_high": paired.ci_high}
        record |= {"sd_diff": paired.sd_seeds, "n_pairs": paired.n_seeds}
        record |= {f"seeds_{delta}": n for delta, n in (paired.seeds_needed or {}).items()}
    return record


def _listed(seeds: Collection[Any]) -> str:
    return ", ".join(map(str, sorted(seeds)))
