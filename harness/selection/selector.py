"""The contract of a selector: what it is given, what it returns, how that is checked."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.selection.context import Context
from harness.selection.requests import Request

Positions = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selector(abc.ABC):
    """Chooses examples from a pool. Its fields are its hyper-parameters.

    A selector is a pure function of pool, budget and context: no fitted state, no global random
    generator. `stochastic` tells that it draws from `context.rng` and is redrawn for every seed.
    """

    stochastic: ClassVar[bool] = False

    def requests(self) -> tuple[Request[Any], ...]:
        """The costly things that this instance reads from its context; none by default."""
        return ()

    @abc.abstractmethod
    def select(self, pool: Pool, budget: int, context: Context) -> Positions:
        """Return `budget` distinct positions in `pool`, best first."""


@dataclass(frozen=True)
class ScoreSelector(Selector):
    """Keeps the examples with the highest scores; ties keep pool order."""

    @abc.abstractmethod
    def score(self, pool: Pool, context: Context) -> Scores:
        """Return one finite number per example; higher is better."""

    def select(self, pool: Pool, budget: int, context: Context) -> Positions:
        """The `budget` highest scores, best first."""
        return best(check_scores(self.score(pool, context), pool, type(self).__name__), budget)


def best(scores: Scores, budget: int) -> Positions:
    """Positions of the `budget` highest scores, best first; ties keep pool order."""
    return np.argsort(-scores, kind="stable")[:budget].astype(np.int64)


def check_scores(scores: npt.ArrayLike, pool: Pool, name: str) -> Scores:
    """`scores` as float64 [n]; ValueError where the shape is wrong or a value is not finite."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (len(pool),):
        raise ValueError(f"{name}: scores have shape {array.shape}; expected ({len(pool)},)")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(
            f"{name}: score of example {pool.ids[wrong[0]]!r} is {array[wrong[0]]}; "
            f"expected finite numbers ({len(wrong)} of {len(pool)} are not)"
        )
    return array


def check_positions(positions: npt.ArrayLike, pool: Pool, budget: int, name: str) -> Positions:
    """`positions` as int64 [budget]; ValueError unless distinct and in range."""
    array = np.asarray(positions)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{name}: positions are {array.dtype} of shape {array.shape}; "
            f"expected integers of shape ({budget},)"
        )
    if len(array) != budget:
        raise ValueError(f"{name}: chose {len(array)} examples; expected {budget}")
    if len(array) and (array.min() < 0 or array.max() >= len(pool)):
        raise ValueError(
            f"{name}: positions reach from {array.min()} to {array.max()}; "
            f"expected 0 to {len(pool) - 1}"
        )
    if len(np.unique(array)) != budget:
        raise ValueError(f"{name}: positions repeat; expected {budget} distinct ones")
    return array.astype(np.int64)
