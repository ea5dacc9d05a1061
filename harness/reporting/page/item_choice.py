"""Which items come out differently between rows and between seeds; the ones worth showing.

An item's accuracy is its mean over decodes and seeds, never over items: what flips is told one by
one here, and whether the sum of it means anything is the main table's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting.results import CONTROLS, OWN, Cell, Results

Numbers = npt.NDArray[np.float64]
LIMIT = 140
"""Items that a page holds at most."""
TOP = 15
"""Items at the end of an order over all rows."""
TOP_ROW = 4
"""Items that one row wins or loses most, where there is room."""
ROWS, SEEDS = "rows", "seeds"
ORDERS = (ROWS, SEEDS)


@dataclass(frozen=True)
class Items:
    """Accuracy of every item in every row, at one fraction of the pool.

    `right` and `asked` are counts over seeds and decodes [rows, items]; `between` is the variance
    over seeds of an item's accuracy, nan where a row has one seed [rows, items].
    """

    keys: tuple[tuple[str, str], ...]
    rows: tuple[str, ...]
    fraction: float
    right: npt.NDArray[np.int64]
    asked: npt.NDArray[np.int64]
    between: Numbers
    reference: int | None
    judged: tuple[int, ...]

    @property
    def accuracy(self) -> Numbers:
        """Share right; nan where a row was not asked an item."""
        asked = np.where(self.asked > 0, self.asked, np.nan)
        share: Numbers = self.right / asked
        return share

    def change(self, row: int) -> Numbers | None:
        """Accuracy of a row minus the reference's, item by item; nan counts as no change."""
        if self.reference is None or row == self.reference:
            return None
        found = self.accuracy[row] - self.accuracy[self.reference]
        # Rounded, since means of thirds are equal on paper only.
        rounded: Numbers = np.round(np.nan_to_num(found), 9)
        return rounded

    def orders(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Positions by the variance of accuracy between rows, and by that between seeds."""
        judged = list(self.judged)
        between = np.nan_to_num(self.between[judged])
        return {
            ROWS: _order(_variance(self.accuracy[judged])),
            SEEDS: _order(between.mean(axis=0)),
        }


@dataclass(frozen=True)
class Shown:
    """Positions of the items on a page, by list; each row has what it wins and what it loses."""

    orders: Mapping[str, tuple[int, ...]]
    won: Mapping[str, tuple[int, ...]]
    lost: Mapping[str, tuple[int, ...]]

    @property
    def positions(self) -> tuple[int, ...]:
        """Every item once, in the order of the tasks."""
        lists = (*self.orders.values(), *self.won.values(), *self.lost.values())
        return tuple(sorted({position for each in lists for position in each}))


def finished(results: Results, row: str) -> tuple[Cell, ...]:
    """Finished cells of a row at the middle fraction, or at its own where it has no other."""
    cells = results.groups.get((row, OWN.get(row, results.middle)), ())
    return tuple(cell for cell in cells if cell.status == "done")


def gather(results: Results) -> Items | None:
    """Counts of every item at the middle fraction; None where nothing is finished."""
    fraction = results.middle
    rows = [row for row in results.rows if finished(results, row)]
    if not rows:
        return None
    outcomes = results.outcomes
    own = outcomes["row"].map(OWN).fillna(fraction)
    part = outcomes[outcomes["fraction"] == own]
    keys = _keys(results, part)
    by_seed = part.groupby(["row", "task", "item", "seed"])["correct"].agg(["sum", "size"])
    sums = by_seed.groupby(["row", "task", "item"]).sum()
    shares = (by_seed["sum"] / by_seed["size"]).groupby(["row", "task", "item"])
    spread = shares.var(ddof=0).where(shares.size() > 1)

    def table(values: pd.Series[float]) -> pd.DataFrame:
        return pd.DataFrame(
            {row: values[row].reindex(keys) for row in rows}, columns=rows, index=keys
        )

    judged = [i for i, row in enumerate(rows) if row not in (*CONTROLS, *results.again)]
    return Items(
        keys=tuple(keys),
        rows=tuple(rows),
        fraction=fraction,
        right=table(sums["sum"]).fillna(0).to_numpy(np.int64).T,
        asked=table(sums["size"]).fillna(0).to_numpy(np.int64).T,
        between=table(spread).to_numpy(np.float64).T,
        reference=rows.index(results.reference) if results.reference in rows else None,
        judged=tuple(judged if len(judged) > 1 else range(len(rows))),
    )


def _keys(results: Results, part: pd.DataFrame) -> pd.MultiIndex:
    """Task and item, tasks in the order of the protocol."""
    found = part[["task", "item"]].drop_duplicates()
    place = {task: i for i, task in enumerate(results.tasks)}
    found = found.assign(place=found["task"].map(place)).sort_values(["place", "item"])
    return pd.MultiIndex.from_frame(found[["task", "item"]])


def _variance(accuracy: Numbers) -> Numbers:
    """Variance over the rows that were asked an item."""
    known = ~np.isnan(accuracy)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.nansum(accuracy, axis=0) / count
    variance: Numbers = np.nansum((accuracy - mean) ** 2, axis=0) / count
    return variance


def _order(values: Numbers) -> npt.NDArray[np.int64]:
    """Positions with a value above 0, the largest first; equal ones keep their order."""
    rounded = np.round(values, 9)
    return np.array([p for p in np.argsort(-rounded, kind="stable") if rounded[p] > 0], np.int64)


def choose(items: Items) -> Shown:
    """The items that a page shows."""
    orders = {name: _whole(order[:TOP]) for name, order in items.orders().items()}
    used = len(set().union(*orders.values()))
    changes = {
        name: change for i, name in enumerate(items.rows) if (change := items.change(i)) is not None
    }
    each = min(TOP_ROW, (LIMIT - used) // (2 * len(changes))) if changes else 0
    won = {row: _whole(_order(change)[:each]) for row, change in changes.items()}
    lost = {row: _whole(_order(-change)[:each]) for row, change in changes.items()}
    return Shown(orders, won, lost)


def _whole(positions: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(position) for position in positions)
