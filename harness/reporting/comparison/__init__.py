"""Two rows of an experiment, compared from its records.

Accuracy by task with a paired difference, the items that changed most, what was chosen and what it
cost; in the end one sentence that the numbers allow. Needs neither torch nor a store.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.data.jaccard import expected_jaccard
from harness.reporting.numbers import percent
from harness.reporting.results import BASE, FULL, OWN, Cell, Results, mean_cost, mean_parts
from harness.stats import (
    MEAN,
    Difference,
    Estimate,
    Outcome,
    Sides,
    aligned,
    common_seeds,
    jaccard,
    pivot,
    rank_correlation,
    stability,
    summarise,
)
from harness.stats import compare as compare_outcomes
from harness.stats.set_overlap import Chosen

DIFFICULTY = "difficulty"
SECONDS = ("select_seconds", "train_seconds", "eval_seconds")
SHOWN = 5
"""Items named in each direction."""


@dataclass(frozen=True)
class Costs:
    """Means per finished cell; nan where no record has the number."""

    select_seconds: float
    train_seconds: float
    eval_seconds: float
    select_flops: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Side:
    """A row at its fraction, with its cells."""

    results: Results
    row: str
    fraction: float
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, results: Results, row: str, fraction: float) -> Side:
        """The row at `fraction`, or at its own; refused where nothing of it is finished."""
        fraction = OWN.get(row, fraction)
        side = cls(results, row, fraction, results.groups[row, fraction])
        if not side.done:
            reasons = "; ".join(side.absent()) or "it has not run"
            raise ValueError(f"{row!r} has no finished cell ({reasons}); expected at least one")
        return side

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells with a result."""
        return tuple(cell for cell in self.cells if cell.status == "done")

    @property
    def name(self) -> str:
        """For a reader: with the fraction where the experiment has several."""
        several = len(self.results.fractions) > 1 and self.row not in OWN
        return f"{self.row} at {percent(self.fraction)}" if several else self.row

    def absent(self) -> list[str]:
        """Cells without a result, and why."""
        return [
            f"{cell.name}: failed: {cell.error.get('message', 'no message')}"
            if cell.status == "failed"
            else f"{cell.name}: has not run"
            for cell in self.cells
            if cell.status != "done"
        ]

    def chosen(self) -> dict[int, Chosen]:
        """Which examples of the pool were kept, by seed, in the order of their ids."""
        tables = self.results.selections(self.row, self.fraction)
        return {
            seed: table.sort_values("id")["chosen"].to_numpy(dtype=np.bool_)
            for seed, table in tables.items()
        }

    @property
    def costs(self) -> Costs:
        """What a cell costs in the mean."""
        means = {name: mean_cost(self.cells, name) for name in (*SECONDS, "select_flops")}
        return Costs(**means, parts=mean_parts(self.done))

    def score_correlations(self) -> dict[str, float]:
        """Rank correlation of the first seed's scores with lengths, steps and difficulty."""
        score = self._scores(self.row)
        if score is None:
            return {}
        pool = self.results.pool
        facts = {} if pool is None else dict(pool.set_index("id").items())
        others = {name: facts[name] for name in ("response_tokens", "steps") if name in facts}
        if self.row != DIFFICULTY and (difficulty := self._scores(DIFFICULTY)) is not None:
            others[DIFFICULTY] = difficulty
        aligned = {name: values.reindex(score.index) for name, values in others.items()}
        correlations = {
            name: rank_correlation(score, values)
            for name, values in aligned.items()
            if values.notna().all()
        }
        return {name: value for name, value in correlations.items() if not math.isnan(value)}

    def _scores(self, row: str) -> pd.Series | None:
        table = self.results.selection(row, self.fraction)
        return None if table is None or "score" not in table else table.set_index("id")["score"]


@dataclass(frozen=True)
class Line:
    """One task, or the mean over tasks."""

    a: Estimate
    b: Estimate
    difference: Difference


@dataclass(frozen=True)
class ItemChange:
    """An item with its accuracy over the common seeds (and decodes) on both sides."""

    task: str
    item: str
    a: float
    b: float


