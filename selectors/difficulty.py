"""Keep what the base model cannot solve yet.

Difficulty is 1 - the share of sampled answers that the pool's own answer calls right. LIMO
(2502.03387) and s1 (2501.19393) filter so: drop what a small model solves, keep what a strong one
solves now and then (1 to 3 times in 32, here `k = 32, band = [0.9, 0.97]`). The rate has only
k + 1 values, so ties are many and keep pool order.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from harness import Context, Decodes, Pool, Request, Scores, ScoreSelector


@dataclass(frozen=True)
class Difficulty(ScoreSelector):
    """Scores an example by its difficulty, hardest first.

    `k` decodes of the base model at `temperature`. `band`: lowest and highest difficulty wanted;
    examples inside come first, hardest first, then the others by their distance from the band.
    `column`: a numeric pool column that says the difficulty (such as the number of steps) instead
    of the model; it need not lie between 0 and 1.
    """

    k: int = 8
    temperature: float = 1.0
    band: tuple[float, float] | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        Decodes(self.k, self.temperature)  # refuses impossible values
        if self.band is not None and self.band[0] > self.band[1]:
            raise ValueError(f"band is {self.band}; expected the lower bound first")

    def requests(self) -> tuple[Request[Any], ...]:
        """Graded decodes, unless a column says the difficulty."""
        return () if self.column is not None else (Decodes(self.k, self.temperature),)

    def score(self, pool: Pool, context: Context) -> Scores:
        """Difficulty, or minus the distance from the band."""
        if self.column is not None:
            difficulty = _numbers(pool, self.column)
        else:
            _check_answers(pool)
            difficulty = 1.0 - context.get(Decodes(self.k, self.temperature)).mean(axis=1)
        context.record(difficulty=difficulty)
        if self.band is None:
            return difficulty
        low, high = self.band
        # 1 - rate is rounded: 1 - 0.9 must count as inside a band that ends at 0.1.
        outside = np.maximum(np.maximum(low - difficulty, difficulty - high), 0.0)
        inside = 1.0 + difficulty - difficulty.min()
        return np.where(outside <= 1e-9, inside, -outside)


def _numbers(pool: Pool, column: str) -> Scores:
    values = pool.column(column)
    for name, value in zip(pool.ids, values, strict=True):
        if not isinstance(value, Real) or not np.isfinite(float(value)):
            raise ValueError(
                f"pool column {column!r} of example {name!r} is {value!r}; expected a finite number"
            )
    return np.array([float(value) for value in values])


def _check_answers(pool: Pool) -> None:
    answers: tuple[Any, ...] = pool.column("answer")
    missing = [name for name, a in zip(pool.ids, answers, strict=True) if a is None or a == ""]
    if missing:
        raise ValueError(
            f"pool column 'answer' is empty for {len(missing)} of {len(pool)} examples, "
            f"the first {missing[0]!r}; expected an answer to grade against (or use column = ...)"
        )
