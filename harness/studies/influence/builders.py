"""What the study builds: retrainings on part of the pool, and influence scores by every method.

`exact_scores` takes the exact inverse of the damped Fisher matrix. With g_s the gradients under
sampled labels, S of them, and D the damping of EK-FAC (a multiple of each layer's mean eigenvalue),
the Fisher matrix is F = 1/S sum_s g_s g_s^T, between layers too. Its rank is at most S, so that the
inverse follows from products of gradients alone (the identity of Sherman, Morrison and Woodbury):

    p^T (F + D)^-1 q = p^T D^-1 q - k_p^T (S I + K)^-1 k_q
    K = [g_s^T D^-1 g_t],  k_p = [g_s^T D^-1 p]

It holds the gradients of the pool and all sampled ones at once: for small models and pools.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import harness.influence
import harness.studies.speed
from harness.data.pool import Pool
from harness.experiment.settings import TrainingRecipe
from harness.experiment.stage import Recipe, Stage
from harness.experiment.store import Store, digest, file_digest
from harness.influence.options import CHOICES, CurvatureOptions
from harness.running.workspace import Workspace, device, load_model, seed_for
from harness.studies.influence.metrics import PEER, Floats

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTCOMES, SCORES = "outcomes.parquet", "scores.parquet"
SELF = "self"
"""Column of self-influence, where a method has it."""
TRACIN, COSINE, EXACT = "tracin", "gradcos", "exact"
SELF_INFLUENCE = ("identity", "ekfac")
"""Kinds that have self-influence."""
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{f"ekfac, damping {d:g}": ("ekfac", {"damping": d}) for d in (0.001, 0.01, 1.0, 10.0)},
    "ekfac, empirical Fisher": ("ekfac", {"fisher": "empirical"}),
    "ekfac, summed loss": ("ekfac", {"loss": "sum"}),
    "ekfac, eigenvectors of all": ("ekfac", {"basis_sample": None}),
    "ekfac, other labels": ("ekfac", {"seed": 1}),
    "ekfac, with the head": ("ekfac", {"head": True}),
    "ekfac+cg, 8 steps": ("ekfac+cg", {"cg_steps": 8}),
    "ekfac+cg, damping 100": ("ekfac+cg", {"damping": 100.0}),
    **{f"exact, damping {d:g}": ("ekfac", {"damping": d}) for d in (0.1, 10.0, 1000.0)},
}
"""One setting changed at a time, to see what the scores depend on."""


@dataclass(frozen=True)
class RetrainingRecipe(Recipe):
    """The base fine-tuned on the examples `keep`, and what it makes of the queries."""

    kind = "retraining"
    builder = f"{__name__}:retrain"
    seconds = 8.0
    train: TrainingRecipe
    seed: int
    keep: tuple[str, ...]


def retrain(recipe: RetrainingRecipe, work: Workspace) -> dict[str, Any]:
    """Write the log-probability of every query's reference response; the weights are dropped.

    Retrainings with the same seed see their examples in the same order of positions.
    """
    from harness.training.train import train

    pool, queries = work.pool().take_ids(recipe.keep), work.pool("queryset")
    seed, folder, where = seed_for("retrain", recipe.seed), work.folder / "model", device()
    log = train(work.parent("model"), pool, recipe.train, seed, folder, work.progress, device=where)
    values = log_probabilities(load_model(folder, where), queries)
    shutil.rmtree(folder)
    table = pd.DataFrame({"id": list(queries.ids), "log_probability": values})
    table.to_parquet(work.folder / OUTCOMES, index=False)
    return {"examples": len(pool), "steps": log.steps, "final_loss": log.final_loss}


def log_probabilities(model: nn.Module, queries: Pool) -> Floats:
    """Mean log-probability of each query's response tokens, [q]."""
    import torch

    from harness.influence.batches import batches, device_of, example_losses, model_inputs

    values = np.empty(len(queries))
    with torch.no_grad():
        for batch in batches(queries, 64, device_of(model)):
            logits = model(**model_inputs(model, batch)).logits
            losses = example_losses(logits, batch.labels, "mean")
            values[batch.positions] = -losses.cpu().numpy()
    return values


