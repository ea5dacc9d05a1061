"""Statistics of a benchmark: intervals, paired tests and corrections.

`summarise` turns long outcomes (by seed, item and decode) into the table of results. Beneath it:
`estimate` (two-way interval), `difference` (paired, to a reference), `holm` and
`benjamini_hochberg`, `bootstrap` (crossed, the second method), `scores` (items in clusters).
Undefined numbers are nan, never 0.
"""

from harness.stats.bootstrap import Bootstrap, bootstrap, interquartile_mean, replicate
from harness.stats.cluster import blocks, scores
from harness.stats.grid import COLUMNS, Grid, Outcome, pivot
from harness.stats.interval import Estimate, MeanSquares, Spread, estimate, mean_squares, wilson
from harness.stats.multiple import benjamini_hochberg, holm
from harness.stats.paired import (
    Difference,
    Verdict,
    aligned,
    common_seeds,
    difference,
    improvement,
    mcnemar,
    sign_flip,
)
from harness.stats.power import detectable, seeds_needed
from harness.stats.set_overlap import (
    jaccard,
    overlap_of_random,
    placements,
    rank_correlation,
    stability,
)
from harness.stats.summary import MEAN, SUMMARY_COLUMNS, rival, summarise

__all__ = [
    "COLUMNS",
    "MEAN",
    "SUMMARY_COLUMNS",
    "Bootstrap",
    "Difference",
    "Estimate",
    "Grid",
    "MeanSquares",
    "Outcome",
    "Spread",
    "Verdict",
    "aligned",
    "benjamini_hochberg",
    "blocks",
    "bootstrap",
    "common_seeds",
    "detectable",
    "difference",
    "estimate",
    "holm",
    "improvement",
    "interquartile_mean",
    "jaccard",
    "mcnemar",
    "mean_squares",
    "overlap_of_random",
    "pivot",
    "placements",
    "rank_correlation",
    "replicate",
    "rival",
    "scores",
    "seeds_needed",
    "sign_flip",
    "stability",
    "summarise",
    "wilson",
]
