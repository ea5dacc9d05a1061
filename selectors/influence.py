"""Drop what does not help right answers, or what helps wrong ones.

Our reconstruction of "Influence Functions for Efficient Data Selection in Reasoning" (2510.06108).
At the model fine-tuned on the whole pool, s_C(d) is the mean influence of example d on the queries
that fine-tuning put right (C), s_I(d) on those that it spoiled (I); r_C and r_I are the mean over
queries of d's rank among all examples, because raw influence has long tails. High s_C is good, high
s_I is bad. Influence grows with response length, and C and I may hold a handful of queries: read
this row beside `length` and a length-matched `random`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from harness import Context, InfluenceTable, Pool, Request, Scores, ScoreSelector, influence

if TYPE_CHECKING:
    from collections.abc import Mapping

    Columns = Mapping[str, npt.NDArray[np.float32]]
    Table = Mapping[str, npt.NDArray[np.float64]]

MISSING = {
    "C": "no query was answered wrong before and right after fine-tuning (C is empty)",
    "I": "no query was answered right before and wrong after fine-tuning (I is empty)",
}
ONLY = {"C": "incorrect", "I": "correct"}
"""The strategy that does without a side."""
STREAM = 103
"""Parts the bootstrap's draws from others of the same seed."""


@dataclass(frozen=True)
class Influence(ScoreSelector):
    """Scores an example by how late it is dropped.

    correct: drop {low s_C} and {low r_C} at once, one common quantile widened until the drop budget
    is filled; that is the order of max(rank of s_C, rank of r_C), smallest first. incorrect: the
    same with high s_I and high r_I. combined: both orders take turns (correct first), each dropping
    its next example that is still there, so each fills half of the drop budget; with
    `mix = "rank"` examples go by the smaller of their two places. Equal places go by the sum of the
    two ranks, then by the rank of s, then the later one in the pool is dropped first.

    `curvature`, `fisher`, `damping`, `layers`, `loss`: see CurvatureOptions. `aggregate`: s is the
    mean or the sum over queries. `whose` answers count: those after fine-tuning, those before with
    the opposite sign, or the contrast of both. `completion`: for C the model's own right answer or
    the reference one. `decodes`: of several right (wrong) decodes of a query, the mean or the sum.
    `max_queries`: at most so many queries per side for the ranks, drawn with `query_seed`.
    `scoring`: how s is computed (see `influence_scores`).

    How stable the choice is comes from `replicates` bootstrap draws of the queries behind the ranks
    (0: not asked): the record of a cell has the overlap of what they keep with what all keep, and
    the scores beside the subset, per example, the 2.5% and 97.5% quantiles of its place.
    """

    strategy: Literal["correct", "incorrect", "combined"] = "combined"
    mix: Literal["half", "rank"] = "half"
    curvature: Literal["identity", "ekfac", "ekfac+cg", "projected"] = "ekfac"
    fisher: Literal["true", "empirical"] = "true"
    damping: float = 0.1
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"
    aggregate: Literal["mean", "sum"] = "mean"
    whose: Literal["after", "before", "contrast"] = "after"
    completion: Literal["own", "reference"] = "own"
    decodes: Literal["mean", "sum"] = "mean"
    max_queries: int | None = 64
    query_seed: int = 0
    scoring: Literal["auto", "forward", "ghost", "backward"] = "auto"
    replicates: int = 1000

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"damping is {self.damping}; expected at least 0")
        if self.replicates < 0:
            raise ValueError(f"replicates is {self.replicates}; expected at least 0")
        if self.whose == "before" and self.completion == "reference":
            raise ValueError(
                "completion is 'reference' with whose = 'before', which looks at no right answer "
                "of C; expected completion = 'own'"
            )

    def requests(self) -> tuple[Request[Any], ...]:
        """The influence of the pool on C and I."""
        return (self._request(),)

    def _request(self) -> InfluenceTable:
        return InfluenceTable(
            influence.CurvatureOptions(
                kind=self.curvature,
                fisher=self.fisher,
                damping=self.damping,
                layers=self.layers,
                loss=self.loss,
            ),
            aggregate=self.aggregate,
            whose=self.whose,
            completion=self.completion,
            decodes=self.decodes,
            max_queries=self.max_queries,
            query_seed=self.query_seed,
            method=self.scoring,
        )

    def score(self, pool: Pool, context: Context) -> Scores:
        """Place in the order of dropping: 0 is dropped first, n - 1 is kept longest."""
        scores = context.get(self._request())
        table = scores.table
        names = [name for name in ("s_C", "s_I", "r_C", "r_I") if name in table]
        context.record(**{name: table[name].to_numpy() for name in names})
        context.note(**table.attrs)
        order = self._order(table)
        if self.replicates:
            self._record_stability(pool, context, scores.per_query)
        return _places(order).astype(np.float64)

    def _order(self, table: "Table") -> npt.NDArray[np.int64]:
        """Positions in the order of dropping."""
        if self.strategy == "correct":
            return _order(table, "C", 1.0)
        if self.strategy == "incorrect":
            return _order(table, "I", -1.0)
        return _mixed(_order(table, "C", 1.0), _order(table, "I", -1.0), self.mix)

    def _record_stability(self, pool: Pool, context: Context, columns: "Columns") -> None:
        sides = {"correct": ("C",), "incorrect": ("I",)}.get(self.strategy, ("C", "I"))
        used = {side: columns[side] for side in sides}
        stability = influence.order_stability(
            pool.ids,
            used,
            self._order,
            rng=np.random.default_rng([self.query_seed, STREAM]),
            replicates=self.replicates,
            aggregate=self.aggregate,
        )
        context.attach("stability", **stability.budgets)
        context.record(place_low=stability.place_low, place_high=stability.place_high)
        drawn = {side: int(values.shape[1]) for side, values in used.items()}
        context.note(stability={"replicates": self.replicates, "queries": drawn})


