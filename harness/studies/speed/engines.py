"""Every engine behind one interface, and what a single process measures of it.

A process runs one engine once. Importing, loading model and data, and a first run on a few examples
(which compiles and caches what is made on first use) come before the clock starts. An engine's
`fit` ends with a curvature on this definition, its `scores` starts with the queries and ends with
one number per example of the pool.
"""

from __future__ import annotations

import abc
import gc
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import influence
from harness.data.pool import Pool
from harness.influence.batches import batches, device_of, example_losses, model_inputs
from harness.influence.head import captured, token_losses
from harness.influence.kernels.attention import fused_attention
from harness.influence.kernels.matmul import frozen
from harness.influence.layers import Gradients, output_layer
from harness.studies.speed.bergson_ import Bergson
from harness.studies.speed.kronfluence_ import Kronfluence
from harness.studies.speed.workload import WARM_UP, Workload, load, load_model

Scores = npt.NDArray[np.float64]
Factors = dict[str, tuple[Tensor, Tensor, Tensor]]
DAMPING = 0.1


class Engine(abc.ABC):
    """One engine on one model, pool and set of queries; files go to `folder`."""

    def __init__(self, source: Path, workload: Workload, folder: Path, fisher: str, loss: str):
        self._source, self._workload, self._folder = source, workload, folder
        self._fisher, self._loss = fisher, loss

    @abc.abstractmethod
    def start(self, pool: Pool, queries: Pool) -> None:
        """All that is not timed: load the model and the data."""

    @abc.abstractmethod
    def fit(self) -> None:
        """Estimate the curvature on the pool."""

    @abc.abstractmethod
    def scores(self) -> Scores:
        """Influence of every example on the mean query gradient, [n]."""

    @abc.abstractmethod
    def factors(self) -> Factors:
        """Layer -> Q_A, Q_S as columns and Lambda [out, in (+ 1)] of the curvature just fitted."""

    def details(self) -> dict[str, float]:
        """More seconds, by name, where the engine has parts worth a number of their own."""
        return {}

    def untimed(self) -> float:
        """Seconds of loading that happened inside the timed calls so far."""
        return 0.0


class Ours(Engine):
    """`harness.influence` with its default options."""

    def start(self, pool: Pool, queries: Pool) -> None:
        """Eager attention, which leaves the engine every choice; on a GPU, where it would keep
        tokens x tokens for every head, the kernel that transformers chooses."""
        kernel = "eager" if self._workload.device == "cpu" else "sdpa"
        self._model: Any = load_model(self._source, self._workload, kernel)
        self._pool, self._queries = pool, queries
        exact = {"basis_sample": None} if self._fisher == "empirical" else {}
        self._options = influence.CurvatureOptions(
            damping=DAMPING,
            fisher=self._fisher,  # type: ignore[arg-type]
            loss=self._loss,  # type: ignore[arg-type]
            batch_size=self._workload.batch_size,
            **exact,  # type: ignore[arg-type]
        )

    def fit(self) -> None:
        """EK-FAC."""
        self._curvature = influence.fit(self._model, self._pool, self._options)

    def scores(self) -> Scores:
        """Query gradient, its direction, and one pass over the pool along it."""
        self._direction = self._towards(self._queries)
        return self._pass(self._direction)[:, 0]

    def details(self) -> dict[str, float]:
        """The pass over the pool alone, along one direction and along two."""
        half = len(self._queries) // 2
        sides = [
            self._towards(self._queries.take(part))
            for part in (range(half), range(half, len(self._queries)))
        ]
        two = {name: torch.cat([side[name] for side in sides]) for name in sides[0]}
        return {
            "pass_one_s": timed(lambda: self._pass(self._direction)),
            "pass_two_s": timed(lambda: self._pass(two)),
        }

    def factors(self) -> Factors:
        """The bases of all layers."""
        found = self._curvature.tensors()
        return {
            name: (
                found[f"{name}/inputs"],
                found[f"{name}/outputs"],
                found[f"{name}/eigenvalues"],
            )
            for name in self._curvature.shapes
        }

    def _towards(self, queries: Pool) -> Gradients:
        gradient = influence.query_gradients(self._model, queries, self._options, aggregate="mean")
        return self._curvature.apply({name: part[None] for name, part in gradient.items()})

    def _pass(self, directions: Gradients) -> Scores:
        return influence.directional_scores(self._model, self._pool, directions, self._options)


class Kron(Engine):
    """kronfluence, with aggregated query gradients."""

    def start(self, pool: Pool, queries: Pool) -> None:
        """The attention kernel that transformers chooses."""
        self._pool, self._queries = pool, queries
        self._engine = Kronfluence(
            load_model(self._source, self._workload, "sdpa"),
            self._folder,
            batch_size=self._workload.batch_size,
            damping=DAMPING,
            fisher=self._fisher,
            reduction=self._loss,
        )

    def fit(self) -> None:
        """EK-FAC."""
        self._engine.fit(self._pool)

    def scores(self) -> Scores:
        """Query gradients, preconditioned, and their products with the pool's."""
        return self._engine.scores(self._pool, self._queries, aggregate=True)[:, 0]

    def factors(self) -> Factors:
        """As loaded from its files."""
        return self._engine.factors()


