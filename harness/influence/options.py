"""Settings of a curvature estimate and of scoring; free of torch, so that a plan can read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from harness.data.pool import drawn

if TYPE_CHECKING:
    from harness.data.pool import Pool


CHOICES = {
    "kind": ("identity", "ekfac", "ekfac+cg", "projected"),
    "fisher": ("true", "empirical"),
    "layers": ("attention+mlp", "attention", "mlp", "all"),
    "loss": ("mean", "sum"),
}
METHODS = {
    "ghost": "products of activations and output gradients",
    "forward": "forward-mode derivatives",
}
"""Ways to score along given directions; both are exact up to rounding."""
POSITIONS_PER_DIMENSION = 16
FEWEST = 64


@dataclass(frozen=True)
class CurvatureOptions:
    """How the curvature is estimated, and over which weights and which loss.

    `kind`: see the modules of `curvature`. `fisher`: labels are sampled from the model ("true") or
    taken from the data ("empirical"). `damping`: a multiple of each layer's mean (corrected)
    eigenvalue. `layers`: which linear layers are tracked ("all": every one but the head, also
    outside attention and MLP); `head` adds the output layer. In a model with LoRA adapters only the
    adapters are tracked. `loss`: reduction over the response tokens of an example. `seed`: of the
    sampled labels, of subsamples of the pool and of random projections. `batch_size`: examples per
    batch; changes results by rounding only.

    `sample`: fit on that many examples, drawn with `seed` (None: the whole pool).
    `basis_sample`: take eigenvectors from that many of them, eigenvalues from all. "auto": enough
    for `POSITIONS_PER_DIMENSION` loss-carrying positions per dimension of the widest layer, and at
    least `FEWEST` examples; None: all.
    `memory_gib`: fit layers in groups, one after the other, so that the factors and activations of
    a group stay below this (None: all at once); changes results by rounding only.
    `cg_steps`, `cg_tolerance`: "ekfac+cg" stops after that many steps, or once the residual is that
    small relative to the right-hand side; few steps act as a regulariser. `cg_draws`: label draws
    per example in its products with the true Fisher matrix (None: the expectation over labels, at
    the price of a pass per right-hand side). `rank`: of "projected", per side of a layer.
    `measure_error`: a fit on a sample also measures what the sample costs in accuracy (see fit.py),
    for about the price of a second fit.
    """

    kind: Literal["identity", "ekfac", "ekfac+cg", "projected"] = "ekfac"
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
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        damping = math.isfinite(self.damping) and self.damping >= 0
        self._check("damping", damping, "a number of at least 0")
        for name in ("batch_size", "cg_steps", "rank"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("sample", "basis_sample"):
            size = getattr(self, name)
            valid = size is None or (name, size) == ("basis_sample", "auto")
            valid = valid or (isinstance(size, int) and size >= 1)
            self._check(name, valid, "at least 1, or None for all")
        draws = self.cg_draws is None or self.cg_draws >= 1
        self._check("cg_draws", draws, "at least 1, or None for the expectation")
        memory = self.memory_gib is None or self.memory_gib > 0
        self._check("memory_gib", memory, "more than 0, or None")
        self._check("cg_tolerance", self.cg_tolerance > 0, "more than 0")

    @property
    def label_seed(self) -> int | None:
        """Seed of the labels that a fit samples from the model; None: it takes the data's own."""
        return self.seed if self.fisher == "true" else None

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(
                f"influence option {name} is {getattr(self, name)!r}; expected {expected}"
            )


def options_from(options: CurvatureOptions | None, keywords: Mapping[str, Any]) -> CurvatureOptions:
    """`options`, or those that `keywords` name; ValueError for both, or for an unknown name."""
    if options is not None and keywords:
        raise ValueError(
            f"influence options and {', '.join(keywords)} were given; expected one of both"
        )
    names = [field.name for field in fields(CurvatureOptions)]
    unknown = [name for name in keywords if name not in names]
    if unknown:
        raise ValueError(
            f"influence option {unknown[0]!r} is unknown; expected one of {', '.join(names)}"
        )
    return options or CurvatureOptions(**keywords)


def scoring_method(method: str) -> str:
    """A name in `METHODS`; "auto" is "ghost", the cheaper one (see `costs.scoring_passes`)."""
    if method not in ("auto", *METHODS):
        expected = ", ".join(map(repr, ("auto", *METHODS)))
        raise ValueError(f"method is {method!r}; expected one of {expected}")
    return "ghost" if method == "auto" else method


@dataclass(frozen=True)
class SamplingError:
    """How far scores agree between a fit on a sample and another fit; see fit.py.

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
