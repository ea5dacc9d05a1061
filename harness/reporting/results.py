"""What an experiment left on disk, read once into a frozen value that every table and figure uses.

The report is a pure function of this: rows follow the protocol and not the order in which cells
happened to finish, a cell that ran twice counts once (the newest line wins), and a cell that
failed or never ran stays visible as such.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from harness.experiment import records
from harness.experiment.settings import TESTBED, TESTBED_CONTROLS
from harness.stats import Grid, pivot

MAIN = "main"
BASE, FULL = "base", "full"
OWN = {BASE: 0.0, FULL: 1.0}
"""Fractions of the rows that exist once, whatever the fractions of the others."""
CONTROLS = (BASE, FULL, *TESTBED_CONTROLS)
"""Rows that frame the selectors and are not ranked among them."""
SAMPLE_COLUMNS = ["task", "item", "decode", "correct", "answer"]
TRUNCATED = "truncated"
"""Whether the token limit cut a response; samples stored before this was recorded lack it."""
NOISE = "noise.json"
"""What `cotsieve noise` measured: repeated evaluations of single checkpoints."""
OUTCOME_COLUMNS = ["row", "fraction", "seed", *SAMPLE_COLUMNS, TRUNCATED]


@dataclass(frozen=True)
class Cell:
    """One row at one fraction and seed, done, failed or not run."""

    name: str
    row: str
    fraction: float
    seed: int
    status: Literal["done", "failed", "missing"]
    record: Mapping[str, Any]

    @property
    def costs(self) -> Mapping[str, Any]:
        """Seconds of selection (with its parts), training and evaluation."""
        return self.record.get("costs") or {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Commit, versions and device behind this cell."""
        return self.record.get("provenance") or {}

    @property
    def error(self) -> Mapping[str, Any]:
        """Stage, message and step of a failure; empty where there was none."""
        return self.record.get("error") or {}


