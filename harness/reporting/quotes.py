"""Which texts a report quotes, and the files beside the records that hold them.

Of the testbed, which is made here, every text is kept; of any other data set only what a page
shows, each text up to `LIMIT` characters. A page cannot hold a pool: it shows the examples and
items at the ends of a few orders, which follow from selections and verdicts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.reporting.results import CONTROLS, FULL, OWN, Cell, Results

LIMIT = 2000
"""Characters of a text that results and pages hold at most."""
QUESTIONS = "questions.parquet"
EXAMPLE_COLUMNS = ("prompt", "response")
QUESTION_COLUMNS = ("question", "answer")
UNQUOTED = frozenset({"gpqa_diamond"})
"""Tasks whose authors ask that no question appears in plain text on the web (arXiv 2311.12022)."""
MOST_EXAMPLES, MOST_ITEMS = 240, 140
"""Examples and items that a page holds at most."""
TOP = 15
"""Entries at the end of an order over all rows."""
TOP_CLASS = 3
"""Examples of each planted class that are shown of such an order, however far down."""
TOP_EXAMPLES, TOP_ITEMS = 8, 4
"""Entries at each end of one row's own order, where there is room."""
KEPT, PRUNED, APART = "kept", "pruned", "apart"
ROWS, SEEDS = "rows", "seeds"
BEST, WORST, WON, LOST = "best", "worst", "won", "lost"
Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """A text as far as it was kept, and how many characters it has in full."""

    kept: str
    length: int

    @property
    def cut(self) -> bool:
        """Whether a part is missing."""
        return len(self.kept) < self.length


def examples_file(arm: str) -> str:
    """Name of the file that holds the texts of an arm's pool."""
    return "examples.parquet" if arm == "main" else f"examples-{arm}.parquet"


def kept_examples(frame: pd.DataFrame, shown: Sequence[str] | None) -> pd.DataFrame:
    """What is kept of a pool's `id`, `prompt` and `response`; `shown`: only these, shortened."""
    chosen = frame[["id", *EXAMPLE_COLUMNS]]
    if shown is not None:
        chosen = chosen[chosen["id"].isin(set(shown))]
    return _measured(chosen, EXAMPLE_COLUMNS, whole=shown is None)


def kept_questions(frame: pd.DataFrame, shown: Sequence[tuple[str, str]] | None) -> pd.DataFrame:
    """What is kept of `task`, `item`, `question` and `answer`; `shown`: only these, shortened."""
    chosen = frame[["task", "item", *QUESTION_COLUMNS]]
    chosen = chosen[~chosen["task"].isin(UNQUOTED)]
    if shown is not None:
        wanted = set(shown)
        pairs = zip(chosen["task"], chosen["item"], strict=True)
        chosen = chosen[[pair in wanted for pair in pairs]]
    return _measured(chosen, QUESTION_COLUMNS, whole=shown is None)


def _measured(frame: pd.DataFrame, columns: Sequence[str], whole: bool) -> pd.DataFrame:
    """Texts, cut unless `whole`, and beside each the characters that it has in full."""
    kept = frame.reset_index(drop=True)
    for name in columns:
        texts = [str(text) for text in kept[name]]
        kept[name] = texts if whole else [text[:LIMIT] for text in texts]
        kept[f"{name}_length"] = [len(text) for text in texts]
    return kept


def read_examples(folder: Path, arm: str) -> Mapping[str, tuple[Text, Text]]:
    """Prompt and response by id; empty where texts were not kept."""
    path = folder / examples_file(arm)
    if not path.is_file():
        return {}
    return _pairs(pd.read_parquet(path), "id", EXAMPLE_COLUMNS)


def read_questions(folder: Path) -> Mapping[tuple[str, str], tuple[Text, Text]]:
    """Question and right answer by task and item; empty where texts were not kept."""
    path = folder / QUESTIONS
    if not path.is_file():
        return {}
    frame = pd.read_parquet(path)
    frame["key"] = list(zip(frame["task"], frame["item"], strict=True))
    return _pairs(frame, "key", QUESTION_COLUMNS)


def _pairs(frame: pd.DataFrame, key: str, columns: tuple[str, str]) -> dict[Any, tuple[Text, Text]]:
    """Both texts of every line, each cut to `LIMIT`, by the line's key."""
    sides = []
    for name in columns:
        lengths = frame[f"{name}_length"]
        pairs = zip(frame[name], lengths, strict=True)
        sides.append([Text(str(text)[:LIMIT], int(length)) for text, length in pairs])
    return dict(zip(frame[key], zip(*sides, strict=True), strict=True))


@dataclass(frozen=True)
class Lists:
    """Positions of the entries on a page: by order over all rows, and by a row's own two lists."""

    orders: Mapping[str, tuple[int, ...]]
    own: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def positions(self) -> tuple[int, ...]:
        """Every entry once, in the order of the pool or of the tasks."""
        lists = [
            *self.orders.values(),
            *(each for own in self.own.values() for each in own.values()),
        ]
        return tuple(sorted({position for each in lists for position in each}))


