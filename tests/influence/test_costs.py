import dataclasses

import numpy as np
import pytest

from harness.influence import Completions, CurvatureOptions, fit, influence_scores
from harness.influence.costs import (
    fit_operations,
    scores_operations,
    scoring_passes,
    solve_operations,
)
from harness.influence.options import METHODS, scoring_method

OPTIONS = CurvatureOptions(batch_size=8)


def tokens(pool):
    return sum(map(len, pool.input_ids))


def passes(model, pool, options):
    """Examples of all batches that a fit asks for, seen from outside."""
    seen = []

    def progress(iterable, description, total):
        for positions in iterable:
            seen.append(len(positions))
            yield positions

    fit(model, pool, options, progress=progress)
    return sum(seen)


@pytest.mark.parametrize(
    ("kind", "sampled", "whole"),
    [("identity", 0, 0), ("projected", 0, 1), ("ekfac", 1, 1), ("ekfac+cg", 1, 1)],
)
def test_a_fit_passes_over_what_is_counted(make_model, make_pool, kind, sampled, whole):
    """A pool of equal examples: batches tell how many tokens were seen."""
    model = make_model()
    one = make_pool(1)
    pool = dataclasses.replace(
        one,
        ids=tuple(f"d{i}" for i in range(30)),
        input_ids=one.input_ids * 30,
        labels=one.labels * 30,
        truncated=(),
    )
    length = len(one.input_ids[0])
    options = dataclasses.replace(OPTIONS, kind=kind, basis_sample=10)
    actual = fit_operations(model, pool, options)
    assert actual == 6 * length * (10 * sampled + 30 * whole)
    assert actual == 6 * length * passes(model, pool, options)
    fewer = dataclasses.replace(options, sample=20)
    assert fit_operations(model, pool, fewer) == 6 * length * (10 * sampled + 20 * whole)
    if kind != "projected":
        grouped = dataclasses.replace(options, memory_gib=1e-5)
        assert fit_operations(model, pool, grouped) == 6 * length * passes(model, pool, grouped)


def test_kinds_that_solve_with_passes_are_charged_for_them(make_pool):
    """A step of conjugate gradients: one forward pass and 4 more for each draw of labels, or, for
    the expectation over labels, two forward passes and 2 + 4 more for each direction."""
    pool = make_pool(9)
    assert solve_operations(pool, OPTIONS, 5) == 0
    cg = dataclasses.replace(OPTIONS, kind="ekfac+cg", cg_steps=3, cg_draws=None)
    assert solve_operations(pool, cg, 5, 2) == 3 * (2 * 4 + 5 * 6) * tokens(pool)
    empirical = dataclasses.replace(cg, fisher="empirical")
    assert solve_operations(pool, empirical, 5, 2) == 3 * 2 * 6 * tokens(pool)
    drawn = dataclasses.replace(cg, cg_draws=4)
    assert solve_operations(pool, drawn, 5, 2) == 3 * 2 * (2 + 4 * 4) * tokens(pool)
    assert solve_operations(pool, dataclasses.replace(drawn, sample=4), 5, 2) < 3 * 2 * 18 * tokens(
        pool
    )


@pytest.mark.parametrize(("method", "factor"), [("forward", 6), ("ghost", 6), ("backward", 0)])
def test_scores_by_hand(make_model, make_pool, method, factor):
    """One gradient pass for the ranks, one along two directions; queries twice where ranked."""
    model, pool = make_model(), make_pool(12)
    sides = [Completions.of(make_pool(5, 1, "c")), Completions.of(make_pool(2, 2, "i"))]
    options = dataclasses.replace(OPTIONS, kind="identity")
    table = influence_scores(model, pool, *sides, options, max_queries=3, method=method)
    drawn = [sides[0].pool.take_ids(table.attrs["rank_queries"]["C"]), sides[1].pool]
    asked = sum(tokens(side.pool) for side in sides) + sum(map(tokens, drawn))
    expected = 6 * asked + (6 + factor) * tokens(pool)
    assert scores_operations(pool, sides, options, table.attrs) == expected
    assert np.isfinite(table["s_C"]).all()


def test_scoring_passes_rise_with_directions():
    for method in METHODS:
        assert scoring_passes(method, 9) > scoring_passes(method, 8)
        assert scoring_passes("ghost", 9) <= scoring_passes(method, 9)
    assert scoring_passes("ghost", 64) < scoring_passes("forward", 2)
    assert scoring_method("auto") == "ghost"
    with pytest.raises(ValueError, match="method is 'magic'; expected one of 'auto', 'ghost'"):
        scoring_method("magic")
