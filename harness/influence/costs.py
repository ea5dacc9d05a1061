"""What a curvature costs, in floating-point operations per parameter of the model: an estimate.

Counted are passes over tokens: 2 for a forward pass, 6 with the backward pass and the gradients
made of it, 2 more for a derivative that a forward pass carries along. Decompositions of factors,
which do not grow with the pool, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.pool import Pool, tokens_of
from harness.influence.completions import Completions
from harness.influence.curvature.covariance import basis_sample, groups, is_kept
from harness.influence.layers import tracked_layers
from harness.influence.options import CurvatureOptions, fitted_on

if TYPE_CHECKING:
    from torch import nn


FORWARD, BOTH = 2, 6
"""Operations per parameter and token: a forward pass, and one with its backward pass."""
BASES = ("kfac", "ekfac", "ekfac+cg")
"""Kinds that take eigenvectors from a sample."""
WHOLE = ("diagonal", "ekfac", "ekfac+cg", "datainf", "projected")
"""Kinds that take one pass over everything they are fitted on."""
DERIVATIVE = 6
"""A product with the Fisher matrix, per direction: a derivative along, and a backward pass."""


def fit_operations(model: nn.Module, pool: Pool, options: CurvatureOptions) -> float:
    """Of fitting: a pass for the eigenvectors, on their sample, and one for the eigenvalues.

    A small sample shares the second pass.
    """
    sample = fitted_on(pool, options)
    if options.kind not in (*BASES, *WHOLE):
        return 0.0
    layers = tracked_layers(model, options.layers, options.head)
    total = 0
    for group in groups(layers, sample, options):
        if options.kind in BASES:
            basis = basis_sample(group, sample, options)
            if options.kind == "kfac" or not is_kept(group, basis, options):
                total += tokens_of(basis)
        if options.kind in WHOLE:
            total += tokens_of(sample)
    return float(BOTH * total)


def solve_operations(
    pool: Pool, options: CurvatureOptions, directions: int, solves: int = 1
) -> float:
    """Of multiplying `directions`, split over so many calls, by the damped inverse.

    0 for what solves from its factors; for conjugate gradients, which stop where they are exact
    enough, at most so many.
    """
    tokens = tokens_of(fitted_on(pool, options))
    if options.kind == "datainf":  # one pass for any number of directions
        return float(BOTH * solves * tokens)
    if options.kind != "ekfac+cg":
        return 0.0
    draws = 1 if options.fisher == "empirical" else options.cg_draws
    if draws is not None:  # for any number of directions: one forward, a backward for each draw
        passes = FORWARD + draws * (BOTH - FORWARD)
        return float(options.cg_steps * solves * passes * tokens)
    shared, each = 2 * FORWARD * solves, DERIVATIVE * directions
    return float(options.cg_steps * (shared + each) * tokens)


def scores_operations(
    pool: Pool, sides: Sequence[Completions], options: CurvatureOptions, facts: Mapping[str, Any]
) -> float:
    """Of `influence_scores` with a curvature at hand; `facts` are the attributes of its table."""
    ranked = facts["rank_queries"].values()
    # Gradients of the queries: all of them for s, those behind the ranks once more.
    completions = sum(tokens_of(side.pool) for side in sides)
    for side, names in zip(sides, ranked, strict=True):
        chosen = set(names)
        rows = [p for p, owner in enumerate(side.owner) if side.ids[owner] in chosen]
        completions += sum(len(side.pool.input_ids[p]) for p in rows)
    total = BOTH * completions + facts["passes"] * BOTH * tokens_of(pool)
    # One derivative along costs a forward pass more, a central difference two forward passes.
    along = {
        "forward": FORWARD * (1 + len(sides)),
        "central": 2 * FORWARD * len(sides),
        "ghost": BOTH,
    }
    total += along.get(facts["method"], 0) * tokens_of(pool)
    directions = len(sides) + sum(map(len, ranked))
    return float(total + solve_operations(pool, options, directions, 1 + facts["passes"]))
