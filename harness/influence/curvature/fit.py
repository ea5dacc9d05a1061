"""Fitting a curvature, and what it costs in accuracy of the scores to fit it on a sample.

Two curvatures are compared on the same probes (gradients of a few examples) and the same scored
examples, all drawn from the pool:

- `options.sample` below the pool: with the fit on a second sample of the same size that shares no
  example with the first ("sample"). Both err, so that the agreement with a fit on the whole pool is
  higher than the figure. Where the pool has no second sample left, with the fit on the whole pool
  ("pool"), which then costs less than two samples.
- only `options.basis_sample` below the pool: with eigenvectors of the whole pool ("basis").

Figures: Spearman correlation over the scored examples, and cosine of the preconditioned gradients,
each the mean over probes. The cost is one more fit and one pass over the scored examples. Labels
sampled for the true Fisher belong to their example: two samples differ in them too, but fits
compared with "pool" and "basis" share them, so that those figures leave this error out.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.data.pool import drawn
from harness.influence.curvature.base import Curvature, kind_of
from harness.influence.curvature.ekfac import basis_examples
from harness.influence.directional import directional_scores
from harness.influence.gradients import query_gradients
from harness.influence.layers import dots, tracked_layers
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
    """Agreement of scores under the fit that `options` ask for with those under a reference fit.

    None where nothing is sampled. `curvature`: that fit, if it exists already; `probes`: examples
    whose gradients are preconditioned (None: `PROBES` of the pool). ValueError for a pool of fewer
    than three examples, which have no rank correlation.
    """
    from scipy.stats import spearmanr

    if len(pool) < 3:
        raise ValueError(f"the pool has {len(pool)} examples; expected at least 3 to rank")
    options = dataclasses.replace(options, measure_error=False)
    comparison = _reference(model, pool, options)
    if comparison is None:
        return None
    against, other, reference_options = comparison
    if curvature is None:
        curvature = fit(model, pool, options, progress=progress)
    reference = fit(model, other, reference_options, progress=progress)
    if probes is None:
        probes = drawn(pool, PROBES, options.seed + 2)
    scored = drawn(pool, SCORED, options.seed + 3)
    gradients = query_gradients(model, probes, options)
    ours = curvature.apply(gradients, model=model, pool=pool, progress=progress)
    theirs = reference.apply(gradients, model=model, pool=other, progress=progress)
    joined = {name: torch.cat([part, theirs[name].to(part)]) for name, part in ours.items()}
    scores = directional_scores(model, scored, joined, options, progress=progress)
    pairs = zip(*np.split(scores.T, 2), strict=True)
    lengths = (dots(ours, ours) * dots(theirs, theirs)).sqrt()
    return SamplingError(
        against=against,
        examples=len(fitted_on(pool, options)),
        reference_examples=len(other),
        probes=len(probes),
        scored=len(scored),
        spearman=float(np.mean([spearmanr(*pair).statistic for pair in pairs])),
        cosine=float((dots(ours, theirs) / lengths).mean()),
    )


def _reference(
    model: nn.Module, pool: Pool, options: CurvatureOptions
) -> tuple[str, Pool, CurvatureOptions] | None:
    """What to compare with: its name, the pool to fit on, and the options of the reference fit."""
    if options.kind == "identity":
        return None
    sample = fitted_on(pool, options)
    whole = dataclasses.replace(options, sample=None)
    if len(sample) < len(pool):
        used = set(sample.ids)
        rest = pool.take([i for i, name in enumerate(pool.ids) if name not in used])
        if len(rest) < len(sample):
            return "pool", pool, whole
        return "sample", drawn(rest, len(sample), options.seed + 4), whole
    if options.kind not in ("ekfac", "ekfac+cg"):
        return None
    layers = tracked_layers(model, options.layers, options.head)
    if basis_examples(layers, pool, options) == len(pool):
        return None
    return "basis", pool, dataclasses.replace(whole, basis_sample=None)


def fit(
    model: nn.Module,
    pool: Pool,
    options: CurvatureOptions | None = None,
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Curvature:
    """Fit the curvature of `options.kind` on `pool` at the model's present weights.

    Options come as a `CurvatureOptions` or by name: `fit(model, pool, kind="ekfac", damping=0.01)`.
    """
    options = options_from(options, keywords)
    if len(pool) == 0:
        raise ValueError("the pool is empty; expected at least one example to fit a curvature on")
    sample = fitted_on(pool, options)
    curvature = kind_of(options.kind).fit(model, sample, options, progress=progress)
    if not options.measure_error:
        return curvature
    error = sampling_error(model, pool, options, curvature=curvature, progress=progress)
    return dataclasses.replace(curvature, error=error)
