"""Builders of scores, subsets, and what selectors request: features, curvature, influence.

`operations` among the facts are estimated floating-point operations per model parameter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from harness.data.pool import Pool, tokens_of
from harness.data.queries import Answers, Queries
from harness.experiment.store import Artefact
from harness.influence.costs import FORWARD
from harness.running.builders import HIDDEN
from harness.running.recipes import (
    ControlRecipe,
    CurvatureRecipe,
    FeaturesRecipe,
    InfluenceRecipe,
    ScoresRecipe,
    SelectionRecipe,
    SetRecipe,
    TopRecipe,
)
from harness.running.stages import role_of
from harness.running.workspace import Workspace, device, load_model, model_folder, seed_for
from harness.selection import plugins
from harness.selection import requests as rq
from harness.selection.context import Context
from harness.selection.features import FeatureTable, compute_features
from harness.selection.influence_table import InfluenceScores, compute_influence
from harness.selection.selector import (
    Positions,
    ScoreSelector,
    Selector,
    best,
    check_positions,
    check_scores,
)
from harness.selection.subset import (
    budget_of,
    read_scores,
    read_subset,
    write_scores,
    write_subset,
    write_table,
)


def features(recipe: FeaturesRecipe, work: Workspace) -> dict[str, Any]:
    """One forward pass of the base model over a data set."""
    data = work.pool("data")
    table = compute_features(work.model(), data, device=device(), progress=work.progress)
    table.save(work.folder)
    return {"operations": FORWARD * tokens_of(data)}


def curvature(recipe: CurvatureRecipe, work: Workspace) -> dict[str, Any]:
    """Fit the curvature of the pool's loss at the reference model."""
    from harness.influence import fit
    from harness.influence.costs import fit_operations

    model, pool = work.model("reference"), work.pool()
    fitted = fit(model, pool, recipe.options, progress=work.progress)
    fitted.save(work.folder)
    return {"operations": fit_operations(model, pool, recipe.options), **fitted.report()}


def influence(recipe: InfluenceRecipe, work: Workspace) -> dict[str, Any]:
    """Influence of every pool example on C and I."""
    from harness.influence import Curvature

    scores, facts = compute_influence(
        recipe.request,
        work.model("reference"),
        work.pool(),
        _queries(work, recipe.rule),
        Curvature.load(work.parent("curvature")),
        work.progress,
    )
    scores.save(work.folder)
    return facts


def scores(recipe: ScoresRecipe, work: Workspace) -> dict[str, Any]:
    """Score every example of the pool."""
    selector, pool, context = _selection(recipe, work)
    assert isinstance(selector, ScoreSelector)
    values = check_scores(selector.score(pool, context), pool, work.stage.label)
    write_scores(work.folder, pool, {"score": values, **context.columns})
    return _write_extras(work, context)


def top(recipe: TopRecipe, work: Workspace) -> dict[str, Any]:
    """Choose the examples with the highest scores."""
    pool = work.pool()
    columns = read_scores(work.parent("scores"))
    score_of = dict(zip(columns["id"], columns["score"], strict=True))
    values = np.array([score_of[name] for name in pool.ids])
    return _write_chosen(work, pool, best(values, budget_of(recipe.fraction, len(pool))))


def chosen_set(recipe: SetRecipe, work: Workspace) -> dict[str, Any]:
    """Choose a subset as a whole."""
    selector, pool, context = _selection(recipe, work)
    budget = budget_of(recipe.fraction, len(pool))
    positions = selector.select(pool, budget, context)
    positions = check_positions(positions, pool, budget, work.stage.label)
    if context.columns:
        write_scores(work.folder, pool, context.columns)
    return {**_write_chosen(work, pool, positions), **_write_extras(work, context)}


def control(recipe: ControlRecipe, work: Workspace) -> dict[str, Any]:
    """Choose everything, or by the quality that the testbed planted."""
    import pandas as pd

    from harness.data import testbed

    pool = work.pool()
    budget = budget_of(recipe.fraction, len(pool))
    if recipe.control == "full":
        return _write_chosen(work, pool, np.arange(budget, dtype=np.int64))
    hidden = pd.read_parquet(work.parent("pool") / HIDDEN).set_index("id")["quality"]
    rng = np.random.default_rng(seed_for("select", recipe.control, recipe.seed))
    order = testbed.oracle_order if recipe.control == "oracle" else testbed.anti_oracle_order
    return _write_chosen(work, pool, order([hidden[name] for name in pool.ids], rng)[:budget])


def _write_chosen(work: Workspace, pool: Pool, positions: Positions) -> dict[str, Any]:
    write_subset(work.folder, pool, positions)
    return {"examples": len(positions)}


def _selection(recipe: SelectionRecipe, work: Workspace) -> tuple[Selector, Pool, Context]:
    selector = plugins.build(recipe.selector, dict(recipe.params))
    if plugins.code_hash(recipe.selector) != recipe.code:
        raise RuntimeError(
            f"selector {recipe.selector!r} was edited during the run; "
            "expected unchanged code: start the run again"
        )
    rng = None
    if selector.stochastic:
        rng = np.random.default_rng(seed_for("select", recipe.row, recipe.seed))
    load = partial(_load, work=work, rule=recipe.rule or "majority")
    context = Context(selector.requests(), load, rng=rng, device=device(), progress=work.progress)
    return selector, work.pool(), context


def _load(request: rq.Request[Any], work: Workspace, rule: str) -> Any:
    """The result of a request, from the stage that was built for it."""
    role = role_of(request)
    match request:
        case rq.BaseModel() | rq.ReferenceModel():
            return work.model(role)
        case rq.Tokenizer():
            return work.tokenizer(role)
        case rq.QuerySet():
            return work.pool(role)
        case rq.QueryAnswers():
            return _queries(work, rule)
    folder, artefact = work.parent(role), work.artefact(role)
    match request:
        case rq.Features():
            return FeatureTable.load(folder)
        case rq.Decodes():
            return _read_decodes(artefact)
        case rq.FittedCurvature():
            from harness.influence import Curvature

            return Curvature.load(folder)
        case rq.InfluenceTable():
            return InfluenceScores.load(folder, artefact.info)
        case rq.Trajectory():
            from harness.training.trajectory import load_trajectory

            base = model_folder(work.stage.parents[role].parents["model"], work.store)
            return load_trajectory(folder, partial(load_model, base, device()))
        case rq.ChosenBy():
            return read_subset(folder)
    raise ValueError(f"unknown request {request!r}; expected one of harness.selection.requests")


def _read_decodes(artefact: Artefact) -> Any:
    import pandas as pd

    rows = pd.read_parquet(artefact.folder / "decodes.parquet")["correct"]
    return np.stack(rows.to_list()).astype(bool)


def _queries(work: Workspace, rule: str) -> Queries:
    """The query set with its answers before and after fine-tuning."""
    before, after = (Answers.load(work.parent(when)) for when in ("before", "after"))
    return Queries(work.pool("queryset"), before, after, rule)


def _write_extras(work: Workspace, context: Context) -> dict[str, Any]:
    """Write the tables that a selector attached; return its operations and noted facts."""
    for name, columns in context.tables.items():
        write_table(work.folder / f"{name}.parquet", columns)
    facts: dict[str, Any] = {"operations": context.operations}
    return {**facts, "facts": context.facts} if context.facts else facts
