"""What it costs to fit a curvature on a sample, in terms of the scores that come out.

Two curvatures are compared on the same probes (gradients of a few examples) and the same scored
examples, all drawn from the pool:

- `options.sample` below the pool: with the fit on a second sample of the same size that shares no
  example with the first ("sample"). Both err, so that the agreement with a fit on the whole pool is
  higher than the figure. Where the pool has no second sample left, with the fit on the whole pool
  ("pool"), which then costs less than two samples and is the very thing.
- only `options.basis_sample` below the pool: with eigenvectors of the whole pool ("basis").

Figures: Spearman correlation over the scored examples, and cosine of the preconditioned gradients,
each the mean over probes. The cost is one more fit and one pass over the scored examples. Labels
that are drawn for the true Fisher belong to their example: two samples differ in them too, but fits
against "pool" and "basis" share them, so that this source of error is not part of those figures.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.data.pool import drawn
from harness.influence.curvature.base import Curvature, _kind
from harness.influence.curvature.covariance import basis_examples
from harness.influence.ghost import products
from harness.influence.gradients import query_gradients
from harness.influence.layers import tracked_layers
from harness.influence.options import CurvatureOptions, SamplingError, fitted_on, options_from

if TYPE_CHECKING:
    from torch import nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress


PROBES = 4
SCORED = 256


def sampling_error(
    model: nn.Module,
    pool: Pool,
    options: CurvatureOptions,
    *,
    curvature: Curvature | None = None,
    probes: Pool | None = None,
    progress: Progress | None = None,
) -> SamplingError | None:
    """Agreement of scores under the fit that `options` ask for with those under another.

    None where nothing is sampled. `curvature`: that fit, where it has been made; `probes`: examples
    whose gradients are preconditioned (None: `PROBES` of the pool). ValueError for a pool of fewer
    than three examples, which have no rank correlation.
    """
    if len(pool) < 3:
        raise ValueError(f"the pool has {len(pool)} examples; expected at least 3 to rank")
    options = dataclasses.replace(options, measure_error=False)
    found = _reference(model, pool, options)
    if found is None:
        return None
    against, other, changed = found
    if curvature is None:
        curvature = fit(model, pool, options, progress=progress)
    reference = fit(model, other, changed, progress=progress)
    if probes is None:
        probes = drawn(pool, PROBES, options.seed + 2)
    scored = drawn(pool, SCORED, options.seed + 3)
    gradients = query_gradients(model, probes, options)
    one = curvature.apply(gradients, model=model, pool=pool, progress=progress)
    two = reference.apply(gradients, model=model, pool=other, progress=progress)
    joined = {name: torch.cat([part, two[name].to(part)]) for name, part in one.items()}
    scores = products(model, scored, joined, options, progress=progress)
    return SamplingError(
        against=against,
        examples=len(fitted_on(pool, options)),
        reference_examples=len(other),
        probes=len(probes),
        scored=len(scored),
        spearman=_spearman(scores[:, : len(probes)], scores[:, len(probes) :]),
        cosine=_cosine(one, two),
    )


def _reference(
    model: nn.Module, pool: Pool, options: CurvatureOptions
) -> tuple[str, Pool, CurvatureOptions] | None:
    """What to compare with: its name, the pool to fit on, and the options of that fit."""
    if options.kind == "identity":
        return None
    sample = fitted_on(pool, options)
    whole = dataclasses.replace(options, sample=None)
    if len(sample) < len(pool):
        taken = set(sample.ids)
        rest = pool.take([i for i, name in enumerate(pool.ids) if name not in taken])
        if len(rest) < len(sample):
            return "pool", pool, whole
        return "sample", drawn(rest, len(sample), options.seed + 4), whole
    if options.kind not in ("kfac", "ekfac", "ekfac+cg"):
        return None
    layers = tracked_layers(model, options.layers, options.head)
    if basis_examples(layers, pool, options) == len(pool):
        return None
    return "basis", pool, dataclasses.replace(whole, basis_sample=None)


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    from scipy.stats import rankdata

    pairs = zip(rankdata(left, axis=0).T, rankdata(right, axis=0).T, strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def _cosine(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Mean over columns of the cosine over all layers."""
    from harness.influence.layers import dots

    cosines = dots(left, right) / (dots(left, left) * dots(right, right)).sqrt()
    return float(cosines.mean())


def fit(
    model: nn.Module,
    pool: Pool,
    options: CurvatureOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Curvature:
    """Fit the curvature of `options.kind` on `pool` at the model's present weights.

    Options come as a `CurvatureOptions` or by name: `fit(model, pool, kind="kfac", damping=0.01)`.
    """
    options = options_from(options, keywords)
    if len(pool) == 0:
        raise ValueError("the pool is empty; expected at least one example to fit a curvature on")
    sample = fitted_on(pool, options)
    found = _kind(options.kind).fit(model, sample, options, progress=progress)
    if not options.measure_error:
        return found
    from harness.influence.curvature.fit import sampling_error

    error = sampling_error(model, pool, options, curvature=found, progress=progress)
    return dataclasses.replace(found, error=error)
