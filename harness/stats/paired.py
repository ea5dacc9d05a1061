"""Paired differences to a reference on the same seeds and items, and their tests.

`p` belongs to the two-way interval of the table of differences: it speaks about new seeds and new
items of the same kind. `p_sign_flip` speaks about these items only and needs no model; with R seeds
it cannot go below `p_floor` = 2/2^R, which is shown beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.stats.grid import FloatArray, Outcome
from harness.stats.interval import Spread, describe, spread

Verdict = Literal["better", "worse", "tie", "reference", "not tested"]

MCNEMAR = "exact McNemar"
#: Up to this many seeds all 2^R sign flips are counted; beyond it they are sampled.
EXACT_SEEDS = 20
_SAMPLES = 100_000
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Difference:
    """Method minus reference, with its interval and tests.

    `ci_low`, `ci_high` hold at the nominal level. The fields from `p_holm` on are nan, and the
    verdict "not tested", until a correction over a family fills them (`multiple`). `dropped` names
    the seeds that only one side had. `test` says where `p` comes from.
    """

    diff: float
    ci_low: float
    ci_high: float
    p: float
    p_sign_flip: float
    p_floor: float
    p_improvement: float
    sd_seeds: float
    n_seeds: int
    n_items: int
    test: str
    note: str
    dropped: tuple[int, ...]
    spread: Spread
    p_holm: float = math.nan
    p_bh: float = math.nan
    adjusted_low: float = math.nan
    adjusted_high: float = math.nan
    verdict: Verdict = "not tested"


def common_seeds(method: Outcome, reference: Outcome) -> tuple[int, ...]:
    """The seeds on which two outcomes can be paired; a fixed checkpoint pairs with every seed."""
    if method.fixed or reference.fixed:
        return reference.seeds if method.fixed else method.seeds
    return tuple(seed for seed in method.seeds if seed in set(reference.seeds))


def difference(
    method: Outcome,
    reference: Outcome,
    alpha: float = 0.05,
    rng: np.random.Generator | None = None,
) -> Difference:
    """Compare two outcomes on their common seeds; `rng` is needed beyond 20 seeds only.

    A fixed checkpoint (the base model) is set against every seed of the other row: the difference
    then speaks about new seeds of that row and about this one checkpoint.
    """
    a, b, dropped = aligned(method, reference)
    tables = {task: a.tables[task] - b.tables[task] for task in a.tables}
    found = spread(tables, differences=True, clusters=a.clusters)
    by_seed = a.seed_means - b.seed_means
    p, test = found.p_value(), found.method
    if by_seed.size == 1 and len(tables) == 1 and a.clusters is None:
        (task,) = tables
        if _binary(a.tables[task]) and _binary(b.tables[task]):
            p, test = mcnemar(a.tables[task][0], b.tables[task][0]), MCNEMAR
    low, high = found.interval(alpha)
    return Difference(
        diff=found.mean,
        ci_low=low,
        ci_high=high,
        p=p,
        p_sign_flip=sign_flip(by_seed, rng),
        p_floor=2.0 / 2.0**by_seed.size,
        p_improvement=improvement(a.seed_means, b.seed_means),
        sd_seeds=float(by_seed.std(ddof=1)) if by_seed.size > 1 else math.nan,
        n_seeds=by_seed.size,
        n_items=sum(table.shape[1] for table in tables.values()),
        test=test,
        note=describe(found, by_seed.size, method.fixed and reference.fixed),
        dropped=dropped,
        spread=found,
    )


def aligned(method: Outcome, reference: Outcome) -> tuple[Outcome, Outcome, tuple[int, ...]]:
    """Both sides on the same seeds, and the seeds that were left out."""
    if set(method.tables) != set(reference.tables):
        raise ValueError(
            f"method has the tasks {sorted(method.tables)!r}; expected those of the reference, "
            f"{sorted(reference.tables)}"
        )
    for task in method.tables:
        if method.items[task] != reference.items[task]:
            raise ValueError(
                f"task {task!r} has {len(method.items[task])!r} items for the method that are not "
                f"the {len(reference.items[task])} of the reference; "
                "expected the same items in the same order"
            )
    if method.clusters != reference.clusters:
        raise ValueError("method and reference differ in clusters; expected the same for both")
    seeds = common_seeds(method, reference)
    if not seeds:
        raise ValueError(
            f"method has the seeds {method.seeds!r}, the reference {reference.seeds!r}; "
            "expected at least one in common"
        )
    dropped: set[int] = set()
    if not method.fixed and not reference.fixed:
        dropped = set(method.seeds) ^ set(reference.seeds)
    return _on(method, seeds), _on(reference, seeds), tuple(sorted(dropped))


def _on(outcome: Outcome, seeds: tuple[int, ...]) -> Outcome:
    """An outcome on the given seeds, in their order; a fixed one is repeated."""
    at = [0 if outcome.fixed else outcome.seeds.index(seed) for seed in seeds]
    tables = {task: table[at] for task, table in outcome.tables.items()}
    return Outcome(seeds, tables, outcome.items, clusters=outcome.clusters)


def _binary(table: FloatArray) -> bool:
    return bool(((table == 0.0) | (table == 1.0)).all())


def sign_flip(differences: npt.ArrayLike, rng: np.random.Generator | None = None) -> float:
    """Two-sided sign-flip test of per-seed differences [R]: how rare is a sum this far from 0?

    Exact over all 2^R flips up to 20 seeds. Beyond, 100,000 flips drawn from `rng` with
    p = (b + 1)/(B + 1), which is never 0 (Phipson and Smyth 2010).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"differences {differences!r}; expected a finite one-dimensional array")
    # Sums that are equal on paper differ by rounding; they count as equally extreme.
    limit = abs(float(values.sum())) - _TOLERANCE
    if values.size <= EXACT_SEEDS:
        # A flip and its mirror image are equally extreme: fix the first sign.
        sums = values[:1]
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= limit))
    if rng is None:
        raise ValueError(f"rng None with {values.size} seeds; expected a numpy Generator beyond 20")
    extreme = 0
    for _ in range(10):
        signs = rng.integers(0, 2, size=(_SAMPLES // 10, values.size), dtype=np.int8) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ values) >= limit))
    return (extreme + 1) / (_SAMPLES + 1)


def mcnemar(method: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Exact two-sided McNemar test of two 0/1 outcomes on the same items [n]."""
    a, b = np.asarray(method, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not (_binary(a) and _binary(b)):
        raise ValueError(f"outcomes of shapes {a.shape!r}, {b.shape!r}; expected 0/1, same length")
    won, lost = int(np.sum(a > b)), int(np.sum(a < b))
    if won + lost == 0:
        return 1.0
    return min(1.0, float(2.0 * stats.binom.cdf(min(won, lost), won + lost, 0.5)))


def improvement(method: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """P(A > B), ties half: over all pairs of a run of the method and a run of the reference.

    The chance that one new run of the method beats one new run of the reference on these items
    (Mann and Whitney's U / (R_A R_B); Agarwal and others, 2108.13264).
    """
    a, b = np.asarray(method, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    gaps = a[:, None] - b[None, :]
    ties = np.abs(gaps) <= _TOLERANCE
    return float(np.mean((gaps > 0) & ~ties) + 0.5 * np.mean(ties))
