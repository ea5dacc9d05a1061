"""Settings of the influence study and the stages that follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import testbed
from harness.experiment.config import PoolConfig, QueryConfig
from harness.experiment.stage import Stage
from harness.training.recipe import Recipe

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Protocol:
    """One influence study: pool, fine-tuner, ground truth, and how much of it.

    Settings of the engine were tried on pool and queries 0, so that the study takes others.
    `alpha`: share of the pool in each of the `halves` random subsets that are retrained with every
    one of `seeds`. Brittleness takes the first `removal_queries` queries and removes the share
    `removed` of the pool that each of `removal_methods` puts first, and `removal_random` random
    sets of that size, retrained with `removal_seeds`. `reference_seed`: of the model that influence
    is measured at, trained on the whole pool.
    """

    base: str = "small"
    pool_size: int = 500
    errors: str = "systematic"
    pool_seed: int = 1
    queries: int = 64
    query_seed: int = 1
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            learning_rate=1e-3, max_tokens=128, budget="steps", steps=40, batch_size=32
        )
    )
    reference_seed: int = 0
    alpha: float = 0.5
    halves: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    removed: tuple[float, ...] = (0.1,)
    removal_queries: int = 10
    removal_methods: tuple[str, ...] = ("identity", "ekfac", "ekfac+cg")
    removal_random: int = 10
    removal_seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if self.base not in testbed.BASES:
            raise ValueError(f"base is {self.base!r}; expected one of {sorted(testbed.BASES)}")
        for name in ("alpha", *(f"removed[{i}]" for i in range(len(self.removed)))):
            value = self.alpha if name == "alpha" else self.removed[int(name[8:-1])]
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}; expected a share between 0 and 1")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds is {self.seeds!r}; expected two, or there is no noise ceiling")
        if self.removal_queries > self.queries:
            raise ValueError(
                f"removal_queries is {self.removal_queries!r}; expected at most {self.queries}"
            )

    def members(self) -> npt.NDArray[np.bool_]:
        """Which example is in which half, [halves, pool]: uniform without replacement."""
        size = round(self.alpha * self.pool_size)
        rng = np.random.default_rng([self.pool_seed, 31])
        found = np.zeros((self.halves, self.pool_size), dtype=bool)
        for row in found:
            row[rng.choice(self.pool_size, size, replace=False)] = True
        return found

    def random_removals(self, share: float) -> npt.NDArray[np.bool_]:
        """Which example each random removal of this size takes away, [removal_random, pool]."""
        size = round(share * self.pool_size)
        rng = np.random.default_rng([self.pool_seed, 32, size])
        found = np.zeros((self.removal_random, self.pool_size), dtype=bool)
        for row in found:
            row[rng.choice(self.pool_size, size, replace=False)] = True
        return found

    def as_dict(self) -> dict[str, Any]:
        """As `protocol.toml` holds it; settings that are None are left out."""
        found = dataclasses.asdict(self)
        found["recipe"] = _without_none(found["recipe"])
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


@dataclass(frozen=True)
class Stages:
    """What every retraining and every score stands on; the base model is the experiments' own."""

    tokenizer: Stage
    base: Stage
    pool: Stage
    queryset: Stage
    everything: Stage
    reference: Stage
    trajectory: Stage

    @classmethod
    def of(cls, protocol: Protocol) -> Stages:
        """The stages of `protocol`."""
        tokenizer = Stage("tokenizer", "tokenizer", {"testbed": "chain"})
        spec = {**dataclasses.asdict(testbed.BASES[protocol.base]), "seed": 0}
        base = Stage("base", "base model", {"spec": spec}, {"tokenizer": tokenizer})
        own = PoolConfig(
            dataset="testbed:chain",
            size=protocol.pool_size,
            errors=protocol.errors,  # type: ignore[arg-type]
            seed=protocol.pool_seed,
        )
        asked = QueryConfig(
            dataset="testbed:queries", size=protocol.queries, seed=protocol.query_seed
        )
        pool = Stage("pool", "pool", _data(own, protocol), {"tokenizer": tokenizer})
        queryset = Stage("queryset", "query set", _data(asked, protocol), {"tokenizer": tokenizer})
        everything = Stage(
            "subset", "the whole pool", {"control": "full", "fraction": 1.0}, {"pool": pool}
        )
        recipe = _without_none(dataclasses.asdict(protocol.recipe))
        inputs = {"recipe": recipe, "seed": protocol.reference_seed}
        parents = {"subset": everything, "model": base, "pool": pool}
        reference = Stage("checkpoint", "reference model", inputs, parents)
        warmup = {"share": 1.0, "checkpoints": 4, "epochs": None, "moments": True}
        trajectory = Stage(
            "trajectory",
            "checkpoints on the way to the reference model",
            {**inputs, "warmup": {**warmup, "minimum": 1, "seed": 0}},
            {"model": base, "pool": pool},
        )
        return cls(tokenizer, base, pool, queryset, everything, reference, trajectory)

    def shared(self) -> tuple[Stage, ...]:
        """All of them, parents first."""
        return (
            self.tokenizer,
            self.base,
            self.pool,
            self.queryset,
            self.everything,
            self.reference,
            self.trajectory,
        )

    def retraining(self, protocol: Protocol, keep: list[str], seed: int, label: str) -> Stage:
        """The base fine-tuned on the examples called `keep`, and what it makes of the queries."""
        inputs = {
            "recipe": _without_none(dataclasses.asdict(protocol.recipe)),
            "seed": seed,
            "keep": keep,
        }
        parents = {"model": self.base, "pool": self.pool, "queryset": self.queryset}
        return Stage("retraining", f"{label}, seed {seed}", inputs, parents)


def _data(config: PoolConfig | QueryConfig, protocol: Protocol) -> dict[str, Any]:
    """Inputs of a data stage, as an experiment writes them."""
    values = config.model_dump(exclude={"dataset"}, exclude_none=True)
    return {"testbed": config.testbed, **values, "max_tokens": protocol.recipe.max_tokens}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
