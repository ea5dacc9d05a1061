"""The influence study from nothing to its results: what is missing is made, then written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
from rich.console import Console

from harness.data.pool import Pool
from harness.experiment.records import provenance, write_atomic
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running.builders import HIDDEN
from harness.running.display import LiveView
from harness.running.schedule import Scheduler
from harness.running.workspace import device
from harness.studies.influence import brittle, metrics, predict, retrain
from harness.studies.influence.predict import options_of
from harness.studies.influence.protocol import Protocol, Stages

SLOW = ("ekfac+cg",)
RANDOM, SHUFFLED = "random", "shuffled"
SHUFFLES = 200
"""Further shuffles, which say how far from 0 chance alone takes the score of one."""
HEAD = "# The protocol of this study as it was run; written before the first retraining.\n"


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
        """What everything stands on."""
        return Stages.of(self.protocol)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Provenance of whatever is made now."""
        return provenance(Path(__file__).parents[3], device(), {})

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """What is compared: every method, then the variants of one."""
        return (*predict.methods(self.peer), *predict.VARIANTS)

    @cached_property
    def pool(self) -> Pool:
        """The pool, once it is made."""
        return Pool.load(self.store.folder(self.stages.pool))

    @cached_property
    def queries(self) -> Pool:
        """The query set, once it is made."""
        return Pool.load(self.store.folder(self.stages.queryset))

    def run(self, folder: Path) -> None:
        """Make what the store lacks and write the results into `folder`."""
        write_atomic(folder / "protocol.toml", self.protocol_text().encode())
        for stage in self.stages.shared():
            self._complete([stage], stage.label)
        halves = self._halves()
        scored = {name: self._prediction(name) for name in self.methods}
        # The longest first: conjugate gradients take many passes, the rest fills the other cores.
        order = [stage for name, stage in scored.items() if options_of(name).kind in SLOW]
        order += [*(stage for *_, stage in halves), *scored.values()]
        self._complete(order, "scoring and retraining on halves")
        influence, own = self._scores(scored)
        removals = list(self._removals(influence))
        self._complete([stage for *_, stage in removals], "retraining without the top examples")
        self._write(folder, halves, influence, own, removals, scored)

    def protocol_text(self) -> str:
        """What `protocol.toml` holds."""
        return HEAD + tomli_w.dumps(self.protocol.as_dict())

    def _complete(self, stages: list[Stage], title: str) -> None:
        """Build every stage that the store lacks, in the order given.

        RuntimeError names a stage that failed. What is finished stays, so that the next call
        continues.
        """
        unique = list({stage.key: stage for stage in stages}.values())
        missing = [stage for stage in unique if not self.store.has(stage)]
        if not missing:
            return
        scheduler = Scheduler(self.store, self.workers, provenance=self.origin)
        view = LiveView(self.console, title, counts_jobs=True)
        jobs = [scheduler.job(stage) for stage in missing]
        try:
            view.begin(unique, jobs, self.workers)
            scheduler.run(jobs, view, stop_at_failure=True)
        finally:
            view.end()
        for stage, error in scheduler.failures.values():
            log = self.store.log(stage)
            where = "" if log is None else f"; its output is in {log}"
            raise RuntimeError(f"{stage.label}: {error['message']}{where}")

    def _prediction(self, method: str) -> Stage:
        return predict.stage_of(method, self.stages)

    def _kept(self, members: np.ndarray) -> list[str]:
        return [name for name, kept in zip(self.pool.ids, members, strict=True) if kept]

    def _retraining(self, members: np.ndarray, seed: int, label: str) -> Stage:
        return self.stages.retraining(self.protocol, self._kept(members), seed, label)

    def _halves(self) -> list[tuple[int, int, Stage]]:
        """Half, seed and retraining."""
        return [
            (half, seed, self._retraining(members, seed, f"half {half}"))
            for half, members in enumerate(self.protocol.members())
            for seed in self.protocol.seeds
        ]

    def _scores(
        self, scored: Mapping[str, Stage]
    ) -> tuple[dict[str, predict.Floats], dict[str, predict.Floats]]:
        """Influence [n, q] of every method, shuffled scores with them, and self-influence [n]."""
        influence, own = {}, {}
        for name, stage in scored.items():
            influence[name], alone = predict.read(stage, self.store, self.pool, self.queries)
            if alone is not None:
                own[name] = alone
        rng = np.random.default_rng([self.protocol.pool_seed, 33])
        influence[SHUFFLED] = predict.shuffled(influence, rng)
        return influence, own

    def _removals(
        self, influence: Mapping[str, predict.Floats]
    ) -> Iterator[tuple[str, float, int, int, Stage]]:
        """Method, share, query (or number of the random set), seed and retraining."""
        protocol = self.protocol
        for share in protocol.removed:
            for number, gone in enumerate(protocol.random_removals(share)):
                for seed in protocol.removal_seeds:
                    label = f"without {share:.0%} at random"
                    yield RANDOM, share, number, seed, self._retraining(~gone, seed, label)
            for method in protocol.removal_methods:
                for query in range(protocol.removal_queries):
                    gone = brittle.top(influence[method][:, query], share)
                    for seed in protocol.removal_seeds:
                        label = f"without the top {share:.0%} of {method} for query {query}"
                        yield method, share, query, seed, self._retraining(~gone, seed, label)

    def _write(
        self,
        folder: Path,
        halves: list[tuple[int, int, Stage]],
        influence: Mapping[str, predict.Floats],
        own: Mapping[str, predict.Floats],
        removals: list[tuple[str, float, int, int, Stage]],
        scored: Mapping[str, Stage],
    ) -> None:
        ids = list(self.queries.ids)
        truth = [self._outcome(half, seed, stage) for half, seed, stage in halves]
        _parquet(folder / "outcomes.parquet", pd.concat(truth))
        members = self.protocol.members()
        sums = []
        for name, values in influence.items():
            table = pd.DataFrame(metrics.predictions(members, values), columns=ids)
            table = table.rename_axis("half").reset_index().melt("half", None, "query", "predicted")
            sums.append(table.assign(method=name))
        _parquet(folder / "predictions.parquet", pd.concat(sums))
        _parquet(folder / "scores.parquet", self._example_scores(influence, own))
        fallen = [
            self._outcome(number, seed, stage, self.protocol.removal_queries).assign(
                method=method, share=share
            )
            for method, share, number, seed, stage in removals
        ]
        _parquet(folder / "removals.parquet", pd.concat(fallen).rename(columns={"half": "set"}))
        outcomes = pd.concat(truth).groupby(["half", "query"])["log_probability"].mean().unstack()
        facts = self._facts(scored) | {"chance": self._chance(influence, outcomes[ids].to_numpy())}
        write_atomic(folder / "facts.json", (json.dumps(facts, indent=1) + "\n").encode())

    def _chance(
        self, influence: Mapping[str, predict.Floats], outcomes: predict.Floats
    ) -> dict[str, float]:
        """Scores of shuffled influence: mean, standard deviation, how many lie farther from 0."""
        rng = np.random.default_rng([self.protocol.pool_seed, 34])
        members = self.protocol.members()
        found = [
            metrics.spearman(
                metrics.predictions(members, predict.shuffled(influence, rng)), outcomes
            ).mean()
            for _ in range(SHUFFLES)
        ]
        own = metrics.spearman(metrics.predictions(members, influence[SHUFFLED]), outcomes).mean()
        return {
            "shuffles": SHUFFLES,
            "mean": float(np.mean(found)),
            "sd": float(np.std(found, ddof=1)),
            "farther": int((np.abs(found) > abs(own)).sum()),
        }

    def _outcome(
        self, number: int, seed: int, stage: Stage, queries: int | None = None
    ) -> pd.DataFrame:
        values = retrain.outcomes(stage, self.store, self.queries.ids)[:queries]
        return pd.DataFrame(
            {
                "half": number,
                "seed": seed,
                "query": list(self.queries.ids)[:queries],
                "log_probability": values,
            }
        )

    def _example_scores(
        self, influence: Mapping[str, predict.Floats], own: Mapping[str, predict.Floats]
    ) -> pd.DataFrame:
        """Planted class, mean influence over the queries and self-influence of every example."""
        hidden = pd.read_parquet(self.store.folder(self.stages.pool) / HIDDEN)
        table = hidden.set_index("id").loc[list(self.pool.ids), ["quality"]].reset_index()
        for name, values in influence.items():
            table[name] = values.mean(axis=1)
        for name, alone in own.items():
            # High self-influence is what speaks against an example; higher = better everywhere.
            table[f"self {name}"] = -alone
        return table

    def _facts(self, scored: Mapping[str, Stage]) -> dict[str, Any]:
        """Where the numbers come from and what the scoring cost."""
        made = {name: self.store.get(stage) for name, stage in scored.items()}
        seconds, origins = {}, {}
        for name, artefact in made.items():
            assert artefact is not None
            seconds[name] = artefact.info["seconds"]
            origins[name] = artefact.meta["provenance"]
        first = self.store.get(self.stages.reference)
        assert first is not None
        return {
            "study": "influence",
            "peer": self.peer,
            "correct_classes": sorted(_correct()),
            "retrainings": first.meta["provenance"],
            "predictions": origins,
            "keys": {name: stage.key for name, stage in scored.items()},
            "seconds": seconds,
        }


def _correct() -> frozenset[str]:
    from harness.data import testbed

    return testbed.CORRECT


def _parquet(path: Path, table: pd.DataFrame) -> None:
    """Write in one step, so that a report never meets half a file."""
    import io

    buffer = io.BytesIO()
    table.reset_index(drop=True).to_parquet(buffer, index=False, compression="zstd")
    write_atomic(path, buffer.getvalue())
