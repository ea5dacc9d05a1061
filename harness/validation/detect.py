"""How well a score finds planted errors: the area under the ROC curve, class against correct."""

from __future__ import annotations

import numpy as np

from harness.validation.bootstrap import DRAWS, LEVELS, Floats, Interval, shares


def auroc(wrong: Floats, right: Floats) -> float:
    """P(a wrong example scores below a right one), ties half: 1 = the score finds every error."""
    return float(_below(wrong, right).mean())


def auroc_interval(
    wrong: Floats, right: Floats, rng: np.random.Generator, draws: int = DRAWS
) -> Interval:
    """`auroc` with an interval from resamples of both groups."""
    below = _below(wrong, right)
    first, second = shares(rng, draws, len(wrong)), shares(rng, draws, len(right))
    low, high = np.quantile(((first @ below) * second).sum(axis=1), LEVELS)
    return Interval(float(below.mean()), float(low), float(high))


def _below(wrong: Floats, right: Floats) -> Floats:
    if not (len(wrong) and len(right)):
        raise ValueError(f"{len(wrong)} wrong and {len(right)} right examples; expected both")
    found: Floats = (wrong[:, None] < right) + 0.5 * (wrong[:, None] == right)
    return found
