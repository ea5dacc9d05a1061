"""How well a score finds planted errors: the area under the ROC curve, class against correct."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from harness.studies.influence.bootstrap import DRAWS, LEVELS, Floats, Interval, shares


def auroc(wrong: Floats, right: Floats) -> float:
    """P(a wrong example scores below a right one), ties half: 1 = the score finds every error."""
    return float(_below(wrong, right).mean())


def auroc_intervals(
    scores: Mapping[str, Floats],
    wrong: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """`auroc` of each method with an interval from resamples of both groups, the same for all.

    `scores`: [n] per method; `wrong`, `right`: which of the n examples are in the two groups.
    """
    first, second = shares(rng, draws, int(wrong.sum())), shares(rng, draws, int(right.sum()))
    found = {}
    for method, values in scores.items():
        below = _below(values[wrong], values[right])
        low, high = np.quantile(((first @ below) * second).sum(axis=1), LEVELS)
        found[method] = Interval(float(below.mean()), float(low), float(high))
    return found


def _below(wrong: Floats, right: Floats) -> Floats:
    if not (len(wrong) and len(right)):
        raise ValueError(f"{len(wrong)} wrong and {len(right)} right examples; expected both")
    found: Floats = (wrong[:, None] < right) + 0.5 * (wrong[:, None] == right)
    return found
