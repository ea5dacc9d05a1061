"""What a comparison could have found: the smallest detectable difference, and the seeds for it."""

from __future__ import annotations

import math

from scipy import stats

from harness.stats.interval import Spread


def detectable(spread: Spread, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference found with probability `power` at the realised seeds and items.

    The interval's half-width and the distance at t_{power}, (t_{1-alpha/2} + t_{power}) se where
    the spread has one part. nan where it has none.
    """
    if not spread.se > 0.0:
        return math.nan
    return spread.half(alpha) + spread.half(2.0 * (1.0 - power))


def seeds_needed(sd: float, delta: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Seeds to find a difference `delta`: ((z_{1-alpha/2} + z_power) sd / delta)^2 + 2, rounded up.

    `sd` is the standard deviation over seeds of the paired difference; 2 allows for it being
    estimated. It concerns these items: more seeds do not lessen the variance between items.
    """
    if not sd >= 0.0 or not delta > 0.0:
        raise ValueError(f"sd {sd!r}, delta {delta!r}; expected sd >= 0 and delta > 0")
    z = float(stats.norm.ppf(1.0 - alpha / 2.0) + stats.norm.ppf(power))
    return math.ceil((z * sd / delta) ** 2 + 2.0)
