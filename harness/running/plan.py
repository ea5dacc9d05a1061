"""From an experiment to its cells and the stages behind them; nothing is run here.

A cell is one row at one fraction with one training seed. Cells share stages wherever their inputs
are the same: all fractions share the scores, all rows the pool, the query set's answers and the
reference checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.experiment.config import Experiment
from harness.experiment.settings import ArmConfig, Row
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running.overlap import MAIN, Check
from harness.running.recipes import EngineChoice
from harness.running.stages import ArmStages, SharedStages
from harness.selection import plugins


@dataclass(frozen=True)
class Cell:
    """One line of work: a row at a fraction with a seed, and the stages that it ends in."""

    arm: str
    row: Row
    fraction: float
    seed: int
    samples: Mapping[str, Stage]
    subset: Stage | None
    checkpoint: Stage | None

    @property
    def name(self) -> str:
        """`row@fraction#seed`, led by `arm:` outside the main arm."""
        prefix = "" if self.arm == MAIN else f"{self.arm}:"
        return f"{prefix}{self.row.row}@{self.fraction:g}#{self.seed}"

    @property
    def model(self) -> Stage:
        """The model that is evaluated."""
        return next(iter(self.samples.values())).parents["model"]

    def recorded_stages(self) -> list[Stage]:
        """The stages that the cell's record is made from."""
        stages = list(self.samples.values())
        if self.subset is not None and self.checkpoint is not None:
            # Whatever the selection stands on, for its cost.
            stages += [*self.subset.ancestry(), self.checkpoint]
        return [stage for stage in stages if not stage.recipe.external]

    def stored(self, store: Store) -> bool:
        """Whether everything that the cell's record is made from is in the store."""
        return all(map(store.has, self.recorded_stages()))


@dataclass(frozen=True)
class Plan:
    """The cells of an experiment, and what says whether its data sets are disjoint.

    `proofs` are the testbed's; `checks` compare the questions of all others. `queries`: by arm, the
    query set and its answers before and after fine-tuning.
    """

    experiment: Experiment
    file: Path
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    proofs: tuple[Stage, ...]
    pools: Mapping[str, Stage]
    queries: Mapping[str, Mapping[str, Stage]]
    engine: EngineChoice
    base: Stage
    checks: tuple[Check, ...] = ()

    def cell(self, name: str) -> Cell:
        """The cell called `name`; ValueError shows what names look like."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        examples = ", ".join(cell.name for cell in self.cells[:3])
        raise ValueError(
            f"cell {name!r} is not part of {self.experiment.name}; expected for example {examples}"
        )


def make(experiment: Experiment, file: Path, task_data: Path | None = None) -> Plan:
    """Lay out every cell of `experiment`, which was read from `file`.

    `task_data`: folder with the benchmarks' files; None takes them from the hub.
    """
    discovered = tuple(plugins.names()) if experiment.discover else ()
    rows = experiment.rows(discovered)
    shared = SharedStages(experiment, file, task_data)
    arms = [
        ArmStages(shared, arm, rows) for arm in (ArmConfig(name=MAIN, pool={}), *experiment.arm)
    ]
    fractions = {arm.name: arm.fractions or experiment.grid.fractions for arm in experiment.arm}
    fractions[MAIN] = experiment.grid.fractions
    answered = {arm.name: arm.answered_queries for arm in arms if experiment.query is not None}
    checks = [shared.check, *(arm.check for arm in arms)]
    return Plan(
        experiment=experiment,
        file=file,
        rows=rows,
        cells=tuple(cell for arm in arms for cell in _cells(arm, fractions[arm.name])),
        proofs=tuple(arm.proof for arm in arms if arm.proof is not None),
        pools={arm.name: arm.pool for arm in arms},
        queries=answered,
        engine=shared.engine,
        base=shared.base,
        checks=tuple(check for check in checks if check is not None),
    )


def _cells(arm: ArmStages, fractions: tuple[float, ...]) -> Iterator[Cell]:
    """Every cell of an arm, row by row."""
    shared = arm.shared
    for row in arm.rows.values():
        if row.row == "base":
            yield Cell(arm.name, row, 0.0, 0, shared.samples(shared.base, 0, "base"), None, None)
            continue
        for fraction in (1.0,) if row.row == "full" else fractions:
            for seed in shared.experiment.grid.seeds:
                subset = arm.subset(row.row, fraction, seed)
                checkpoint = arm.checkpoint(subset, seed, f"{row.row}@{fraction:g}#{seed}")
                label = checkpoint.label.removeprefix("checkpoint of ")
                samples = shared.samples(checkpoint, seed, label)
                yield Cell(arm.name, row, fraction, seed, samples, subset, checkpoint)
