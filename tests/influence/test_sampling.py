import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from harness.data.pool import drawn
from harness.influence import (
    Curvature,
    CurvatureOptions,
    SamplingError,
    fit,
    influence_scores,
    sampling_error,
)
from harness.influence.curvature import fit as sampling_module
from harness.influence.options import fitted_on

OPTIONS = CurvatureOptions(batch_size=16, basis_sample=None, layers="mlp")


def brute_force(model, curvatures, probes, scored, autograd):
    """Spearman and cosine, every gradient by autograd, one example at a time."""
    names = list(curvatures[0].shapes)
    losses = [autograd(model, scored, d, names) for d in range(len(scored))]
    spearman, cosine = [], []
    for v in range(len(probes)):
        gradient = autograd(model, probes, v, names)
        one, two = (c.apply({name: -g for name, g in gradient.items()}) for c in curvatures)
        left, right = (
            [float(-sum((u[name] * row[name]).sum() for name in names)) for row in losses]
            for u in (one, two)
        )
        spearman.append(spearmanr(left, right).statistic)
        a, b = (torch.cat([u[name].flatten() for name in names]) for u in (one, two))
        cosine.append(float(torch.cosine_similarity(a, b, dim=0)))
    return np.mean(spearman), np.mean(cosine)


@pytest.mark.parametrize(
    ("sample", "against"), [(12, "sample"), (25, "pool"), (None, "basis")], ids=str
)
def test_figures_by_brute_force(make_model, make_pool, autograd, monkeypatch, sample, against):
    monkeypatch.setattr(sampling_module, "SCORED", 20)
    model, pool = make_model(dtype=torch.float64), make_pool(30)
    basis = 8 if against == "basis" else None
    options = dataclasses.replace(OPTIONS, sample=sample, basis_sample=basis)
    actual = sampling_error(model, pool, options)
    assert actual is not None
    assert actual.against == against
    if against == "sample":
        taken = set(fitted_on(pool, options).ids)
        rest = pool.take([i for i, name in enumerate(pool.ids) if name not in taken])
        other = drawn(rest, 12, 4)
        assert len(other) == 12
        assert taken.isdisjoint(other.ids)
    else:
        other = pool
    # Fits by themselves, without `fit`'s own drawing.
    kind = type(fit(model, pool, OPTIONS))
    one = kind.fit(model, fitted_on(pool, options), options)
    two = kind.fit(model, other, OPTIONS)
    probes, scored = drawn(pool, 4, 2), drawn(pool, 20, 3)
    spearman, cosine = brute_force(model, (one, two), probes, scored, autograd)
    assert actual.spearman == pytest.approx(spearman, abs=1e-9)
    assert actual.cosine == pytest.approx(cosine, abs=1e-6)
    assert 0 < actual.cosine < 1
    assert (actual.examples, actual.reference_examples) == (sample or 30, len(other))
    assert (actual.probes, actual.scored) == (4, 20)


def test_larger_samples_agree_better(make_model, make_pool):
    model, pool = make_model(), make_pool(400)
    small, large = (
        sampling_error(model, pool, dataclasses.replace(OPTIONS, sample=size)) for size in (10, 200)
    )
    assert small is not None
    assert large is not None
    assert small.spearman < large.spearman < 1
    assert small.cosine < large.cosine < 1


def test_nothing_sampled_nothing_measured(make_model, make_pool):
    model, pool = make_model(), make_pool(6)
    assert sampling_error(model, pool, OPTIONS) is None
    assert sampling_error(model, pool, dataclasses.replace(OPTIONS, sample=6)) is None
    identity = dataclasses.replace(OPTIONS, kind="identity", sample=2)
    assert sampling_error(model, pool, identity) is None
    projected = dataclasses.replace(OPTIONS, kind="projected", basis_sample=2)
    assert sampling_error(model, pool, projected) is None
    with pytest.raises(ValueError, match="2 examples; expected at least 3"):
        sampling_error(model, make_pool(2), OPTIONS)


@pytest.mark.parametrize("kind", ["ekfac", "ekfac+cg", "projected"])
def test_kept_with_the_curvature(make_model, make_pool, tmp_path, kind):
    model, pool, queries = make_model(), make_pool(30), make_pool(2, 1, "q")
    options = dataclasses.replace(
        OPTIONS, kind=kind, sample=12, measure_error=True, cg_steps=2, rank=3
    )
    curvature = fit(model, pool, options)
    assert isinstance(curvature.error, SamplingError)
    assert 0 < curvature.error.cosine < 1
    curvature.save(tmp_path)
    assert json.loads((tmp_path / "curvature.json").read_text())["error"]["against"] == "sample"
    loaded = Curvature.load(tmp_path)
    assert loaded.error == curvature.error
    table = influence_scores(model, pool, queries, None, curvature=loaded)
    reported = table.attrs["curvature"]["sampling_error"]
    assert reported == dataclasses.asdict(curvature.error)
    assert fit(model, pool, dataclasses.replace(options, measure_error=False)).error is None
