"""Every engine behind one interface, and one measurement: `python -m ...speed.engines FOLDER`.

The folder holds job.json with `engine`, `source`, `workload`, `threads`, and where they differ from
the defaults `fisher`, `loss`, `examples` (the pool repeated or cut to so many) and `exact`. It gets
result.json (seconds and memory), scores.npy and, with `exact`, exact.npz.

A process runs one engine once. Imports, loading model and data, and a first run on a few examples
(which compiles and caches what is made on first use) come before the clock starts.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import influence
from harness.data.pool import IGNORED, Pool
from harness.influence.batches import batches
from harness.influence.layers import Gradients, Layer, tracked_layers
from harness.studies.speed.bergson_ import Bergson
from harness.studies.speed.kronfluence_ import Kronfluence
from harness.studies.speed.workload import (
    LONG,
    PERPLEXITY,
    WARM_UP,
    WORKLOADS,
    Workload,
    load,
    load_model,
)

Scores = npt.NDArray[np.float64]
Factors = Mapping[str, tuple[Tensor, Tensor, Tensor]]
"""Layer -> Q_A, Q_S as columns and Lambda [out, in (+ 1)] of a fitted curvature."""

DAMPING = 0.1
EXACT_EXAMPLES = 256
"""Examples that are scored exactly, spread evenly over the pool."""
LARGE, LARGE_TOKENS = 10**8, 3 << 14
"""Models of at least so many parameters are scored exactly on only so many tokens in all."""


class Ours:
    """`harness.influence` with its default options."""

    loading = 0.0
    """Seconds spent on loading inside `fit` and `scores` so far."""

    def __init__(
        self,
        model: nn.Module,
        pool: Pool,
        queries: Pool,
        batch_size: int,
        damping: float,
        fisher: str = "true",
        loss: str = "mean",
    ) -> None:
        self._model, self._pool, self._queries = model, pool, queries
        self._options = influence.CurvatureOptions(
            damping=damping,
            fisher=fisher,  # type: ignore[arg-type]
            loss=loss,  # type: ignore[arg-type]
            batch_size=batch_size,
            # With the data's labels nothing is random: eigenvectors come from all examples, as in
            # the other engines, and the scores must agree.
            basis_sample=None if fisher == "empirical" else "auto",
        )

    def fit(self) -> None:
        """EK-FAC."""
        self._curvature = influence.fit(self._model, self._pool, self._options)

    def scores(self) -> Scores:
        """Query gradient, its direction, and one pass over the pool along it."""
        self._direction = self._solved(self._queries)
        return self._pass(self._direction)[:, 0]

    def passes(self) -> dict[str, float]:
        """Seconds of the pass over the pool alone, along one direction and along two."""
        half = len(self._queries) // 2
        parts = (range(half), range(half, len(self._queries)))
        first, second = (self._solved(self._queries.take(part)) for part in parts)
        two = {name: torch.cat([first[name], second[name]]) for name in first}
        return {
            "pass_one_s": timed(lambda: self._pass(self._direction))[0],
            "pass_two_s": timed(lambda: self._pass(two))[0],
        }

    def factors(self) -> Factors:
        """The eigenvectors and eigenvalues of all layers."""
        tensors = self._curvature.tensors()
        parts = ("inputs", "outputs", "eigenvalues")
        return {
            name: tuple(tensors[f"{name}/{part}"] for part in parts)  # type: ignore[misc]
            for name in self._curvature.shapes
        }

    def _solved(self, queries: Pool) -> Gradients:
        gradient = influence.query_gradients(self._model, queries, self._options, aggregate="mean")
        return self._curvature.apply({name: part[None] for name, part in gradient.items()})

    def _pass(self, directions: Gradients) -> Scores:
        return influence.directional_scores(self._model, self._pool, directions, self._options)


Engine = Ours | Kronfluence | Bergson
"""One engine with a loaded model, pool and queries."""


def start(
    name: str,
    source: Path,
    workload: Workload,
    folder: Path,
    pool: Pool,
    queries: Pool,
    settings: Mapping[str, str],
) -> Engine:
    """Engine `name` with everything loaded; its files go to `folder`. Not timed."""
    folder.mkdir(parents=True)
    size = workload.batch_size
    if name == "ours":
        return Ours(load_model(source, workload), pool, queries, size, DAMPING, **settings)
    if name == "kronfluence":
        model = load_model(source, workload)
        return Kronfluence(model, folder, pool, queries, size, DAMPING, **settings)
    precision = {"float32": "fp32", "bfloat16": "bf16"}[workload.dtype]
    model = source / "model"
    return Bergson(model, folder, pool, queries, size, DAMPING, precision=precision, **settings)


def run(job: Mapping[str, Any], workload: Workload, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one run of an engine; its scores go to `folder`."""
    source, name = Path(job["source"]), job["engine"]
    settings = {key: job[key] for key in ("fisher", "loss") if key in job}
    pool, queries = load(source)
    if "examples" in job:
        pool = repeated(pool, job["examples"])
    small = source / "warm" if (source / "warm").is_dir() else source
    few, few_queries = (part.take(range(n)) for part, n in zip(load(small), WARM_UP, strict=True))
    engine = start(name, small, workload, folder / "warm", few, few_queries, settings)
    engine.fit()
    engine.scores()
    del engine
    gc.collect()
    engine = start(name, source, workload, folder / "run", pool, queries, settings)
    if workload.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    scores: list[Scores] = []
    fit, fit_cpu = timed(engine.fit)
    loading = engine.loading
    score, score_cpu = timed(lambda: scores.append(engine.scores()))
    fit, score = fit - loading, score - (engine.loading - loading)
    measured = {"fit_s": fit, "score_s": score, "total_s": fit + score, "peak_mb": peak_mb()}
    # CPU seconds of all threads (including loads in between): comparable on a busy machine.
    measured |= {"fit_cpu_s": fit_cpu, "score_cpu_s": score_cpu}
    if workload.device == "cuda":
        measured["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    if isinstance(engine, Ours):
        measured |= engine.passes()
    np.save(folder / "scores.npy", scores[0])
    if job.get("exact"):
        positions, exact = exact_scores(source, workload, engine.factors())
        np.savez(folder / "exact.npz", positions=positions, scores=exact)
    return measured


def perplexity(source: Path, workload: Workload) -> dict[str, float]:
    """Seconds of one pass over the pool that computes every example's mean token loss.

    The model as transformers loads it, padded batches with their mask, all logits.
    """
    pool, _ = load(source)
    model = load_model(source, workload)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(examples: Pool) -> None:
        for batch in batches(examples, workload.batch_size, torch.device(workload.device)):
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits[:, :-1]
            labels = batch.labels[:, 1:]
            losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            _ = losses.view(labels.shape).sum(dim=1) / (labels != IGNORED).sum(dim=1)

    evaluate(pool.take(range(WARM_UP[0])))
    return {"perplexity_pass_s": timed(lambda: evaluate(pool))[0]}


def exact_scores(
    source: Path, workload: Workload, factors: Factors
) -> tuple[npt.NDArray[np.int64], Scores]:
    """Positions in the pool, and their scores by plain autograd in double precision, unpadded.

    Nothing is shared with the engine but its fitted factors: with its Q_A, Q_S and Lambda,
    u = Q_S [(Q_S^T q Q_A) / (Lambda + damping * mean Lambda)] Q_A^T for the mean query gradient q
    of f = -L, and the score of d is -<grad L_d, u>.
    """
    pool, queries = load(source)
    model = load_model(source, workload).double()
    if workload.max_tokens >= LONG:
        model.gradient_checkpointing_enable()
        model.train()  # required by gradient checkpointing; the model has no dropout
    layers = tracked_layers(model)
    direction: dict[str, Tensor] = {}
    for position in range(len(queries)):
        for name, part in _gradient(model, queries, position, layers).items():
            direction[name] = direction.get(name, 0) - part / len(queries)
    for name, gradient in direction.items():
        inputs, outputs, values = (part.double().to(gradient.device) for part in factors[name])
        rotated = outputs.T @ gradient @ inputs / (values + DAMPING * values.mean())
        direction[name] = outputs @ rotated @ inputs.T
    large = sum(parameter.numel() for parameter in model.parameters()) >= LARGE
    count = max(2, LARGE_TOKENS // workload.max_tokens) if large else EXACT_EXAMPLES
    positions = np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(np.int64)
    scores = np.zeros(len(positions))
    for row, position in enumerate(positions):
        gradients = _gradient(model, pool, int(position), layers)
        scores[row] = -sum(float((gradients[name] * u).sum()) for name, u in direction.items())
    return positions, scores


def _gradient(
    model: Any, pool: Pool, position: int, layers: tuple[Layer, ...]
) -> dict[str, Tensor]:
    """Gradient of the mean token loss: layer -> [out, in (+ 1)]."""
    device = layers[0].module.weight.device
    tokens = torch.from_numpy(pool.input_ids[position].astype(np.int64)).to(device)[None]
    labels = torch.from_numpy(pool.labels[position].astype(np.int64)).to(device)[1:]
    (kept,) = torch.where(labels != IGNORED)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits[0]
    weights = [
        p for layer in layers for p in (layer.module.weight, layer.module.bias) if p is not None
    ]
    parts = iter(torch.autograd.grad(cross_entropy(logits, labels[kept]), weights))
    gradients = {}
    for layer in layers:
        weight = next(parts)
        bias = [] if layer.module.bias is None else [next(parts)[:, None]]
        gradients[layer.name] = torch.cat([weight, *bias], dim=1)
    return gradients


def repeated(pool: Pool, size: int) -> Pool:
    """`size` examples: the pool over and over, under new ids."""
    positions = [i % len(pool) for i in range(size)]
    return Pool(
        tuple(f"{pool.ids[p]}-{i}" for i, p in enumerate(positions)),
        tuple(pool.input_ids[p] for p in positions),
        tuple(pool.labels[p] for p in positions),
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that `work` takes, including the device's, and CPU seconds of all threads."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - begin_cpu


def peak_mb() -> float:
    """Largest resident memory of this process so far; Linux only.

    Not `ru_maxrss`, which a process inherits from the one that starts it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(folder: Path) -> None:
    """Do the job of a folder; the module's docstring describes its files."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    workload = WORKLOADS[job["workload"]]
    if job["engine"] == PERPLEXITY:
        result = perplexity(Path(job["source"]), workload)
    else:
        result = run(job, workload, folder)
    (folder / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
