"""Settings of a curvature estimate; free of torch, so that a plan can read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from harness.data.pool import drawn

if TYPE_CHECKING:
    from harness.data.pool import Pool


CHOICES = {
    "kind": ("identity", "diagonal", "kfac", "ekfac", "ekfac+cg", "datainf", "projected"),
    "fisher": ("true", "empirical"),
    "layers": ("attention+mlp", "attention", "mlp", "all"),
    "loss": ("mean", "sum"),
}


POSITIONS_PER_DIMENSION = 16
FEWEST = 64


@dataclass(frozen=True)
class CurvatureOptions:
    """How the curvature is estimated, and over which weights and which loss.

    `kind`: see curvature.py. `fisher`: labels drawn from the model ("true") or taken from the data
    ("empirical"). `damping`: a multiple of each layer's mean (corrected) eigenvalue. `layers`:
    which linear layers are tracked ("all": every one but the head, also outside attention and MLP);
    `head` adds the output layer. Of a model with LoRA adapters only the adapters are tracked.
    `loss`: reduction over the response tokens of an example. `seed`: of the sampled labels, of the
    samples of the pool and of random projections. `batch_size`: examples per batch; changes results
    by rounding only.

    `sample`: the whole fit sees so many examples, drawn with `seed` (None: the pool).
    `basis_sample`: only eigenvectors come from so many of them; eigenvalues from all. "auto": from
    as many as give `POSITIONS_PER_DIMENSION` loss-carrying positions for each dimension of the
    widest layer, and no fewer than `FEWEST`; None: all.
    `memory_gib`: fits layers in groups, one after the other, so that factors and activations of a
    group stay below it (None: all at once); changes results by rounding only.
    `cg_steps`, `cg_tolerance`: of "ekfac+cg", at most so many steps, until the residual is so small
    relative to the right-hand side; few steps are a regulariser (see cg.py). `cg_draws`: draws of
    labels for each example in its products with the true Fisher matrix (None: the expectation over
    labels, at the price of a pass for every right-hand side). `rank`: of "projected", per side of a
    layer.
    `measure_error`: a fit on a sample also measures what the sample costs (see sampling.py), for
    about the price of a second fit.
    """

    kind: Literal["identity", "diagonal", "kfac", "ekfac", "ekfac+cg", "datainf", "projected"] = (
        "ekfac"
    )
    fisher: Literal["true", "empirical"] = "true"
    damping: float = 0.1
    layers: str = "attention+mlp"
    head: bool = False
    loss: Literal["mean", "sum"] = "mean"
    seed: int = 0
    batch_size: int = 32
    sample: int | None = None
    basis_sample: int | Literal["auto"] | None = "auto"
    memory_gib: float | None = None
    cg_steps: int = 3
    cg_draws: int | None = 4
    cg_tolerance: float = 1e-2
    rank: int = 16
    measure_error: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"influence option {name} is {value!r}; expected one of {', '.join(allowed)}"
                )
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(
                f"influence option damping is {self.damping!r}; expected a number of at least 0"
            )
        for name in ("batch_size", "cg_steps", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"influence option {name} is {getattr(self, name)!r}; expected at least 1"
                )
        for name in ("sample", "basis_sample"):
            value = getattr(self, name)
            if value is None or (name, value) == ("basis_sample", "auto"):
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"influence option {name} is {value!r}; expected at least 1, or None for all"
                )
        if self.cg_draws is not None and self.cg_draws < 1:
            raise ValueError(
                f"influence option cg_draws is {self.cg_draws!r}; expected at least 1, or None "
                "for the expectation"
            )
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ValueError(
                f"influence option memory_gib is {self.memory_gib!r}; expected more than 0, or None"
            )
        if not self.cg_tolerance > 0:
            raise ValueError(
                f"influence option cg_tolerance is {self.cg_tolerance!r}; expected more than 0"
            )


def options_from(options: CurvatureOptions | None, keywords: Mapping[str, Any]) -> CurvatureOptions:
    """`options`, or those that `keywords` give by name; ValueError for both, or an unknown name."""
    if options is not None and keywords:
        raise ValueError(
            f"influence options and {', '.join(keywords)} were given; expected one of both"
        )
    known = [field.name for field in fields(CurvatureOptions)]
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise ValueError(
            f"influence option {unknown[0]!r} is unknown; expected one of {', '.join(known)}"
        )
    return options or CurvatureOptions(**keywords)


@dataclass(frozen=True)
class SamplingError:
    """How far scores agree between a fit on a sample and another fit; see sampling.py.

    `against`: "sample", "pool" or "basis"; `examples`, `reference_examples`: of the two fits;
    `probes`, `scored`: what was compared; `spearman`, `cosine`: means over the probes.
    """

    against: str
    examples: int
    reference_examples: int
    probes: int
    scored: int
    spearman: float
    cosine: float


def fitted_on(pool: Pool, options: CurvatureOptions) -> Pool:
    """The examples that a curvature is fitted on: the pool, or `options.sample` of it, seeded."""
    return drawn(pool, options.sample, options.seed)