def _order(table: "Table", side: str, sign: float) -> npt.NDArray[np.int64]:
    """Positions in the order in which one side drops them; `sign` makes low mean bad."""
    if f"s_{side}" not in table:
        raise ValueError(
            f"influence: {MISSING[side]}; expected at least one such query: ask more queries, "
            f"train longer, or use strategy = {ONLY[side]!r}, which does without"
        )
    s = _ranks(sign * np.asarray(table[f"s_{side}"], np.float64))
    r = _ranks(sign * np.asarray(table[f"r_{side}"], np.float64))
    later_first = -np.arange(len(s))
    order: npt.NDArray[np.int64] = np.lexsort((later_first, s, s + r, np.maximum(s, r)))
    return order


def _ranks(values: Scores) -> Scores:
    """Ranks from 1, smallest value first; equal values share the mean of their ranks."""
    ordered = np.sort(values)
    left, right = (
        np.searchsorted(ordered, values, "left"),
        np.searchsorted(ordered, values, "right"),
    )
    ranks: Scores = (left + right + 1) / 2
    return ranks


def _places(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def _mixed(
    correct: npt.NDArray[np.int64], incorrect: npt.NDArray[np.int64], mix: str
) -> npt.NDArray[np.int64]:
    if mix == "rank":
        first, second = _places(correct), _places(incorrect)
        later_first = -np.arange(len(correct))
        keys = (later_first, first + second, np.minimum(first, second))
        order: npt.NDArray[np.int64] = np.lexsort(keys)
        return order
    # Each side is asked in turn for its next example that is still there.
    dropped: dict[int, None] = {}
    turns = iter(correct.tolist()), iter(incorrect.tolist())
    while len(dropped) < len(correct):
        upcoming = next(p for p in turns[len(dropped) % 2] if p not in dropped)
        dropped[upcoming] = None
    return np.array(list(dropped), dtype=np.int64)
