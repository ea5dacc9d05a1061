"""What a comparison could have found: the smallest detectable difference, and the seeds for it."""

from __future__ import annotations

import math

from scipy import stats


def detectable(se: float, df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference found with probability `power` at the realised seeds and items.

    (t_{1-alpha/2} + t_{power}) se, with the standard error and degrees of freedom of the paired
    difference. nan where they are unknown.
    """
    if not se > 0.0 or math.isnan(df):
        return math.nan
    return float((stats.t.ppf(1.0 - alpha / 2.0, df) + stats.t.ppf(power, df)) * se)


def seeds_needed(sd: float, delta: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Seeds to find a difference `delta`: ((z_{1-alpha/2} + z_power) sd / delta)^2 + 2, rounded up.

    `sd` is the standard deviation over seeds of the paired difference; 2 allows for it being
    estimated. It concerns these items: more seeds do not lessen the variance between items.
    """
    if not sd >= 0.0 or not delta > 0.0:
        raise ValueError(f"sd {sd!r}, delta {delta!r}; expected sd >= 0 and delta > 0")
    z = float(stats.norm.ppf(1.0 - alpha / 2.0) + stats.norm.ppf(power))
    return math.ceil((z * sd / delta) ** 2 + 2.0)
