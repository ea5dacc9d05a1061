"""How much two random subsets of a pool overlap."""

from __future__ import annotations

import numpy as np


def expected_jaccard(n: int, first: int, second: int) -> float:
    """Mean of |A and B| / |A or B| over two random subsets of these sizes of a pool of `n`."""
    from scipy.stats import hypergeom

    if first + second == 0:
        return 1.0
    # Beyond 16 standard deviations (each at most sqrt(n) / 4) nothing is left.
    middle, reach = first * second / n, 4 * np.sqrt(n) + 16
    low = max(0, first + second - n, int(middle - reach))
    shared = np.arange(low, min(first, second, int(middle + reach)) + 1)
    overlaps = shared / (first + second - shared)
    return float((hypergeom.pmf(shared, n, first, second) * overlaps).sum())
