"""Other intervals from the same mean squares that were tried, each for means and for differences.

Each has half-widths for V_r, V_i, V_e of `harness.stats.interval` and t quantiles t_r with R - 1,
t_i with n - 1 degrees of freedom.

- `FLOOR`: Satterthwaite's with at least R - 1 degrees of freedom. His formula cannot give fewer for
  a sum; the subtracted part makes it.
- `PARTS`: sqrt(t_r^2 max(V_r - V_e, 0) + t_i^2 V_i); the default for means.
- `FULL`: sqrt(t_r^2 V_r + t_i^2 max(V_i - V_e, 0)); the default for differences.
- `GENERALISED`: the pivotal quantity of Weerahandi (JASA 88, 1993), mean + z sqrt(S) with
  S = max(V_r f_r - V_e f_e, 0) + V_i f_i, z normal and each f its degrees of freedom over a draw
  from their chi-square distribution.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from harness.studies.intervals.methods import satterthwaite, two_way
from harness.studies.intervals.squares import Floats, Squares

FLOOR, PARTS, FULL = "floor on df", "residual with items", "residual with seeds"
GENERALISED = "generalised"
TRIED = (FLOOR, PARTS, FULL, GENERALISED)


def half_widths(found: Squares, alpha: float) -> dict[str, Floats]:
    """Half-widths [M] by name, of those with a formula."""
    summed = satterthwaite(found)
    df = np.fmax(summed.df, found.seeds - 1.0)
    return {
        FLOOR: stats.t.ppf(1.0 - alpha / 2.0, df) * summed.se,
        PARTS: two_way(found, differences=False).half(alpha),
        FULL: two_way(found, differences=True).half(alpha),
    }


def generalised(found: Squares, rng: np.random.Generator, draws: int, alpha: float) -> Floats:
    """Half-widths [M] of the pivotal quantity; all tables share its draws."""
    rows, columns = found.seeds - 1, found.items - 1
    r, i, e = (df / rng.chisquare(df, draws) for df in (rows, columns, rows * columns))
    total = np.maximum(np.outer(found.v_r, r) - np.outer(found.v_e, e), 0.0)
    total += np.outer(found.v_i, i)
    total = np.sqrt(total) * np.abs(rng.standard_normal(draws))
    half: Floats = np.quantile(total, 1.0 - alpha, axis=1)
    return half