def read_outcomes(stage: Stage, store: Store, ids: tuple[str, ...]) -> Floats:
    """The stored log-probabilities of a retraining, for the queries `ids`, [q]."""
    table = pd.read_parquet(store.folder(stage) / OUTCOMES)
    if tuple(table["id"]) != ids:
        raise ValueError(f"{stage.label}: queries {list(table['id'])[:3]}...; expected {ids[:3]}")
    values: Floats = table["log_probability"].to_numpy(np.float64)
    return values


@dataclass(frozen=True)
class PredictionRecipe(Recipe):
    """Influence of every example on every query; `code`: digest of the package that computes it."""

    kind = "prediction"
    builder = f"{__name__}:predict"
    seconds = 20.0
    route: str
    options: CurvatureOptions
    code: str


def methods(peer: bool) -> tuple[str, ...]:
    """Every curvature, what runs on the same machinery, variants of one; `peer`: kronfluence."""
    return (*CHOICES["kind"], TRACIN, COSINE, *((PEER,) if peer else ()), *VARIANTS)


def prediction(method: str) -> PredictionRecipe:
    """How a method scores: its route through the code, and the defaults or what a variant changes.

    A change of the code makes a new recipe.
    """
    name = method.partition(",")[0]
    route = name if name in (TRACIN, COSINE, PEER, EXACT) else "curvature"
    default = {TRACIN: "identity", COSINE: "identity", PEER: "ekfac"}.get(method, method)
    kind, changes = VARIANTS.get(method, (default, {}))
    if route == PEER:
        wrapper = Path(harness.studies.speed.__file__).with_name("kronfluence_.py")
        code = digest([version("kronfluence"), file_digest(wrapper)])
    else:
        engine = Path(harness.influence.__file__).parent
        code = digest(sorted(map(file_digest, engine.rglob("*.py"))))
    return PredictionRecipe(route, CurvatureOptions(**{"kind": kind, **changes}), code)


def predict(recipe: PredictionRecipe, work: Workspace) -> dict[str, Any]:
    """Write one row per example and one column per query, and self-influence; say how long."""
    pool, queries, model = work.pool(), work.pool("queryset"), work.model()
    started = time.perf_counter()
    scores, self_scores = _scores(recipe, work, model, pool, queries)
    seconds = time.perf_counter() - started
    if scores.shape != (len(pool), len(queries)) or not np.isfinite(scores).all():
        raise ValueError(f"{work.stage.label}: expected finite scores [pool, queries]")
    table = pd.DataFrame(scores, columns=list(queries.ids))
    table.insert(0, "id", list(pool.ids))
    if self_scores is not None:
        table[SELF] = self_scores
    table.to_parquet(work.folder / SCORES, index=False)
    return {"seconds": seconds}


def _scores(
    recipe: PredictionRecipe, work: Workspace, model: nn.Module, pool: Pool, queries: Pool
) -> tuple[Floats, Floats | None]:
    """Influence [n, q], and self-influence [n] where the method has it."""
    from harness.influence import fit, per_query_scores, self_influence

    route, options = recipe.route, recipe.options
    if route == PEER:
        from harness.studies.speed.kronfluence_ import per_query_scores as by_kronfluence

        return by_kronfluence(model, pool, queries, damping=options.damping), None
    if route == EXACT:
        return exact_scores(model, pool, queries, options), None
    if route == TRACIN:
        return _tracin(work, pool, queries, options), None
    curvature = fit(model, pool, options, progress=work.progress)
    scores = per_query_scores(model, curvature, pool, queries, progress=work.progress)
    if options.kind not in SELF_INFLUENCE:
        return scores, None
    squares = self_influence(model, curvature, pool, progress=work.progress)
    if route == COSINE:
        # Up to the length of a query's gradient, which orders nothing within a query.
        return scores / np.sqrt(squares)[:, None], None
    return scores, squares