@dataclass(frozen=True)
class Results:
    """One arm of an experiment."""

    folder: Path
    arm: str
    arms: tuple[str, ...]
    protocol: Mapping[str, Any]
    rows: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    cells: tuple[Cell, ...]
    outcomes: pd.DataFrame
    facts: Mapping[str, Any]
    pool: pd.DataFrame | None

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return str(self.protocol["name"])

    @property
    def reference(self) -> str:
        """The row that every other row is compared with."""
        return str(self.protocol["protocol"]["reference"])

    @property
    def middle(self) -> float:
        """The fraction at which `base` and `full` are compared with the reference."""
        return self.fractions[(len(self.fractions) - 1) // 2]

    @property
    def again(self) -> tuple[str, ...]:
        """A/A controls: rows with the selector and the parameters of the reference."""
        entries = {entry["row"]: entry for entry in self.protocol["rows"]}
        reference = entries.pop(self.reference, {})
        if reference.get("selector") is None:
            return ()
        return tuple(row for row, entry in entries.items() if {**reference, "row": row} == entry)

    @property
    def alpha(self) -> float:
        """The level at which a difference counts."""
        return float(self.protocol["protocol"]["alpha"])

    @property
    def testbed(self) -> bool:
        """Whether the pool is the built-in testbed."""
        return str(self.protocol.get("pool", {}).get("dataset", "")).startswith(TESTBED)

    @property
    def repaired(self) -> bool:
        """Whether the planted errors of this arm's pool are repaired, their names kept."""
        pool = dict(self.protocol.get("pool", {}))
        for arm in self.protocol.get("arm", ()):
            if arm["name"] == self.arm:
                pool |= arm.get("pool", {})
        return bool(pool.get("errors") == "none")

    @property
    def done(self) -> tuple[Cell, ...]:
        """Cells with samples."""
        return tuple(cell for cell in self.cells if cell.status == "done")

    @cached_property
    def groups(self) -> dict[tuple[str, float], tuple[Cell, ...]]:
        """Every row and fraction of the protocol with its cells, in protocol order."""
        groups: dict[tuple[str, float], tuple[Cell, ...]] = {}
        for cell in self.cells:
            key = (cell.row, cell.fraction)
            groups[key] = (*groups.get(key, ()), cell)
        return groups

    @cached_property
    def grid(self) -> Grid | None:
        """Accuracies of all rows by seed and item; None where no cell is finished."""
        return None if self.outcomes.empty else pivot(self.outcomes)

    @cached_property
    def _stored(self) -> Callable[[str], pd.DataFrame]:
        """Reads a selection; every file once, whoever asks."""
        return cache(lambda path: pd.read_parquet(self.folder / path))

    def selections(self, row: str, fraction: float) -> dict[int, pd.DataFrame]:
        """Chosen flags and scores of a row by seed; seeds that share a choice share the frame."""
        return {
            cell.seed: self._stored(cell.record["selection"])
            for cell in self.groups.get((row, fraction), ())
            if cell.status == "done" and cell.record.get("selection")
        }

    def selection(self, row: str, fraction: float) -> pd.DataFrame | None:
        """Chosen flags and scores of a row's first stored seed, or None."""
        return next(iter(self.selections(row, fraction).values()), None)

    @cached_property
    def noise(self) -> Mapping[str, Mapping[str, Any]]:
        """Repeated evaluations of this arm's cells by name; empty where none was measured."""
        path = self.folder / NOISE
        if not path.is_file():
            return {}
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {cell.name: cells[cell.name] for cell in self.done if cell.name in cells}


def mean_cost(cells: Iterable[Cell], name: str, *, whole: bool = False) -> float:
    """Mean cost of the finished cells that know it; nan without one, if `whole` also with a gap."""
    costs = [cell.costs.get(name) for cell in cells if cell.status == "done"]
    values = [float(cost) for cost in costs if cost is not None]
    if not values or (whole and len(values) < len(costs)):
        return math.nan
    return math.fsum(values) / len(values)


def mean_parts(cells: Sequence[Cell]) -> dict[str, float]:
    """Mean seconds of each part of selection; a cell without a part spent nothing on it."""
    parts = [cell.costs.get("select_parts") or {} for cell in cells]
    names = sorted({name for each in parts for name in each})
    return {name: math.fsum(e.get(name, 0.0) for e in parts) / len(parts) for name in names}


def arms(folder: Path) -> dict[str, int]:
    """Names of an experiment's arms, the main one first, with the cells that each one plans."""
    protocol = _toml(folder / "protocol.toml")
    rows, seeds = [entry["row"] for entry in protocol["rows"]], protocol["seeds"]
    return {
        arm: sum(1 for _ in _planned(tuple(rows), tuple(fractions), tuple(seeds)))
        for arm, fractions in _fractions(protocol).items()
    }


def load(folder: Path) -> tuple[Results, ...]:
    """Read results/<experiment>/: one `Results` per arm, the main one first."""
    protocol = _toml(folder / "protocol.toml")
    newest = {(r["arm"], r["row"], r["fraction"], r["seed"]): r for r in _records(folder)}
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    rows = tuple(entry["row"] for entry in protocol["rows"])
    tasks, seeds = tuple(protocol["tasks"]), tuple(protocol["seeds"])
    arms = {arm: tuple(sorted(own)) for arm, own in _fractions(protocol).items()}

    def read(arm: str, fractions: tuple[float, ...]) -> Results:
        cells = []
        for row, fraction, seed in _planned(rows, fractions, seeds):
            name = f"{row}@{fraction:g}#{seed}"
            record = newest.get((arm, row, fraction, seed), {"cell": name, "status": "missing"})
            stored = record if record["status"] != "missing" else {}
            cells.append(Cell(record["cell"], row, fraction, seed, record["status"], stored))
        pool = folder / ("pool.parquet" if arm == MAIN else f"pool-{arm}.parquet")
        return Results(
            folder=folder,
            arm=arm,
            arms=tuple(arms),
            protocol=protocol,
            rows=rows,
            fractions=fractions,
            seeds=seeds,
            tasks=tasks,
            cells=tuple(cells),
            outcomes=_outcomes(folder, cells, tasks),
            facts=facts | facts.get("arms", {}).get(arm, {}),
            pool=pd.read_parquet(pool) if pool.is_file() else None,
        )

    return tuple(read(arm, fractions) for arm, fractions in arms.items())


def _fractions(protocol: Mapping[str, Any]) -> dict[str, list[float]]:
    """The fractions of every arm, the main one first."""
    arms = {arm["name"]: arm.get("fractions") for arm in protocol.get("arm", ())}
    return {arm: own or protocol["fractions"] for arm, own in {MAIN: None, **arms}.items()}


def _planned(
    rows: tuple[str, ...], fractions: tuple[float, ...], seeds: tuple[int, ...]
) -> Iterator[tuple[str, float, int]]:
    """Cells that the protocol promises; `base` is one evaluation, `full` needs no fraction."""
    for row in rows:
        shares = {BASE: (0.0,), FULL: (1.0,)}.get(row, fractions)
        for fraction in shares:
            for seed in (0,) if row == BASE else seeds:
                yield row, float(fraction), int(seed)


def _outcomes(folder: Path, cells: list[Cell], tasks: tuple[str, ...]) -> pd.DataFrame:
    """One line per item and decode of every finished cell, in an order that no run can change."""
    parts = []
    for cell in cells:
        if cell.status != "done":
            continue
        samples = _samples(folder / cell.record["samples"], tasks)
        for name, value in (("seed", cell.seed), ("fraction", cell.fraction), ("row", cell.row)):
            samples = samples.add_column(0, name, pyarrow.repeat(value, len(samples)))
        parts.append(samples)
    if not parts:
        return pd.DataFrame(columns=OUTCOME_COLUMNS)
    together = pyarrow.concat_tables(parts, promote_options="permissive")
    # How pandas once stored each column is forgotten: all cells have the same types.
    frame: pd.DataFrame = together.replace_schema_metadata(None).to_pandas()
    return frame.astype({TRUNCATED: "boolean"})


def _samples(path: Path, tasks: tuple[str, ...]) -> pyarrow.Table:
    """One cell's samples in order; missing in `TRUNCATED` means that it was not recorded."""
    with pyarrow.parquet.ParquetFile(path) as file:
        recorded = TRUNCATED in file.schema_arrow.names
        columns = [*SAMPLE_COLUMNS, *([TRUNCATED] if recorded else [])]
        samples = file.read(columns=columns).select(columns)
    if not recorded:
        samples = samples.append_column(TRUNCATED, pyarrow.nulls(len(samples), pyarrow.bool_()))
    present = set(samples["task"].unique().to_pylist())
    absent = [task for task in tasks if task not in present]
    if absent:
        raise ValueError(f"{path}: no samples for {absent!r}; expected tasks {list(tasks)!r}")
    if present - set(tasks):
        wanted = pyarrow.compute.is_in(samples["task"], value_set=pyarrow.array(tasks))
        samples = samples.filter(wanted)
    return samples.sort_by([(name, "ascending") for name in SAMPLE_COLUMNS[:3]])


def _records(folder: Path) -> list[dict[str, Any]]:
    if not (folder / records.RECORDS).is_file():
        raise ValueError(
            f"{folder / records.RECORDS} does not exist; expected the records of a run"
        )
    return records.read(folder)


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected the protocol of a run")
    protocol = tomllib.loads(path.read_text(encoding="utf-8"))
    needed = ("name", "rows", "fractions", "seeds", "tasks", "protocol")
    absent = [key for key in needed if key not in protocol]
    if absent:
        raise ValueError(f"{path}: keys {absent!r} are missing; expected {list(needed)!r}")
    return protocol