def _own_lists(
    used: int, most: int, top: int, ends: Mapping[str, Mapping[str, Integers]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Up to `top` of every row's two orders, as far as `most` entries leave room."""
    rows = len(next(iter(ends.values())))
    each = min(top, max(0, most - used) // (2 * rows)) if rows else 0
    return {
        name: {row: tuple(order[:each].tolist()) for row, order in orders.items() if each}
        for name, orders in ends.items()
    }


def _order(*keys: Numbers) -> Integers:
    """Positions by the first key, then the next, the smallest first; equal ones keep their order.

    Rounded, since means of thirds are equal on paper only.
    """
    return np.lexsort([np.round(key, 9) for key in reversed(keys)])


@dataclass(frozen=True)
class RowChoices:
    """One row: how often it kept each example, by fraction, and its scores where it has any.

    `counts` and `seeds` follow the fractions; every array follows the ids of the pool. Scores are
    those of the first seed: they do not depend on the fraction.
    """

    row: str
    fractions: tuple[float, ...]
    counts: tuple[Integers, ...]
    seeds: tuple[int, ...]
    scores: pd.DataFrame

    @property
    def share(self) -> Numbers:
        """Share of the row's subsets that hold an example: mean over seeds, then fractions."""
        parts = [count / n for count, n in zip(self.counts, self.seeds, strict=True)]
        return np.asarray(np.mean(parts, axis=0))

    @property
    def score(self) -> Numbers | None:
        """The score by which it chose, or None."""
        return self.scores["score"].to_numpy(np.float64) if "score" in self.scores else None


@dataclass(frozen=True)
class Choices:
    """All rows that chose, and the planted class of every example.

    `judged` are the rows that orders over all rows rest on: selectors, without controls.
    """

    ids: tuple[str, ...]
    classes: tuple[str | None, ...]
    rows: tuple[RowChoices, ...]
    judged: tuple[RowChoices, ...]

    @property
    def share(self) -> Numbers:
        """Mean keep share over the judged rows."""
        return np.asarray(np.mean([chosen.share for chosen in self.judged], axis=0))

    def orders(self) -> Mapping[str, Integers]:
        """Positions by keep share, by pruning and by disagreement.

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

    def lists(self) -> Lists:
        """The examples that a page shows.

        A list over all rows starts with its first `TOP` and goes on with the first of each class,
        in order: filtered by a class it still shows the first examples of that class.
        """
        orders = {name: _ends(order, self.classes) for name, order in self.orders().items()}
        scores = {chosen.row: chosen.score for chosen in self.rows if chosen.score is not None}
        # Stable, and what has no score comes last in both directions.
        best = {row: np.argsort(-score, kind="stable") for row, score in scores.items()}
        worst = {row: np.argsort(score, kind="stable") for row, score in scores.items()}
        used = len(set().union(*orders.values()))
        ends = {BEST: best, WORST: worst}
        return Lists(orders, _own_lists(used, MOST_EXAMPLES, TOP_EXAMPLES, ends))

    def _places(self) -> Numbers:
        """Share of the pool that each judged row with a score puts at or below an example."""
        scores = [chosen.score for chosen in self.judged if chosen.score is not None]
        if not scores:
            return np.zeros((1, len(self.ids)))
        return np.array([pd.Series(s).rank(pct=True).fillna(0.0) for s in scores], dtype=np.float64)


def choices(results: Results) -> Choices | None:
    """What the stored selections say; None where no row chose."""
    stored: dict[str, list[tuple[float, list[pd.DataFrame]]]] = {}
    ids = None if results.pool is None else list(results.pool["id"])
    for row, fraction in results.groups:
        frames = list(results.selections(row, fraction).values())
        if ids is None and frames:
            ids = list(frames[0]["id"])
        # After the pool was changed, cells that were not run again still name the old one.
        frames = [frame for frame in frames if set(frame["id"]) == set(ids or ())]
        if frames and row != FULL:
            stored.setdefault(row, []).append((fraction, frames))
    if not stored or ids is None:
        return None
    rows = tuple(_row_choices(row, parts, ids) for row, parts in stored.items())
    aside = (*CONTROLS, results.reference, *results.again)
    judged = tuple(r for r in rows if r.row not in aside)
    return Choices(tuple(ids), _classes(results, len(ids)), rows, judged or rows)


def _row_choices(
    row: str, parts: list[tuple[float, list[pd.DataFrame]]], ids: list[str]
) -> RowChoices:
    counts = []
    for _, frames in parts:
        flags = [frame.set_index("id")["chosen"].loc[ids].to_numpy(np.int64) for frame in frames]
        counts.append(np.sum(flags, axis=0))
    scores = parts[0][1][0].set_index("id").loc[ids].drop(columns="chosen")
    return RowChoices(
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


def _ends(order: Integers, classes: tuple[str | None, ...]) -> tuple[int, ...]:
    """The first `TOP` of an order, then the first `TOP_CLASS` of each class."""
    taken, seen = [], dict.fromkeys(classes, 0)
    for place, position in enumerate(order):
        name = classes[position]
        if place < TOP or (name is not None and seen[name] < TOP_CLASS):
            taken.append(int(position))
        seen[name] += 1
    return tuple(taken)


@dataclass(frozen=True)
class Items:
    """Accuracy of every item in every row, at one fraction of the pool.

    An item's accuracy is its mean over decodes and seeds, never over items: whether the sum of what
    flips means anything is the main table's to say.

    `right` and `asked` are counts over seeds and decodes [rows, items]; `between` is the variance
    over seeds of an item's accuracy, nan where a row has one seed [rows, items].
    """

    keys: tuple[tuple[str, str], ...]
    rows: tuple[str, ...]
    fraction: float
    right: Integers
    asked: Integers
    between: Numbers
    reference: int | None
    judged: tuple[int, ...]

    @property
    def accuracy(self) -> Numbers:
        """Share right; nan where a row was not asked an item."""
        asked = np.where(self.asked > 0, self.asked, np.nan)
        return np.asarray(self.right / asked)

    def change(self, row: int) -> Numbers | None:
        """Accuracy of a row minus the reference's, item by item; nan counts as no change."""
        if self.reference is None or row == self.reference:
            return None
        change: Numbers = np.nan_to_num(self.accuracy[row] - self.accuracy[self.reference])
        # Rounded, since means of thirds are equal on paper only.
        return np.round(change, 9)

    def orders(self) -> Mapping[str, Integers]:
        """Positions by the variance of accuracy between rows, and by that between seeds."""
        judged = list(self.judged)
        varied = pd.DataFrame(self.accuracy[judged]).var(ddof=0)  # of the rows that were asked
        between = np.nan_to_num(self.between[judged])
        return {
            ROWS: _above_zero(varied.fillna(0.0).to_numpy()),
            SEEDS: _above_zero(between.mean(axis=0)),
        }

    def lists(self) -> Lists:
        """The items that a page shows: flips, and what each row wins or loses."""
        orders = {name: tuple(order[:TOP].tolist()) for name, order in self.orders().items()}
        changes = {row: self.change(i) for i, row in enumerate(self.rows)}
        moved = {row: change for row, change in changes.items() if change is not None}
        won = {row: _above_zero(change) for row, change in moved.items()}
        lost = {row: _above_zero(-change) for row, change in moved.items()}
        used = len(set().union(*orders.values()))
        return Lists(orders, _own_lists(used, MOST_ITEMS, TOP_ITEMS, {WON: won, LOST: lost}))


def finished(results: Results, row: str) -> tuple[Cell, ...]:
    """Finished cells of a row at the middle fraction, or at its own where it has no other."""
    cells = results.groups.get((row, OWN.get(row, results.middle)), ())
    return tuple(cell for cell in cells if cell.status == "done")


def items(results: Results) -> Items | None:
    """Counts of every item at the middle fraction; None where nothing is finished."""
    rows = [row for row in results.rows if finished(results, row)]
    if not rows:
        return None
    outcomes = results.outcomes
    part = outcomes[outcomes["fraction"] == outcomes["row"].map(OWN).fillna(results.middle)]
    pairs = part[["task", "item"]].drop_duplicates()
    place = {task: i for i, task in enumerate(results.tasks)}
    pairs = pairs.assign(place=pairs["task"].map(place)).sort_values(["place", "item"])
    keys = pd.MultiIndex.from_frame(pairs[["task", "item"]])
    by_seed = part.groupby(["row", "task", "item", "seed"])["correct"].agg(["sum", "size"])
    sums = by_seed.groupby(["row", "task", "item"]).sum()
    shares = (by_seed["sum"] / by_seed["size"]).groupby(["row", "task", "item"])
    spread = shares.var(ddof=0).where(shares.size() > 1)

    def table(values: pd.Series[float]) -> npt.NDArray[Any]:
        return np.asarray(values.unstack("row").reindex(index=keys, columns=rows)).T

    judged = [i for i, row in enumerate(rows) if row not in (*CONTROLS, *results.again)]
    return Items(
        keys=tuple(keys),
        rows=tuple(rows),
        fraction=results.middle,
        right=np.nan_to_num(table(sums["sum"])).astype(np.int64),
        asked=np.nan_to_num(table(sums["size"])).astype(np.int64),
        between=table(spread).astype(np.float64),
        reference=rows.index(results.reference) if results.reference in rows else None,
        judged=tuple(judged if len(judged) > 1 else range(len(rows))),
    )


def _above_zero(values: Numbers) -> Integers:
    """Positions with a value above 0, the largest first; equal ones keep their order."""
    order = _order(-values)
    return order[np.round(values, 9)[order] > 0]


def shown_examples(results: Results) -> tuple[str, ...]:
    """Ids of the examples whose texts a page shows."""
    pool = choices(results)
    return () if pool is None else tuple(pool.ids[p] for p in pool.lists().positions)


def shown_questions(results: Results) -> tuple[tuple[str, str], ...]:
    """Task and item of the questions whose texts a page shows."""
    grid = items(results)
    return () if grid is None else tuple(grid.keys[p] for p in grid.lists().positions)
