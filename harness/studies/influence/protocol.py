"""Settings of the influence study and the stages that follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import testbed
from harness.experiment.settings import PoolConfig, QueryConfig, TrainingRecipe
from harness.experiment.stage import Recipe, Stage, plain
from harness.running.recipes import (
    BaseModelRecipe,
    CheckpointRecipe,
    ControlRecipe,
    PoolRecipe,
    QuerySetRecipe,
    TokenizerRecipe,
    TrajectoryRecipe,
)
from harness.selection.requests import Trajectory

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
    recipe: TrainingRecipe = field(
        default_factory=lambda: TrainingRecipe(
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
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class RetrainingRecipe(Recipe):
    """The base fine-tuned on the examples `keep`, and what it makes of the queries."""

    kind = "retraining"
    builder = "harness.studies.influence.retrain:build"
    seconds = 8.0
    train: TrainingRecipe
    seed: int
    keep: tuple[str, ...]


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
        tokenizer = Stage(TokenizerRecipe(), "tokenizer")
        parents = {"tokenizer": tokenizer}
        spec = replace(testbed.BASES[protocol.base], seed=0)
        base = Stage(BaseModelRecipe(spec), "base model", parents)
        pool_config = PoolConfig(
            dataset="testbed:chain",
            size=protocol.pool_size,
            errors=protocol.errors,  # type: ignore[arg-type]
            seed=protocol.pool_seed,
        )
        query_config = QueryConfig(
            dataset="testbed:queries", size=protocol.queries, seed=protocol.query_seed
        )
        max_tokens = protocol.recipe.max_tokens
        pool = Stage(PoolRecipe(pool_config, max_tokens), "pool", parents)
        queryset = Stage(QuerySetRecipe(query_config, max_tokens), "query set", parents)
        everything = Stage(ControlRecipe("full", 1.0), "the whole pool", {"pool": pool})
        reference = Stage(
            CheckpointRecipe(protocol.recipe, protocol.reference_seed),
            "reference model",
            {"subset": everything, "model": base, "pool": pool},
        )
        run = Trajectory(checkpoints=4, moments=True)
        trajectory = Stage(
            TrajectoryRecipe(protocol.recipe, run, protocol.reference_seed),
            "checkpoints on the way to the reference model",
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
        recipe = RetrainingRecipe(protocol.recipe, seed, tuple(keep))
        parents = {"model": self.base, "pool": self.pool, "queryset": self.queryset}
        return Stage(recipe, f"{label}, seed {seed}", parents)
