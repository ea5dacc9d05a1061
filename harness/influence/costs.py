"""What influence costs, in floating-point operations per parameter of the model: an estimate.

Passes over tokens count 2 for a forward pass, 6 with the backward pass and the gradients made from
it, 2 more for a derivative carried along by a forward pass. Decompositions of factors, which do not
grow with the pool, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.data.pool import Pool, tokens_of
from harness.influence.options import CurvatureOptions, fitted_on

if TYPE_CHECKING:
    from torch import nn

    from harness.influence.completions import Completions


FORWARD, BOTH = 2, 6
"""Operations per parameter and token: a forward pass, and one with its backward pass."""
DERIVATIVE = 6
"""A product with the Fisher matrix, per direction: a derivative along it, and a backward pass."""
SCORING_PASSES = {"ghost": (2.4, 0.02), "forward": (4.1, 1.5)}
"""Forward passes over the pool for the first and for every further direction. "ghost" adds a
backward pass without weight gradients, which all directions share; "forward" multiplies twice more
in every layer for every direction, and saves memory: it keeps no activations. Measured on one core
in processor time: ghost 2.2 to 2.7, forward 2.9 to 5.2 and 1.4 to 1.6 more for each direction."""


def scoring_passes(method: str, directions: int) -> float:
    """Cost of scoring along that many directions, in forward passes over the pool."""
    first, further = SCORING_PASSES[method]
    return first + further * (directions - 1)


def fit_operations(model: nn.Module, pool: Pool, options: CurvatureOptions) -> float:
    """Of fitting: a pass for the eigenvectors, on their sample, and one for the eigenvalues."""
    from harness.influence.curvature.base import kind_of
    from harness.influence.curvature.ekfac import basis_sample
    from harness.influence.layers import tracked_layers

    if options.kind == "identity":
        return 0.0
    sample = fitted_on(pool, options)
    layers = tracked_layers(model, options.layers, options.head)
    total = 0
    for group in kind_of(options.kind).groups(layers, sample, options):
        if options.kind in ("ekfac", "ekfac+cg"):
            total += tokens_of(basis_sample(group, sample, options))
        total += tokens_of(sample)
    return float(BOTH * total)


def solve_operations(
    pool: Pool, options: CurvatureOptions, directions: int, solves: int = 1
) -> float:
    """Of multiplying `directions`, split over that many calls, by the damped inverse.

    0 for kinds that solve from their factors; for conjugate gradients, which stop once they are
    exact enough, an upper bound.
    """
    if options.kind != "ekfac+cg":
        return 0.0
    tokens = tokens_of(fitted_on(pool, options))
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
    # One derivative along a direction costs a forward pass more.
    along = {"forward": FORWARD * (1 + len(sides)), "ghost": BOTH}
    total += along.get(facts["method"], 0) * tokens_of(pool)
    directions = len(sides) + sum(map(len, ranked))
    return float(total + solve_operations(pool, options, directions, 1 + facts["passes"]))
