"""Leave-out brittleness: how far a query falls when the examples said to help it are taken away."""

from __future__ import annotations

import numpy as np

from harness.studies.influence.bootstrap import Floats


def top(scores: Floats, share: float) -> np.ndarray:
    """Which examples have the highest scores, as many as `share` of them, bool [n].

    Ties go to the earlier example.
    """
    count = round(share * len(scores))
    if not 0 < count < len(scores):
        raise ValueError(f"share is {share!r} of {len(scores)}; expected some examples, not all")
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def drops(without: Floats, random: Floats) -> Floats:
    """Fall of each query's log-probability beyond that from random removals, in nats, [q].

    `without`: [seeds, q], trained without the query's own top examples. `random`: [sets, seeds, q],
    trained without as many random ones. Paired by seed; positive = the method chose examples that
    the query needs.
    """
    if without.shape != random.shape[1:]:
        raise ValueError(
            f"shapes are {without.shape} and {random.shape}; expected [s, q] and [sets, s, q]"
        )
    found: Floats = (random.mean(axis=0) - without).mean(axis=0)
    return found
