"""What every row kept of the pool and how it scored it, and which examples are worth showing.

A page cannot hold a pool. It shows the examples that lie at the ends of a few orders; which these
are follows from the selections alone, so that a run can keep their texts and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting.results import CONTROLS, FULL, Results

Numbers = npt.NDArray[np.float64]
LIMIT = 240
"""Examples that a page holds at most."""
TOP = 15
"""Examples at the end of an order over all rows."""
TOP_CLASS = 3
"""Examples of each planted class that are shown of such an order, however far down."""
TOP_ROW = 8
"""Examples at each end of one row's own order, where there is room."""
KEPT, PRUNED, APART = "kept", "pruned", "apart"
ORDERS = (KEPT, PRUNED, APART)


@dataclass(frozen=True)
class Chosen:
    """One row: how often it kept each example, by fraction, and its scores where it has any.

    `counts` and `seeds` follow the fractions; every array follows the ids of the pool. Scores are
    those of the first seed: they do not depend on the fraction.
    """

    row: str
    fractions: tuple[float, ...]
    counts: tuple[npt.NDArray[np.int64], ...]
    seeds: tuple[int, ...]
    scores: pd.DataFrame

    @property
    def share(self) -> Numbers:
        """Share of the row's subsets that hold an example: mean over seeds, then fractions."""
        parts = [count / n for count, n in zip(self.counts, self.seeds, strict=True)]
        mean: Numbers = np.mean(parts, axis=0)
        return mean

    @property
    def score(self) -> Numbers | None:
        """The score by which it chose, or None."""
        return self.scores["score"].to_numpy(np.float64) if "score" in self.scores else None


@dataclass(frozen=True)
class Choices:
    """All rows that chose, and what the pool says of its examples."""

    ids: tuple[str, ...]
    classes: tuple[str | None, ...]
    rows: tuple[Chosen, ...]
    judged: tuple[Chosen, ...]

    @property
    def share(self) -> Numbers:
        """Mean keep share over the judged rows."""
        mean: Numbers = np.mean([chosen.share for chosen in self.judged], axis=0)
        return mean

    @property
    def scored(self) -> tuple[Chosen, ...]:
        """Rows with a score."""
        return tuple(chosen for chosen in self.rows if chosen.score is not None)

    def orders(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Positions by keep share, by pruning and by disagreement, the most telling first.

        Disagreement is the variance of the keep share between rows. Where that is equal the
        places that the rows' scores give decide, and then the order of the pool.
        """
        places = self._places()
        middle, spread = places.mean(axis=0), places.std(axis=0)
        apart = np.var([chosen.share for chosen in self.judged], axis=0)
        return {
            KEPT: _order(-self.share, -middle),
            PRUNED: _order(self.share, middle),
            APART: _order(-apart, -spread),
        }

    def _places(self) -> Numbers:
        """Share of the pool that each judged row with a score puts at or below an example."""
        scores = [chosen.score for chosen in self.judged if chosen.score is not None]
        if not scores:
            return np.zeros((1, len(self.ids)))
        return np.array([pd.Series(s).rank(pct=True).fillna(0.0) for s in scores], dtype=np.float64)


@dataclass(frozen=True)
class Shown:
    """Positions of the examples on a page, by list; a row has its best and its worst.

    A list over all rows starts with its first `TOP` and goes on with the first of each class, in
    order: filtered by a class it still shows the first examples of that class.
    """

    orders: Mapping[str, tuple[int, ...]]
    best: Mapping[str, tuple[int, ...]]
    worst: Mapping[str, tuple[int, ...]]

    @property
    def positions(self) -> tuple[int, ...]:
        """Every example once, in the order of the pool."""
        lists = (*self.orders.values(), *self.best.values(), *self.worst.values())
        return tuple(sorted({position for each in lists for position in each}))


def gather(results: Results) -> Choices | None:
    """What the stored selections say; None where no row chose."""
    found: dict[str, list[tuple[float, list[pd.DataFrame]]]] = {}
    ids = None if results.pool is None else list(results.pool["id"])
    for row, fraction in results.groups:
        stored = list(results.selections(row, fraction).values())
        if ids is None and stored:
            ids = list(stored[0]["id"])
        # After the pool was changed, cells that were not run again still name the old one.
        frames = [frame for frame in stored if set(frame["id"]) == set(ids or ())]
        if frames and row != FULL:
            found.setdefault(row, []).append((fraction, frames))
    if not found or ids is None:
        return None
    rows = tuple(_chosen(row, parts, ids) for row, parts in found.items())
    aside = (*CONTROLS, results.reference, *results.again)
    judged = tuple(r for r in rows if r.row not in aside)
    return Choices(tuple(ids), _classes(results, len(ids)), rows, judged or rows)


def _chosen(row: str, parts: list[tuple[float, list[pd.DataFrame]]], ids: list[str]) -> Chosen:
    counts = []
    for _, frames in parts:
        flags = [frame.set_index("id")["chosen"].loc[ids].to_numpy(np.int64) for frame in frames]
        counts.append(np.sum(flags, axis=0))
    scores = parts[0][1][0].set_index("id").loc[ids].drop(columns="chosen")
    return Chosen(
        row=row,
        fractions=tuple(fraction for fraction, _ in parts),
        counts=tuple(counts),
        seeds=tuple(len(frames) for _, frames in parts),
        scores=scores.select_dtypes("number").reset_index(drop=True),
    )


def _classes(results: Results, size: int) -> tuple[str | None, ...]:
    if results.pool is None or "quality" not in results.pool:
        return (None,) * size
    return tuple(value if isinstance(value, str) else None for value in results.pool["quality"])


def _order(*keys: Numbers) -> npt.NDArray[np.int64]:
    """Positions by the first key, then the next; equal ones keep their order.

    Rounded, since means of thirds are equal on paper only.
    """
    return np.lexsort([np.round(key, 9) for key in reversed(keys)])


def choose(choices: Choices) -> Shown:
    """The examples that a page shows."""
    orders = {name: _ends(order, choices.classes) for name, order in choices.orders().items()}
    used = len(set().union(*orders.values()))
    scored = choices.scored
    each = min(TOP_ROW, max(0, LIMIT - used) // (2 * len(scored))) if scored else 0
    best, worst = {}, {}
    for chosen in scored if each else ():
        assert chosen.score is not None
        # Stable, and what has no score comes last in both directions.
        best[chosen.row] = _whole(np.argsort(-chosen.score, kind="stable")[:each])
        worst[chosen.row] = _whole(np.argsort(chosen.score, kind="stable")[:each])
    return Shown(orders, best, worst)


def _ends(order: npt.NDArray[np.int64], classes: tuple[str | None, ...]) -> tuple[int, ...]:
    """The first `TOP` of an order, then the first `TOP_CLASS` of each class."""
    taken, seen = [], dict.fromkeys(classes, 0)
    for place, position in enumerate(order):
        name = classes[position]
        if place < TOP or (name is not None and seen[name] < TOP_CLASS):
            taken.append(int(position))
        seen[name] += 1
    return tuple(taken)


def _whole(positions: Iterable[np.int64]) -> tuple[int, ...]:
    return tuple(int(position) for position in positions)
