"""Influence of every pool example on every query by each method, at the reference model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import harness.influence
import harness.studies.speed
from harness.data.pool import Pool
from harness.experiment.stage import Recipe, Stage
from harness.experiment.store import Store, file_digest
from harness.influence.options import CHOICES, CurvatureOptions
from harness.running.workspace import Workspace
from harness.studies.influence.exact import exact_scores
from harness.studies.influence.protocol import Stages

if TYPE_CHECKING:
    from torch import nn

SCORES = "scores.parquet"
SELF = "self"
"""Column of self-influence, where a method has it."""
TRACIN, COSINE, PEER, EXACT = "tracin", "gradcos", "kronfluence", "exact"
SELF_INFLUENCE = ("identity", "ekfac")
"""Kinds that solve layer by layer, which is what self-influence needs."""

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
"""One setting changed at a time, to see what the scores depend on; "exact": see exact.py."""
ENGINE = Path(harness.influence.__file__).parent
SPEED = Path(harness.studies.speed.__file__).parent

Floats = npt.NDArray[np.float64]


def methods(peer: bool) -> tuple[str, ...]:
    """Every curvature that there is, and what runs on the same machinery; `peer`: kronfluence."""
    own = (*CHOICES["kind"], TRACIN, COSINE)
    return (*own, PEER) if peer else own


def options_of(method: str) -> CurvatureOptions:
    """Settings of a method: the defaults, or what a variant changes."""
    if method in VARIANTS:
        kind, changes = VARIANTS[method]
        return CurvatureOptions(**{"kind": kind, **changes})
    kind = {TRACIN: "identity", COSINE: "identity", PEER: "ekfac"}.get(method, method)
    return CurvatureOptions(kind=kind)  # type: ignore[arg-type]


def stage_of(method: str, stages: Stages) -> Stage:
    """The stage that scores the pool by `method`; a change of the engine's code makes a new one."""
    options = options_of(method)
    name = method.partition(",")[0]
    route = name if name in (TRACIN, COSINE, PEER, EXACT) else "curvature"
    package = None
    parents = {"model": stages.reference, "pool": stages.pool, "queryset": stages.queryset}
    if method == PEER:
        from importlib.metadata import version

        package = f"kronfluence {version('kronfluence')}"
        code = [SPEED / "kronfluence_.py"]
    else:
        code = sorted(ENGINE.rglob("*.py"))
    if route == EXACT:
        code.append(Path(__file__).with_name("exact.py"))
    if method == TRACIN:
        parents |= {"trajectory": stages.trajectory, "base": stages.base}
    recipe = PredictionRecipe(route, options, tuple(map(file_digest, code)), package)
    return Stage(recipe, f"influence by {method}", parents)


@dataclass(frozen=True)
class PredictionRecipe(Recipe):
    """Influence of every example on every query; `code`: hashes of the files that compute it."""

    kind = "prediction"
    builder = "harness.studies.influence.predict:build"
    seconds = 20.0
    route: str
    options: CurvatureOptions
    code: tuple[str, ...]
    package: str | None = None


def build(recipe: PredictionRecipe, work: Workspace) -> dict[str, Any]:
    """Write one row per example and one column per query, and self-influence; say how long."""
    import pandas as pd

    pool, queries, model = work.pool(), work.pool("queryset"), work.model()
    started = time.perf_counter()
    scores, own = _scores(recipe, work, model, pool, queries)
    seconds = time.perf_counter() - started
    if scores.shape != (len(pool), len(queries)) or not np.isfinite(scores).all():
        raise ValueError(f"{work.stage.label}: expected finite scores [pool, queries]")
    table = pd.DataFrame(scores, columns=list(queries.ids))
    table.insert(0, "id", list(pool.ids))
    if own is not None:
        table[SELF] = own
    table.to_parquet(work.folder / SCORES, index=False)
    return {"seconds": seconds}


def _scores(
    recipe: PredictionRecipe, work: Workspace, model: nn.Module, pool: Pool, queries: Pool
) -> tuple[Floats, Floats | None]:
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
    own = None
    if route == COSINE or options.kind in SELF_INFLUENCE:
        own = self_influence(model, curvature, pool, progress=work.progress)
    if route == COSINE:
        # Up to the length of a query's gradient, which orders nothing within a query.
        assert own is not None
        return scores / np.sqrt(own)[:, None], None
    return scores, own


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


def read(stage: Stage, store: Store, pool: Pool, queries: Pool) -> tuple[Floats, Floats | None]:
    """Stored scores [n, q] in the order of `pool` and `queries`, and self-influence [n] if any."""
    import pandas as pd

    table = pd.read_parquet(store.folder(stage) / SCORES).set_index("id")
    found = table.loc[list(pool.ids), list(queries.ids)].to_numpy(np.float64)
    own = table.loc[list(pool.ids), SELF].to_numpy(np.float64) if SELF in table else None
    return found, own


def shuffled(influence: Mapping[str, Floats], rng: np.random.Generator) -> Floats:
    """EK-FAC's scores in an order of chance, every query in its own: what no information scores.

    One order for all queries would give all of them the same luck.
    """
    found: Floats = rng.permuted(influence["ekfac"], axis=0)
    return found