@dataclass(frozen=True)
class ItemChanges:
    """Items on which A (gained) or B (lost) does better: how many, and the largest changes.

    `as_much`: how many change as much as the first of those named.
    """

    gained: int
    lost: int
    same: int
    most_gained: tuple[ItemChange, ...]
    most_lost: tuple[ItemChange, ...]
    gained_as_much: int
    lost_as_much: int


@dataclass(frozen=True)
class Family:
    """What the protocol's own test says of this pair: Holm over `size` comparisons."""

    size: int
    p_holm: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Overlap:
    """Jaccard overlap of what both sides chose; None where a side has one seed only."""

    between: float
    random: float
    a_seeds: float | None
    b_seeds: float | None


@dataclass(frozen=True)
class Comparison:
    """A against B. `family` is None for a pair that the protocol did not plan to test."""

    results: Results
    a: Side
    b: Side
    mean: Line
    tasks: Mapping[str, Line]
    family: Family | None
    changes: ItemChanges
    overlap: Overlap | None
    notes: tuple[str, ...]


def compare(
    results: Results,
    first: str,
    second: str,
    fraction: float | None = None,
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Compare row `first` with row `second` at one fraction; by default the middle one.

    `rng` is needed beyond 20 seeds only.

    Raises:
        ValueError: a name fits no row or several, or a row has no finished cell.
    """
    rows = find(results, first), find(results, second)
    if rows[0] == rows[1]:
        raise ValueError(f"{first!r} and {second!r} are the row {rows[0]!r}; expected two rows")
    share, notes = compared_at(results, fraction, rows)
    a, b = (Side.of(results, row, share) for row in rows)
    outcomes, missing = _outcomes(results, (a, b))
    *tasks, mean = _lines(*outcomes, results, rng)
    notes += missing
    if mean.difference.dropped:
        dropped = ", ".join(map(str, mean.difference.dropped))
        notes.append(f"seeds that only one row has are left out of differences: {dropped}")
    for name, note in (
        (a.name, mean.a.note),
        (b.name, mean.b.note),
        ("A - B", mean.difference.note),
    ):
        notes += [f"{name}: {note}"] if note else []
    return Comparison(
        results=results,
        a=a,
        b=b,
        mean=mean,
        tasks=dict(zip(results.tasks, tasks, strict=True)),
        family=_family(results, a, b, rng),
        changes=_changes(*outcomes),
        overlap=_overlap(a, b),
        notes=tuple(notes),
    )


def find(results: Results, name: str) -> str:
    """The row called `name`, or the only one of that selector (`influence` for influence/...)."""
    rows = fitting(results, name)
    if len(rows) > 1:
        raise ValueError(f"{name!r} fits several rows; expected one of {', '.join(rows)}")
    return rows[0]


def fitting(results: Results, name: str) -> list[str]:
    """The row called `name`, or else all rows of the selector of that name."""
    if name in results.rows:
        return [name]
    if rows := [row for row in results.rows if row.startswith(f"{name}/")]:
        return rows
    near = difflib.get_close_matches(name, results.rows, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"{results.experiment} has no row {name!r}{hint}; expected one of {', '.join(results.rows)}"
    )


def compared_at(
    results: Results, fraction: float | None, rows: Sequence[str]
) -> tuple[float, list[str]]:
    """The fraction to compare at, and a note where it was not asked for."""
    known = ", ".join(f"{share:g}" for share in results.fractions)
    if fraction is not None:
        if fraction not in results.fractions:
            raise ValueError(f"--fraction {fraction!r}; expected one of {known}")
        return fraction, []
    if len(results.fractions) == 1 or all(row in OWN for row in rows):
        return results.middle, []
    return results.middle, [f"at {percent(results.middle)} of the pool; --fraction has {known}"]


def _outcomes(
    results: Results, sides: tuple[Side, Side]
) -> tuple[tuple[Outcome, Outcome], list[str]]:
    """Both rows on their complete seeds, and notes on what a row lacks."""
    outcomes: list[Outcome] = []
    notes: list[str] = []
    lines = [(side.row, side.fraction) for side in sides]
    keys = pd.MultiIndex.from_frame(results.outcomes[["row", "fraction"]])
    grid = pivot(results.outcomes[keys.isin(lines)])
    for side, line in zip(sides, lines, strict=True):
        notes += side.absent()
        outcome, broken = grid.outcome(line, list(results.tasks))
        if broken:
            notes.append(f"{side.row}: incomplete, left out: seeds {', '.join(map(str, broken))}")
        if outcome is None:
            raise ValueError(f"{side.row}: no seed has all items; expected at least one")
        outcomes.append(outcome)
    a, b = outcomes
    if not common_seeds(a, b):
        raise ValueError(
            f"{sides[0].row} has the seeds {a.seeds!r}, {sides[1].row} {b.seeds!r}; expected at "
            "least one in common"
        )
    return (a, b), notes


def _lines(a: Outcome, b: Outcome, results: Results, rng: np.random.Generator | None) -> list[Line]:
    """Every task, then the mean over tasks."""
    pairs = [(a.only(task), b.only(task)) for task in results.tasks] + [(a, b)]
    sides: dict[tuple[int, str], Sides] = {}
    for at, pair in enumerate(pairs):
        sides |= {(at, "a"): Sides(pair[0], pair), (at, "b"): Sides(pair[1])}
    compared = compare_outcomes(sides, results.alpha, rng)
    lines = []
    for at in range(len(pairs)):
        first, second = compared[at, "a"], compared[at, "b"]
        assert first.estimate is not None
        assert first.difference is not None
        assert second.estimate is not None
        lines.append(Line(first.estimate, second.estimate, first.difference))
    return lines


def _family(results: Results, a: Side, b: Side, rng: np.random.Generator | None) -> Family | None:
    """The line of the report, where it compares just these two cells; its sign follows A - B."""
    if results.reference not in (a.row, b.row):
        return None
    other, reference = (b, a) if a.row == results.reference else (a, b)
    # The report compares `base` and `full` with the reference at the middle fraction only.
    if other.row in (BASE, FULL) and reference.fraction not in (results.middle, 0.0, 1.0):
        return None
    lines = summarise(
        results.outcomes, results.reference, results.alpha, seeds=results.seeds, rng=rng
    )
    lines = lines[lines["task"] == MEAN]
    (at,) = np.flatnonzero((lines["row"] == other.row) & (lines["fraction"] == other.fraction))
    line = lines.iloc[at]
    low, high, verdict = line["adjusted_low"], line["adjusted_high"], str(line["verdict"])
    if verdict not in ("better", "worse", "tie"):
        return None
    if other is b:
        low, high = -high, -low
        verdict = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    size = int(lines["p_holm"].notna().sum())
    return Family(size, float(line["p_holm"]), float(low), float(high), verdict)


def _changes(first: Outcome, second: Outcome) -> ItemChanges:
    a, b, _ = aligned(first, second)
    items = [
        ItemChange(task, item, float(x), float(y))
        for task, table in a.tables.items()
        for item, x, y in zip(
            a.items[task], table.mean(axis=0), b.tables[task].mean(axis=0), strict=True
        )
    ]
    # Rounded, since means of thirds are equal on paper only; ties keep the order of the items.
    change = {one: round(one.a - one.b, 9) for one in items}
    gained = sorted((one for one in items if change[one] > 0), key=lambda one: -change[one])
    lost = sorted((one for one in items if change[one] < 0), key=lambda one: change[one])
    return ItemChanges(
        gained=len(gained),
        lost=len(lost),
        same=len(items) - len(gained) - len(lost),
        most_gained=tuple(gained[:SHOWN]),
        most_lost=tuple(lost[:SHOWN]),
        gained_as_much=sum(change[one] == change[gained[0]] for one in gained),
        lost_as_much=sum(change[one] == change[lost[0]] for one in lost),
    )


def _overlap(a: Side, b: Side) -> Overlap | None:
    """Mean over common seeds; None where a side chose nothing or the pools differ."""
    first, second = a.chosen(), b.chosen()
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    if not pairs or any(x.shape != y.shape for x, y in pairs):
        return None
    random = [expected_jaccard(len(x), int(x.sum()), int(y.sum())) for x, y in pairs]
    return Overlap(
        between=float(np.mean([jaccard(x, y) for x, y in pairs])),
        random=float(np.mean(random)),
        a_seeds=stability(list(first.values())) if len(first) > 1 else None,
        b_seeds=stability(list(second.values())) if len(second) > 1 else None,
    )
