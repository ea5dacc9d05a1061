"""One row of a comparison: which cells it is, what they chose and what they cost."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.reporting.numbers import percent
from harness.reporting.results import OWN, Cell, Results, mean_cost, mean_parts
from harness.stats import rank_correlation
from harness.stats.set_overlap import Chosen

DIFFICULTY = "difficulty"
SECONDS = ("select_seconds", "train_seconds", "eval_seconds")


@dataclass(frozen=True)
class Spent:
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
        own = OWN.get(row, fraction)
        side = cls(results, row, own, results.groups[row, own])
        if not side.done:
            reasons = "; ".join(side.absent()) or "it has not run"
            raise ValueError(f"{row!r} has no finished cell ({reasons}); expected at least one")
        return side

    @property
    def line(self) -> tuple[str, float]:
        """Its key among the outcomes."""
        return self.row, self.fraction

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
        found: dict[int, Chosen] = {}
        for cell in self.done:
            if cell.record.get("selection"):
                table = pd.read_parquet(
                    self.results.folder / cell.record["selection"], columns=["id", "chosen"]
                )
                found[cell.seed] = table.sort_values("id")["chosen"].to_numpy(dtype=np.bool_)
        return found

    def spent(self) -> Spent:
        """What a cell cost in the mean."""
        return Spent(
            select_seconds=mean_cost(self.cells, "select_seconds"),
            train_seconds=mean_cost(self.cells, "train_seconds"),
            eval_seconds=mean_cost(self.cells, "eval_seconds"),
            select_flops=mean_cost(self.cells, "select_flops"),
            parts=mean_parts(self.done),
        )

    def score_goes_with(self) -> dict[str, float]:
        """Rank correlation of the first seed's scores with lengths, steps and difficulty."""
        table = self.results.selection(self.row, self.fraction)
        if table is None or "score" not in table:
            return {}
        score = table.set_index("id")["score"]
        facts = {} if self.results.pool is None else dict(self.results.pool.set_index("id").items())
        others = {name: facts[name] for name in ("response_tokens", "steps") if name in facts}
        hard = None
        if self.row != DIFFICULTY and DIFFICULTY in self.results.rows:
            hard = self.results.selection(DIFFICULTY, self.fraction)
        if hard is not None and "score" in hard:
            others[DIFFICULTY] = hard.set_index("id")["score"]
        found = {
            name: rank_correlation(score, values.reindex(score.index))
            for name, values in others.items()
            if values.reindex(score.index).notna().all()
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}


def find(results: Results, name: str) -> str:
    """The row called `name`, or the only one of that selector (`influence` for influence/...)."""
    found = fitting(results, name)
    if len(found) > 1:
        raise ValueError(f"{name!r} fits several rows; expected one of {', '.join(found)}")
    return found[0]


def fitting(results: Results, name: str) -> list[str]:
    """The row called `name`, or else all rows of the selector of that name."""
    if name in results.rows:
        return [name]
    found = [row for row in results.rows if row.startswith(f"{name}/")]
    if found:
        return found
    near = difflib.get_close_matches(name, results.rows, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"{results.experiment} has no row {name!r}{hint}; expected one of {', '.join(results.rows)}"
    )


def place(results: Results, fraction: float | None, rows: Sequence[str]) -> tuple[float, list[str]]:
    """The fraction to compare at, and a note where it was not asked for."""
    known = ", ".join(f"{share:g}" for share in results.fractions)
    if fraction is not None:
        if fraction not in results.fractions:
            raise ValueError(f"--fraction {fraction!r}; expected one of {known}")
        return fraction, []
    if len(results.fractions) == 1 or all(row in OWN for row in rows):
        return results.middle, []
    return results.middle, [f"at {percent(results.middle)} of the pool; --fraction has {known}"]
