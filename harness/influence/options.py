"""Settings of a curvature estimate; free of torch, so that a plan can read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CHOICES = {
    "kind": ("identity", "ekfac"),
    "fisher": ("true", "empirical"),
    "layers": ("attention+mlp", "attention", "mlp", "all"),
    "loss": ("mean", "sum"),
}


@dataclass(frozen=True)
class CurvatureOptions:
    """How the curvature is estimated, and over which weights and which loss.

    `fisher`: labels drawn from the model ("true") or taken from the data ("empirical").
    `damping`: a multiple of each layer's mean corrected eigenvalue. `layers`: which linear layers
    are tracked ("all": every one but the head, also outside attention and MLP); `head` adds the
    output layer. `loss`: reduction over the response tokens of an example. `seed`: of the sampled
    labels. `batch_size`: examples per batch; changes results by rounding only.
    """

    kind: Literal["identity", "ekfac"] = "ekfac"
    fisher: Literal["true", "empirical"] = "true"
    damping: float = 0.1
    layers: str = "attention+mlp"
    head: bool = False
    loss: Literal["mean", "sum"] = "mean"
    seed: int = 0
    batch_size: int = 32

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
        if self.batch_size < 1:
            raise ValueError(
                f"influence option batch_size is {self.batch_size!r}; expected at least 1"
            )
