"""Statistics of a benchmark: intervals, paired tests, corrections and power, on arrays.

`family` leads from outcomes to verdicts: `summarise` for an experiment, `compare` and `corrected`
for anything else. Beneath it: `pivot` (long outcomes by row, seed and item), `estimate` (two-way
interval), `difference` (paired, to a reference), `holm` and `benjamini_hochberg`, `replicate`
(crossed bootstrap, to compare with), `scores` (items in clusters). Undefined numbers are nan.
"""

from harness.stats.cluster import blocks, scores
from harness.stats.family import (
    MEAN,
    SUMMARY_COLUMNS,
    Comparison,
    Sides,
    benjamini_hochberg,
    compare,
    corrected,
    holm,
    rival,
    summarise,
)
from harness.stats.grid import Grid, LeftOut, Outcome, pivot
from harness.stats.interval import Estimate, Spread, estimate, mean_squares, spread, wilson
from harness.stats.paired import (
    DELTAS,
    Difference,
    aligned,
    common_seeds,
    detectable,
    difference,
    improvement,
    mcnemar,
    seeds_needed,
    sign_flip,
)
from harness.stats.resampling import replicate
from harness.stats.set_overlap import (
    jaccard,
    placements,
    rank_correlation,
    stability,
)

__all__ = [
    "DELTAS", "MEAN", "SUMMARY_COLUMNS", "Comparison", "Difference", "Estimate",
    "Grid", "LeftOut", "Outcome", "Sides", "Spread", "aligned", "benjamini_hochberg", "blocks",
    "common_seeds", "compare", "corrected", "detectable", "difference", "estimate",
    "holm", "improvement", "jaccard", "mcnemar", "mean_squares",
    "pivot", "placements", "rank_correlation", "replicate", "rival", "scores",
    "seeds_needed", "sign_flip", "spread", "stability", "summarise", "wilson",
]  # fmt: skip