def _tracin(work: Workspace, pool: Pool, queries: Pool, options: CurvatureOptions) -> Floats:
    """sum_i eta_i <g_d, q> over the checkpoints on the way to the reference model."""
    from harness.influence import fit, per_query_scores
    from harness.training.trajectory import load_trajectory

    total = np.zeros((len(pool), len(queries)))
    for checkpoint in load_trajectory(work.parent("trajectory"), lambda: work.model("base")):
        model = checkpoint.model()
        curvature = fit(model, pool, options)
        total += checkpoint.rate * per_query_scores(model, curvature, pool, queries)
    return total


def read_prediction(
    stage: Stage, store: Store, pool: Pool, queries: Pool
) -> tuple[Floats, Floats | None]:
    """Stored scores [n, q] in the order of `pool` and `queries`, and self-influence [n] if any."""
    table = pd.read_parquet(store.folder(stage) / SCORES).set_index("id").loc[list(pool.ids)]
    scores = table[list(queries.ids)].to_numpy(np.float64)
    return scores, table[SELF].to_numpy(np.float64) if SELF in table else None


def exact_scores(
    model: nn.Module, pool: Pool, queries: Pool, options: CurvatureOptions, draws: int = 2
) -> Floats:
    """infl(v, d), [n, q], with the Fisher matrix of `draws` label draws per example.

    `options`: of EK-FAC; its mean eigenvalues scale the damping, which must be above 0.
    """
    import torch

    from harness.influence import example_gradients, fit, query_gradients
    from harness.influence.batches import draw_seed

    if not options.damping > 0:
        raise ValueError(f"damping is {options.damping!r}; expected more than 0")
    curvature = fit(model, pool, replace(options, kind="ekfac"))
    damping = {
        name: options.damping * float(basis.eigenvalues.mean())
        for name, basis in curvature.parts.items()
    }

    def scaled(gradients: Mapping[str, Tensor]) -> Tensor:
        """D^-1/2 times gradients, all layers side by side, [k, parameters]."""
        parts = [gradients[name].flatten(1) / value**0.5 for name, value in damping.items()]
        return torch.cat(parts, dim=1)

    relabelled = [resampled(model, pool, draw_seed(options.seed, k)) for k in range(draws)]
    sampled = torch.cat([scaled(example_gradients(model, part, options)) for part in relabelled])
    of_pool = scaled(example_gradients(model, pool, options))
    of_queries = scaled(query_gradients(model, queries, options))
    gram, right = (sampled @ sampled.T).double(), (sampled @ of_queries.T).double()
    gram.diagonal().add_(len(sampled))
    inner = torch.linalg.solve(gram, right)
    # Pool gradients are of losses, query gradients of log-probabilities: hence the sign.
    scores = (of_pool @ sampled.T).double() @ inner - (of_pool @ of_queries.T).double()
    exact: Floats = scores.cpu().numpy()
    return exact


def resampled(model: nn.Module, pool: Pool, seed: int) -> Pool:
    """The pool with labels sampled from the model's own distribution; the inputs stay."""
    import torch

    from harness.influence.batches import batches, device_of, model_inputs, sampled_labels
    from harness.influence.layers import evaluating

    labels = list(pool.labels)
    with evaluating(model), torch.no_grad():
        for batch in batches(pool, 64, device_of(model)):
            samples = sampled_labels(model(**model_inputs(model, batch)).logits, batch, seed)
            for row, position in enumerate(batch.positions):
                own = samples[row, : len(pool.labels[position])].cpu().numpy()
                labels[position] = own.astype(np.int32)
    return replace(pool, labels=tuple(labels))
