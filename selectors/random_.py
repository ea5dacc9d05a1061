"""Uniform draws without replacement: the row that every other row is compared with.

Its draw changes with the seed of the run, because a single random subset is no baseline. Two
variants ask narrower questions: `stratify` keeps the shares of a column's values, `match` keeps the
response lengths of what another row chose (does a method do more than pick by length?).
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from harness import ChosenBy, Context, Pool, Positions, Request, Selector


@dataclass(frozen=True)
class Random(Selector):
    """Draws uniformly, or from strata.

    `stratify`: a pool column; every value gets its share of the budget, rounded by largest
    remainder. `match = "length"` with `of`, another row's name: as many examples from each of
    `bins` equally filled bins of response length as that row chose at the same fraction.
    """

    stochastic: ClassVar[bool] = True

    stratify: str | None = None
    match: Literal["length"] | None = None
    of: str | None = None
    bins: int = 10

    def __post_init__(self) -> None:
        if (self.match is None) != (self.of is None):
            raise ValueError(
                f"match is {self.match!r} and of is {self.of!r}; "
                "expected both (of names the row to match) or neither"
            )
        if self.match is not None and self.stratify is not None:
            raise ValueError(f"match and stratify = {self.stratify!r}; expected one of them")
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}; expected at least 1")

    def requests(self) -> tuple[Request[Any], ...]:
        """The other row's subset, where one is to be matched."""
        return (ChosenBy(self.of),) if self.of is not None else ()

    def select(self, pool: Pool, budget: int, context: Context) -> Positions:
        """Draw `budget` positions; their order is random too."""
        if self.of is not None:
            strata, counts = self._matched(pool, context.get(ChosenBy(self.of)))
            if sum(counts) != budget:
                raise ValueError(
                    f"row {self.of!r} chose {sum(counts)} examples; expected the budget {budget}"
                )
        elif self.stratify is not None:
            strata = _strata(pool.column(self.stratify))
            counts = _shares([len(members) for members in strata], budget, context.rng)
        else:
            strata, counts = [list(range(len(pool)))], [budget]
        drawn = [
            context.rng.choice(members, size=count, replace=False)
            for members, count in zip(strata, counts, strict=True)
        ]
        return context.rng.permutation(np.concatenate(drawn)).astype(np.int64)

    def _matched(self, pool: Pool, chosen: tuple[str, ...]) -> tuple[list[list[int]], list[int]]:
        lengths = pool.response_lengths
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, self.bins + 1)[1:-1]))
        bin_of = np.searchsorted(edges, lengths, side="left").tolist()
        strata = _strata(bin_of)
        wanted = set(chosen)
        return strata, [sum(pool.ids[p] in wanted for p in members) for members in strata]


def _strata(values: Any) -> list[list[int]]:
    """Positions grouped by value, in order of first appearance."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for position, value in enumerate(values):
        groups[value].append(position)
    return list(groups.values())


def _shares(sizes: list[int], budget: int, rng: np.random.Generator) -> list[int]:
    """Largest remainder; which of several equal remainders are rounded up is drawn."""
    exact = np.array(sizes) * budget / sum(sizes)
    counts = np.floor(exact + 1e-9).astype(int)
    order = rng.permutation(len(sizes))
    remainders = np.round((exact - counts)[order], 9)
    up = order[np.argsort(-remainders, kind="stable")][: budget - int(counts.sum())]
    counts[up] += 1
    return [int(count) for count in counts]
