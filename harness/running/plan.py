"""From an experiment to its cells and the stages behind them; nothing is run here.

A cell is one row at one fraction with one training seed. Cells share stages wherever their inputs
are the same: all fractions share the scores, all rows the pool, the query set's answers and the
reference checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.experiment.config import ArmConfig, Experiment, PoolConfig, Row
from harness.experiment.stage import Stage, signal_versions
from harness.running.overlap import Check
from harness.running.shared_stages import Ingredients
from harness.selection import plugins
from harness.selection.context import Warmup
from harness.selection.selector import NEEDS, ScoreSelector, Selector


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
        prefix = "" if self.arm == "main" else f"{self.arm}:"
        return f"{prefix}{self.row.row}@{self.fraction:g}#{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The cells of an experiment, and what says whether its data sets are disjoint.

    `proofs` are the testbed's; `checks` compare the questions of all others.
    """

    experiment: Experiment
    file: Path
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    proofs: tuple[Stage, ...]
    pools: Mapping[str, Stage]
    queries: Mapping[str, Mapping[str, Stage]]
    engine: Mapping[str, str]
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
    builder = Ingredients(experiment, file, task_data)
    cells: list[Cell] = []
    pools: dict[str, Stage] = {}
    queries: dict[str, Mapping[str, Stage]] = {}
    proofs: list[Stage] = []
    checks = [builder.check]
    for arm in (ArmConfig(name="main", pool={}), *experiment.arm):
        layout = _Arm(builder, arm, rows)
        cells += layout.cells()
        pools[arm.name] = layout.pool
        if experiment.query is not None:
            queries[arm.name] = layout.query_parents()
        checks.append(layout.check)
        if layout.config.testbed is not None:
            proofs.append(builder.proof(layout.pool, arm.name))
    return Plan(
        experiment,
        file,
        rows,
        tuple(cells),
        tuple(proofs),
        pools,
        queries,
        builder.engine_inputs,
        tuple(check for check in checks if check is not None),
    )


