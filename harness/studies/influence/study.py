"""The influence study from nothing to its results: what is missing is built, then written down."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tomli_w
from rich.console import Console

from harness.data import testbed
from harness.data.pool import Pool
from harness.experiment.records import provenance, write_atomic
from harness.experiment.settings import PoolConfig, QueryConfig, TrainingRecipe
from harness.experiment.stage import Stage, plain, with_ancestors
from harness.experiment.store import Store
from harness.running.builders import HIDDEN
from harness.running.display import LiveView
from harness.running.recipes import (
    BaseModelRecipe,
    CheckpointRecipe,
    ControlRecipe,
    PoolRecipe,
    QuerySetRecipe,
    TokenizerRecipe,
    TrajectoryRecipe,
)
from harness.running.schedule import Scheduler
from harness.running.workspace import device
from harness.selection.requests import Trajectory
from harness.studies.influence import builders, metrics
from harness.studies.influence.builders import RetrainingRecipe
from harness.studies.influence.metrics import ANCHOR, RANDOM, SHUFFLED, Bools, Floats

SLOW = ("ekfac+cg",)
SHUFFLES = 200
"""Further shuffles, which say how far from 0 chance alone takes the score of one."""
HEAD = "# The protocol of this study as it was run; written before the first retraining.\n"


@dataclass(frozen=True)
class Protocol:
    """One influence study: pool, fine-tuner, ground truth, and how much of it.

    Settings of the engine were tried on pool and queries 0, so that the study takes others.
    `alpha`: share of the pool in each of the `halves` random subsets that are retrained with every
    one of `seeds`. Brittleness takes the first `removal_queries` queries and removes the share
    `removed` of the pool that each of `removal_methods` ranks highest, and `removal_random` random
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

    def members(self) -> Bools:
        """Which example is in which half, [halves, pool]: uniform without replacement."""
        size = round(self.alpha * self.pool_size)
        return self._subsets(np.random.default_rng([self.pool_seed, 31]), self.halves, size)

    def random_removals(self, share: float) -> Bools:
        """Which example each random removal of this size takes away, [removal_random, pool]."""
        size = round(share * self.pool_size)
        rng = np.random.default_rng([self.pool_seed, 32, size])
        return self._subsets(rng, self.removal_random, size)

    def _subsets(self, rng: np.random.Generator, count: int, size: int) -> Bools:
        subsets = np.zeros((count, self.pool_size), dtype=bool)
        for row in subsets:
            row[rng.choice(self.pool_size, size, replace=False)] = True
        return subsets

    def as_dict(self) -> dict[str, Any]:
        """As `protocol.toml` holds it; settings that are None are left out."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


class Stages(NamedTuple):
    """What every retraining and every score depends on; the base model is the experiments' own."""

    base: Stage
    pool: Stage
    queryset: Stage
    reference: Stage
    trajectory: Stage

    @classmethod
    def of(cls, protocol: Protocol) -> Stages:
        """The stages of `protocol`."""
        tokenizer = {"tokenizer": Stage(TokenizerRecipe(), "tokenizer")}
        spec = dataclasses.replace(testbed.BASES[protocol.base], seed=0)
        base = Stage(BaseModelRecipe(spec), "base model", tokenizer)
        pool_config = PoolConfig(
            dataset="testbed:chain",
            size=protocol.pool_size,
            errors=protocol.errors,  # type: ignore[arg-type]
            seed=protocol.pool_seed,
        )
        query_config = QueryConfig(
            dataset="testbed:queries", size=protocol.queries, seed=protocol.query_seed
        )
        recipe, seed = protocol.recipe, protocol.reference_seed
        pool = Stage(PoolRecipe(pool_config, recipe.max_tokens), "pool", tokenizer)
        queries = Stage(QuerySetRecipe(query_config, recipe.max_tokens), "query set", tokenizer)
        subset = Stage(ControlRecipe("full", 1.0), "the whole pool", {"pool": pool})
        parents = {"model": base, "pool": pool}
        reference = Stage(
            CheckpointRecipe(recipe, seed), "reference model", {"subset": subset, **parents}
        )
        trajectory = Stage(
            TrajectoryRecipe(recipe, Trajectory(checkpoints=4, moments=True), seed),
            "checkpoints on the way to the reference model",
            parents,
        )
        return cls(base, pool, queries, reference, trajectory)

    def retraining(self, protocol: Protocol, keep: Iterable[str], seed: int, label: str) -> Stage:
        """The base fine-tuned on the examples called `keep`, and what it makes of the queries."""
        recipe = RetrainingRecipe(protocol.recipe, seed, tuple(keep))
        parents = {"model": self.base, "pool": self.pool, "queryset": self.queryset}
        return Stage(recipe, f"{label}, seed {seed}", parents)

    def prediction(self, method: str) -> Stage:
        """The stage that scores the pool by `method`."""
        parents = {"model": self.reference, "pool": self.pool, "queryset": self.queryset}
        if method == builders.TRACIN:
            parents |= {"trajectory": self.trajectory, "base": self.base}
        return Stage(builders.prediction(method), f"influence by {method}", parents)


