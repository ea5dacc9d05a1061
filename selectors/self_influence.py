"""Drop what the model could only learn by heart.

Self-influence g^T (H + damping)^-1 g says how far training on an example moves its own loss. It is
high where nothing else in the pool teaches the same: mislabelled, memorised or out-of-distribution
examples (1703.04730, 2002.08484, where the highest are checked first), and dropping the highest
helped on noisy text (2302.13959). So the lowest are kept by default. What is rare and right is high
too. Looks at no query; with a loss that is a mean over tokens it is high for short responses: read
it beside `length`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness import (
    Context,
    FittedCurvature,
    Pool,
    ReferenceModel,
    Request,
    Scores,
    ScoreSelector,
    influence,
)


@dataclass(frozen=True)
class SelfInfluence(ScoreSelector):
    """Scores an example by its self-influence at the reference checkpoint.

    `order`: "low" keeps the lowest (what the pool supports), "high" the highest (what is memorised,
    mislabelled or rare). `curvature`, `fisher`, `damping`, `layers`, `loss`: see CurvatureOptions.
    """

    order: Literal["low", "high"] = "low"
    curvature: Literal["identity", "ekfac", "ekfac+cg", "projected"] = "ekfac"
    fisher: Literal["true", "empirical"] = "true"
    damping: float = 0.1
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ValueError(f"damping is {self.damping}; expected at least 0")
        if self.curvature == "ekfac+cg":
            raise ValueError(
                "curvature is 'ekfac+cg', which solves with passes over the pool, here for every "
                "example; expected one that solves from its factors: 'identity', 'ekfac' or "
                "'projected'"
            )

    def requests(self) -> tuple[Request[Any], ...]:
        """The reference model and the curvature there."""
        return ReferenceModel(), self._curvature()

    def _curvature(self) -> FittedCurvature:
        options = influence.CurvatureOptions(
            kind=self.curvature,
            fisher=self.fisher,
            damping=self.damping,
            layers=self.layers,
            loss=self.loss,
        )
        return FittedCurvature(options)

    def score(self, pool: Pool, context: Context) -> Scores:
        """Minus the self-influence for "low", the self-influence itself for "high"."""
        model, curvature = context.get(ReferenceModel()), context.get(self._curvature())
        values = influence.self_influence(model, curvature, pool, progress=context.progress)
        context.count_pass(pool, backward=True)
        context.record(self_influence=values)
        # Equal scores keep pool order; minus 0.0 would sort like 0.0 but look odd in a table.
        return values if self.order == "high" else np.where(values == 0, 0.0, -values)