class Berg(Engine):
    """bergson, step by step."""

    forward = False

    def start(self, pool: Pool, queries: Pool) -> None:
        """Model and data into its own files."""
        self._engine = Bergson(
            self._source / "model",
            self._folder,
            pool,
            queries,
            batch_size=self._workload.batch_size,
            precision={"float32": "fp32", "bfloat16": "bf16"}[self._workload.dtype],
            fisher=self._fisher,
            reduction=self._loss,
            forward=self.forward,
        )

    def fit(self) -> None:
        """EK-FAC."""
        self._engine.fit()

    def scores(self) -> Scores:
        """Query gradient, its direction, and the pool's gradients along it."""
        return self._engine.scores()

    def factors(self) -> Factors:
        """As loaded from its files."""
        return self._engine.factors()

    def untimed(self) -> float:
        """It loads the model and the data anew in every step."""
        return self._engine.loading


class BergForward(Berg):
    """bergson with its forward-mode scoring."""

    forward = True


ENGINES: dict[str, type[Engine]] = {
    "ours": Ours,
    "kronfluence": Kron,
    "bergson": Berg,
    "bergson-forward": BergForward,
}


def run(
    name: str,
    source: Path,
    workload: Workload,
    folder: Path,
    *,
    fisher: str = "true",
    loss: str = "mean",
    examples: int | None = None,
) -> tuple[dict[str, Any], Scores, Engine]:
    """Seconds and peak memory of one run of engine `name`, its scores, and the engine.

    `examples`: the pool repeated or cut to so many.
    """
    pool, queries = load(source)
    if examples is not None:
        pool = repeated(pool, examples)
    small = source / "warm" if (source / "warm").is_dir() else source
    first = ENGINES[name](small, workload, _new(folder / "warm"), fisher, loss)
    few = load(small)
    first.start(few[0].take(range(WARM_UP[0])), few[1].take(range(WARM_UP[1])))
    first.fit()
    first.scores()
    del first
    gc.collect()
    engine = ENGINES[name](source, workload, _new(folder / "run"), fisher, loss)
    engine.start(pool, queries)
    loaded = peak_mb()
    if workload.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: list[Scores] = []
    used = [time.process_time()]
    fit = timed(engine.fit) - engine.untimed()
    used.append(time.process_time())
    before = engine.untimed()
    score = timed(lambda: found.append(engine.scores())) - (engine.untimed() - before)
    used.append(time.process_time())
    measured = {"fit_s": fit, "score_s": score, "total_s": fit + score}
    measured |= {"peak_mb": peak_mb(), "loaded_mb": loaded}
    # Processor seconds of all threads (and of loading, where an engine loads in between): what a
    # busy machine leaves comparable.
    measured |= {"fit_cpu_s": used[1] - used[0], "score_cpu_s": used[2] - used[1]}
    if workload.device == "cuda":
        measured["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return measured | engine.details(), found[0], engine


def perplexity(source: Path, workload: Workload) -> dict[str, float]:
    """Seconds of one pass over the pool that computes every example's mean token loss.

    `perplexity_pass_s`: the model as transformers loads it, padded batches with their mask, all
    logits. `perplexity_pass_best_s`: what this project's engine has for forward passes, too (no
    mask, the head on loss-carrying positions only, the quicker library for matrix products).
    """
    pool, _ = load(source)
    model = load_model(source, workload, "sdpa")
    size, device = workload.batch_size, device_of(model)

    def plain(examples: Pool) -> None:
        with torch.no_grad():
            for batch in batches(examples, size, device):
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
                losses = cross_entropy(
                    logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="none"
                )
                counts = (batch.labels[:, 1:] != -100).sum(dim=1)
                _ = losses.view(len(counts), -1).sum(dim=1) / counts

    def best(examples: Pool) -> None:
        with torch.no_grad(), fused_attention(model), frozen(model):
            for batch in batches(examples, size, device):
                _mean_losses(model, batch)

    few = pool.take(range(WARM_UP[0]))
    found = {}
    for name, passes in (("perplexity_pass_s", plain), ("perplexity_pass_best_s", best)):
        passes(few)
        found[name] = timed(partial(passes, pool))
    return found


def _mean_losses(model: nn.Module, batch: Any) -> Tensor:
    head = output_layer(model)
    if not isinstance(head, nn.Linear):
        return example_losses(model(**model_inputs(model, batch)).logits, batch.labels, "mean")
    with captured(head) as capture:
        model(**model_inputs(model, batch))
    assert capture.hidden is not None
    mask = batch.carrying
    losses = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    losses[mask] = token_losses(head, capture.hidden[mask], batch.labels[:, 1:][mask[:, :-1]])
    return losses.sum(dim=1) / mask.sum(dim=1)


def repeated(pool: Pool, size: int) -> Pool:
    """`size` examples: the pool over and over, under new ids."""
    positions = [i % len(pool) for i in range(size)]
    return Pool(
        tuple(f"{pool.ids[p]}-{i}" for i, p in enumerate(positions)),
        tuple(pool.input_ids[p] for p in positions),
        tuple(pool.labels[p] for p in positions),
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, the device's included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