class Retraining(NamedTuple):
    """One retraining: the number of its subset (or its query), its seed, and what was removed."""

    number: int
    seed: int
    stage: Stage
    method: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class Study:
    """One influence study over a store; `peer`: with kronfluence's EK-FAC beside our own."""

    protocol: Protocol
    store: Store
    workers: int
    console: Console
    peer: bool = True

    @cached_property
    def stages(self) -> Stages:
        """What everything depends on."""
        return Stages.of(self.protocol)

    @cached_property
    def pool(self) -> Pool:
        """The pool, once it is built."""
        return Pool.load(self.store.folder(self.stages.pool))

    @cached_property
    def queries(self) -> Pool:
        """The query set, once it is built."""
        return Pool.load(self.store.folder(self.stages.queryset))

    def run(self, folder: Path) -> None:
        """Build what the store lacks and write the results into `folder`."""
        write_atomic(folder / "protocol.toml", self.protocol_text().encode())
        self._build([self.stages.pool, self.stages.queryset], "data sets")
        halves = self.halves()
        predictions = {m: self.stages.prediction(m) for m in builders.methods(self.peer)}
        # The longest first: conjugate gradients take many passes, the rest fills the other cores.
        slow = [s for s in predictions.values() if s.recipe.options.kind in SLOW]  # type: ignore[attr-defined]
        wanted = [*slow, *(half.stage for half in halves), *predictions.values()]
        self._build(wanted, "scores and retrainings on halves")
        influence, self_influence = self._scores(predictions)
        removals = list(self._removals(influence))
        self._build([r.stage for r in removals], "retrainings without the top examples")
        truth = self._table(halves)
        _save(folder / "outcomes.parquet", truth)
        _save(folder / "predictions.parquet", self._predicted(influence))
        _save(folder / "scores.parquet", self._example_scores(influence, self_influence))
        _save(folder / "removals.parquet", self._table(removals).rename(columns={"half": "set"}))
        outcome = truth.groupby(["half", "query"])["log_probability"].mean().unstack()
        outcome = outcome[list(self.queries.ids)].to_numpy()
        facts = self._facts(predictions) | {"chance": self._chance(influence, outcome)}
        write_atomic(folder / "facts.json", (json.dumps(facts, indent=1) + "\n").encode())

    def protocol_text(self) -> str:
        """What `protocol.toml` holds."""
        return HEAD + tomli_w.dumps(self.protocol.as_dict())

    def _build(self, wanted: list[Stage], title: str) -> None:
        """Build every stage that the store lacks, with what it depends on.

        RuntimeError names a stage that failed. What is finished stays, so that the next call
        continues.
        """
        origin = provenance(Path(__file__).parents[3], device(), {})
        scheduler = Scheduler(self.store, self.workers, provenance=origin)
        jobs = scheduler.jobs(wanted)
        if not jobs:
            return
        view = LiveView(self.console, title, counts_jobs=True)
        try:
            view.begin(list(with_ancestors(wanted)), jobs, self.workers)
            scheduler.run(jobs, view, stop_at_failure=True)
        finally:
            view.end()
        for stage, error in scheduler.failures.values():
            log = self.store.log(stage)
            where = "" if log is None else f"; its output is in {log}"
            raise RuntimeError(f"{stage.label}: {error['message']}{where}")

    def halves(self) -> list[Retraining]:
        """The ground truth: every half with every seed."""
        return [
            self._retraining(number, seed, members, f"half {number}")
            for number, members in enumerate(self.protocol.members())
            for seed in self.protocol.seeds
        ]

    def _removals(self, influence: Mapping[str, Floats]) -> Iterator[Retraining]:
        protocol = self.protocol
        for share in protocol.removed:
            for number, gone in enumerate(protocol.random_removals(share)):
                for seed in protocol.removal_seeds:
                    label = f"without {share:.0%} at random"
                    yield self._retraining(number, seed, ~gone, label, RANDOM, share)
            for method in protocol.removal_methods:
                for query in range(protocol.removal_queries):
                    gone = metrics.top(influence[method][:, query], share)
                    for seed in protocol.removal_seeds:
                        label = f"without the top {share:.0%} of {method} for query {query}"
                        yield self._retraining(query, seed, ~gone, label, method, share)

    def _retraining(
        self, number: int, seed: int, members: Bools, label: str, method: str = "", share: float = 0
    ) -> Retraining:
        keep = [name for name, kept in zip(self.pool.ids, members, strict=True) if kept]
        stage = self.stages.retraining(self.protocol, keep, seed, label)
        return Retraining(number, seed, stage, method, share)

    def _table(self, retrainings: Iterable[Retraining]) -> pd.DataFrame:
        """Log-probabilities by retraining and query; after removals of the first queries only."""
        tables = []
        for number, seed, stage, method, share in retrainings:
            ids = self.queries.ids
            values = builders.read_outcomes(stage, self.store, ids)
            table = pd.DataFrame({"half": number, "seed": seed, "query": list(ids)})
            table["log_probability"] = values
            if method:
                table = table[: self.protocol.removal_queries].assign(method=method, share=share)
            tables.append(table)
        return pd.concat(tables)

    def _scores(
        self, predictions: Mapping[str, Stage]
    ) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Influence [n, q] of every method, shuffled scores with them, and self-influence [n]."""
        influence, self_influence = {}, {}
        for name, stage in predictions.items():
            scores = builders.read_prediction(stage, self.store, self.pool, self.queries)
            influence[name], squares = scores
            if squares is not None:
                self_influence[name] = squares
        rng = np.random.default_rng([self.protocol.pool_seed, 33])
        influence[SHUFFLED] = shuffled(influence[ANCHOR], rng)
        return influence, self_influence

    def _predicted(self, influence: Mapping[str, Floats]) -> pd.DataFrame:
        """Summed influence of every half on every query, by method."""
        members, tables = self.protocol.members().astype(np.float64), []
        for name, scores in influence.items():
            table = pd.DataFrame(members @ scores, columns=list(self.queries.ids))
            table = table.rename_axis("half").reset_index().melt("half", None, "query", "predicted")
            tables.append(table.assign(method=name))
        return pd.concat(tables)

    def _example_scores(
        self, influence: Mapping[str, Floats], self_influence: Mapping[str, Floats]
    ) -> pd.DataFrame:
        """Planted class, mean influence over the queries and self-influence of every example."""
        hidden = pd.read_parquet(self.store.folder(self.stages.pool) / HIDDEN)
        table = hidden.set_index("id").loc[list(self.pool.ids), ["quality"]].reset_index()
        for name, scores in influence.items():
            table[name] = scores.mean(axis=1)
        for name, squares in self_influence.items():
            # High self-influence is evidence against an example; higher = better everywhere.
            table[f"self {name}"] = -squares
        return table

    def _chance(self, influence: Mapping[str, Floats], outcome: Floats) -> dict[str, float]:
        """LDS of shuffled influence: mean, standard deviation, how many are farther from 0."""
        rng = np.random.default_rng([self.protocol.pool_seed, 34])
        members = self.protocol.members().astype(np.float64)

        def score(scores: Floats) -> float:
            return float(metrics.spearman(members @ scores, outcome).mean())

        others = [score(shuffled(influence[ANCHOR], rng)) for _ in range(SHUFFLES)]
        farther = np.abs(others) > abs(score(influence[SHUFFLED]))
        return {
            "shuffles": SHUFFLES,
            "mean": float(np.mean(others)),
            "sd": float(np.std(others, ddof=1)),
            "farther": int(farther.sum()),
        }

    def _facts(self, predictions: Mapping[str, Stage]) -> dict[str, Any]:
        """Where the numbers come from and what the scoring cost."""
        artefacts = {name: self.store.load(stage) for name, stage in predictions.items()}
        return {
            "study": "influence",
            "peer": self.peer,
            "correct_classes": sorted(testbed.CORRECT),
            "retrainings": self.store.load(self.stages.reference).meta["provenance"],
            "predictions": {name: a.meta["provenance"] for name, a in artefacts.items()},
            "keys": {name: stage.key for name, stage in predictions.items()},
            "seconds": {name: a.info["seconds"] for name, a in artefacts.items()},
        }


def shuffled(scores: Floats, rng: np.random.Generator) -> Floats:
    """Scores in random order, every query in its own: what no information scores.

    One order for all queries would give all of them the same luck.
    """
    order: Floats = rng.permuted(scores, axis=0)
    return order


def _save(path: Path, table: pd.DataFrame) -> None:
    """Write in one step, so that a report never meets half a file."""
    buffer = io.BytesIO()
    table.reset_index(drop=True).to_parquet(buffer, index=False, compression="zstd")
    write_atomic(path, buffer.getvalue())
