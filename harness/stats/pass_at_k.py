"""Several decodes per item: pass@k, the majority answer, and responses cut by the token limit.

They describe a row beside its accuracy, which stays the mean over decodes: they have no interval,
test or verdict. k is the number of decodes, so that pass@k is the share of items with any right
decode: 1 - C(n-c, k) / C(n, k), the unbiased estimator of arXiv 2107.03374, at k = n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.data.grading import normalise
from harness.stats.family import MEAN
from harness.stats.grid import FloatArray, pivot

COLUMNS = ("pass_at_k", "majority", "decodes", "truncated")
"""What `summarise` says about a row, fraction and task."""
_CELL = ["row", "fraction", "seed", "task"]
_RIGHT = 0
_BITS = np.int64(32)


def majority(
    items: npt.ArrayLike, correct: npt.ArrayLike, answers: Sequence[str | None] | pd.Series
) -> FloatArray:
    """Whether the answer that most decodes of an item give is right, by item: shape [items].

    `items` numbers the item of each decode from 0. An item scores [right among T] / |T|, where T
    are the classes of answers with the most votes: 1 or 0 without a tie, and with one what a fair
    coin would give. Right decodes are one class, wrong ones are classed by `normalise`, so two
    spellings of a formula that it cannot reduce split their votes. A wrong decode without an answer
    does not vote; an item without votes scores 0 (self-consistency, arXiv 2203.11171).
    """
    item, right = np.asarray(items, dtype=np.int64), np.asarray(correct, dtype=bool)
    size = int(item.max()) + 1 if item.size else 0
    code, text = pd.factorize(pd.Series(answers, dtype=object), sort=False)  # -1: no answer
    same: dict[object, int] = {}
    named = np.array([same.setdefault(normalise(t), len(same) + 1) for t in text], dtype=np.int64)
    group = np.full(item.shape, -1) if not len(named) else np.where(code < 0, -1, named[code])
    group = np.where(right, _RIGHT, group)
    votes = group >= 0
    ballot, count = np.unique((item[votes] << _BITS) | group[votes], return_counts=True)
    owner, kind = ballot >> _BITS, ballot & ((1 << _BITS) - 1)
    most = np.zeros(size, dtype=np.int64)
    np.maximum.at(most, owner, count)
    top = count == most[owner]
    tied = np.bincount(owner[top], minlength=size)
    won = np.bincount(owner[top & (kind == _RIGHT)], minlength=size)
    return won / np.maximum(tied, 1)


def summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """One line per row, fraction and task, plus the mean over tasks; columns `COLUMNS`.

    `outcomes` has one line per decode, with `answer` (missing where none was found) and
    `truncated` (missing where it was not recorded). Seeds count as they do for the accuracy: whole
    ones only. pass_at_k, at k = `decodes`, and majority are means over seeds and items; they are
    nan for one decode per item, and on the mean where tasks differ in decodes. `truncated` is the
    share of all responses of which it is known.
    """
    columns = ["row", "fraction", "task", *COLUMNS]
    if outcomes.empty:
        return pd.DataFrame(columns=columns)
    grid, cells = pivot(outcomes), _cells(outcomes)
    position = {key: at for at, key in enumerate(cells.index)}  # pandas looks keys up far slower
    lines = []
    for row, fraction in grid.lines:
        for name in (*grid.tasks, MEAN):
            tasks = list(grid.tasks) if name == MEAN else [name]
            outcome, _ = grid.outcome((row, fraction), tasks)
            seeds = outcome.seeds if outcome else ()
            chosen = [position[row, fraction, seed, task] for seed in seeds for task in tasks]
            lines.append((row, fraction, name, *_line(cells.iloc[chosen])))
    return pd.DataFrame(lines, columns=columns)


def _cells(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Means over the items of one seed and task, and counts of its responses."""
    item = outcomes.groupby([*_CELL, "item"], sort=False).ngroup().to_numpy()
    _, first, decodes = np.unique(item, return_index=True, return_counts=True)
    correct = outcomes["correct"].to_numpy(dtype=bool)
    items = outcomes[_CELL].iloc[first].reset_index(drop=True)
    items["pass_at_k"] = (np.bincount(item, weights=correct) > 0).astype(np.float64)
    items["majority"] = majority(item, correct, outcomes["answer"])
    items["decodes"] = decodes
    items["known"] = np.bincount(item, weights=outcomes["truncated"].notna())
    cut = outcomes["truncated"].fillna(False).to_numpy(dtype=bool)
    items["cut"] = np.bincount(item, weights=cut)
    how = dict.fromkeys(("pass_at_k", "majority"), "mean") | {"decodes": "max"}
    return items.groupby(_CELL).agg(how | dict.fromkeys(("known", "cut"), "sum"))


def _line(cells: pd.DataFrame) -> tuple[float, float, float, float]:
    """`COLUMNS` of some seeds and tasks; every task has the same seeds, so cells weigh the same."""
    known = float(cells["known"].sum())
    truncated = float(cells["cut"].sum()) / known if known else np.nan
    counts = cells["decodes"].unique()
    if len(counts) != 1:
        return np.nan, np.nan, np.nan, truncated
    decodes = float(counts[0])
    if decodes == 1:
        return np.nan, np.nan, decodes, truncated
    return float(cells["pass_at_k"].mean()), float(cells["majority"].mean()), decodes, truncated