class _Arm:
    """The stages of one variant of the pool."""

    def __init__(self, builder: Ingredients, arm: ArmConfig, rows: tuple[Row, ...]) -> None:
        self.builder = builder
        self.experiment = builder.experiment
        self.name = arm.name
        self.fractions = arm.fractions or self.experiment.grid.fractions
        self.rows = {row.row: row for row in rows}
        dumped = self.experiment.pool.model_dump()
        self.config = PoolConfig.model_validate({**dumped, **arm.pool})
        inputs, where = builder.data(self.config)
        label = "pool" if arm.name == "main" else f"pool of {arm.name}"
        pool = Stage("pool", label, inputs, {"tokenizer": builder.tokenizer}, where)
        self.check = builder.compared(pool, self.config, arm.name)
        self.pool = pool if self.check is None else self.check.used
        self.selectors: dict[str, Selector] = {
            row.row: plugins.build(row.selector, row.params)
            for row in rows
            if row.selector is not None
        }
        self._open: list[str] = []

    def cells(self) -> list[Cell]:
        """Every cell of this arm, row by row."""
        seeds = self.experiment.grid.seeds
        found: list[Cell] = []
        for row in self.rows.values():
            if row.row == "base":
                samples = self.builder.samples(self.builder.base, 0, "base")
                found.append(Cell(self.name, row, 0.0, 0, samples, None, None))
                continue
            for fraction in (1.0,) if row.row == "full" else self.fractions:
                found += [self._cell(row, fraction, seed) for seed in seeds]
        return found

    def _cell(self, row: Row, fraction: float, seed: int) -> Cell:
        subset = self.subset(row.row, fraction, seed)
        checkpoint = self.checkpoint(subset, seed, f"{row.row}@{fraction:g}#{seed}")
        label = checkpoint.label.removeprefix("checkpoint of ")
        samples = self.builder.samples(checkpoint, seed, label)
        return Cell(self.name, row, fraction, seed, samples, subset, checkpoint)

    def checkpoint(self, subset: Stage, seed: int, label: str) -> Stage:
        """The base fine-tuned on `subset`."""
        recipe = self.experiment.train.model_dump(exclude_none=True)
        parents = {"subset": subset, "model": self.builder.base, "pool": self.pool}
        prefix = "" if self.name == "main" else f"{self.name}:"
        return Stage(
            "checkpoint",
            f"checkpoint of {prefix}{label}",
            {"recipe": recipe, "seed": seed},
            parents,
        )

    def reference(self) -> Stage:
        """The base fine-tuned on the whole pool, with the first seed: row `full`'s own."""
        seed = self.experiment.grid.seeds[0]
        return self.checkpoint(self.subset("full", 1.0, seed), seed, f"full@1#{seed}")

    def trajectory(self, warmup: Warmup) -> Stage:
        """Checkpoints on the way of the base fine-tuned on part of the pool, with the first seed.

        Selectors that ask for the same run share it.
        """
        inputs = {
            "recipe": self.experiment.train.model_dump(exclude_none=True),
            "warmup": asdict(warmup),
            "seed": self.experiment.grid.seeds[0],
        }
        prefix = "" if self.name == "main" else f"{self.name}:"
        epochs = "" if warmup.epochs is None else f", {warmup.epochs:g} epochs"
        label = f"{warmup.checkpoints} checkpoints of a run on {prefix}{warmup.share:.0%}{epochs}"
        return Stage("trajectory", label, inputs, {"model": self.builder.base, "pool": self.pool})

    def query_parents(self) -> dict[str, Stage]:
        """The query set, answered before and after."""
        if self.builder.queryset is None:
            raise ValueError(
                f"{self.builder.file}: a selector needs a query set; expected a [query] table"
            )
        reference = self.reference()
        return {
            "queryset": self.builder.queryset,
            "before": self.builder.answers(self.builder.base, "before"),
            "after": self.builder.answers(reference, f"after ({self.name})"),
            "reference": reference,
        }

    def subset(self, row: str, fraction: float, seed: int) -> Stage:
        """The stage that chooses examples for a row."""
        if row not in self.selectors:
            return self._control(row, fraction, seed)
        if row in self._open:
            raise ValueError(
                f"{self.builder.file}: rows {[*self._open, row]} ask for each other's subsets"
            )
        self._open.append(row)
        try:
            return self._selected(row, fraction, seed)
        finally:
            self._open.pop()

    def _control(self, row: str, fraction: float, seed: int) -> Stage:
        if row not in ("full", "oracle", "anti-oracle"):
            raise ValueError(f"{self.builder.file}: row {row!r} chooses no examples")
        inputs: dict[str, Any] = {"control": row, "fraction": fraction}
        if row != "full":
            inputs["seed"] = seed
        return Stage("subset", self._label(row, fraction, inputs), inputs, {"pool": self.pool})

    def _label(self, row: str, fraction: float, inputs: Mapping[str, Any]) -> str:
        prefix = "" if self.name == "main" else f"{self.name}:"
        seed = f"#{inputs['seed']}" if "seed" in inputs else ""
        return f"subset of {prefix}{row}@{fraction:g}{seed}"

    def _selected(self, row: str, fraction: float, seed: int) -> Stage:
        selector, config = self.selectors[row], self.rows[row]
        assert config.selector is not None
        inputs: dict[str, Any] = {
            "selector": config.selector,
            "params": config.params,
            "code": plugins.code_hash(config.selector),
        }
        if selector.stochastic:
            inputs |= {"seed": seed, "row": row}
        inputs |= self._signals(selector)
        parents = {"pool": self.pool, **self._needed(selector, fraction, seed)}
        if needs_engine(selector):
            inputs["engine"] = self.builder.engine_inputs
        group = config.selector if selector.requirements() else None
        if isinstance(selector, ScoreSelector):
            label = self._label(row, fraction, inputs).replace("subset", "scores", 1)
            label = label.replace(f"@{fraction:g}", "")
            scores = Stage("scores", label, inputs, parents, group=group)
            cut = {"fraction": fraction}
            parents = {"pool": self.pool, "scores": scores}
            return Stage("subset", self._label(row, fraction, inputs), cut, parents)
        inputs["fraction"] = fraction
        return Stage("subset", self._label(row, fraction, inputs), inputs, parents, group=group)

    def _signals(self, selector: Selector) -> dict[str, Any]:
        """Inputs of a selection that lie in the signals it is given."""
        needs, query = selector.requirements(), self.experiment.query
        found: dict[str, Any] = {}
        if versions := signal_versions(needs):
            found["signals"] = versions
        if query is not None and query.decodes > 1 and {"queries", "influence"} & set(needs):
            found["rule"] = query.rule
        return found

    def _needed(self, selector: Selector, fraction: float, seed: int) -> dict[str, Stage]:
        parents: dict[str, Stage] = {}
        for need in selector.requirements():
            if need.startswith("row:"):
                other = need.removeprefix("row:")
                if other not in self.rows:
                    raise ValueError(
                        f"{self.builder.file}: {type(selector).__name__} asks for the subset of "
                        f"row {other!r}; expected one of {list(self.rows)}"
                    )
                parents[need] = self.subset(other, fraction, seed)
            elif need == "tokenizer":
                parents["tokenizer"] = self.builder.tokenizer
            elif need in ("model", "features", "decodes"):
                parents["model"] = self.builder.base
            elif need == "queryset":
                parents["queryset"] = self.query_parents()["queryset"]
            elif need in ("queries", "influence"):
                parents |= self.query_parents()
            elif need in ("reference", "curvature"):
                parents["reference"] = self.reference()
            elif need == "trajectory":
                parents["trajectory"] = self.trajectory(selector.warmup())
            else:
                raise ValueError(
                    f"{type(selector).__name__} needs {need!r}; "
                    f"expected one of {', '.join(NEEDS)} or row:NAME"
                )
        return parents


def needs_engine(selector: Selector) -> bool:
    """Whether a selector's own stage decodes, so that its key must hold the engine."""
    return "decodes" in selector.requirements()
