"""Keep the longest worked solutions.

"Long is more for alignment" (2402.04833). On a pool that holds padding and repetition it picks
exactly those (2503.01807), and many methods lean on length without saying so: this row shows how
much of their gain it explains.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness import Context, Pool, Scores, ScoreSelector


@dataclass(frozen=True)
class Length(ScoreSelector):
    """Scores an example by the tokens of its response.

    `order`: longest or shortest first, or the middle: nearest to the median by rank, the shorter
    of two that are equally near.
    """

    order: Literal["longest", "shortest", "middle"] = "longest"

    def score(self, pool: Pool, context: Context) -> Scores:
        """Tokens, minus tokens, or minus the distance in ranks from the median."""
        lengths = pool.response_lengths.astype(np.float64)
        if self.order == "longest":
            return lengths
        if self.order == "shortest":
            return -lengths
        ordered = np.sort(lengths)
        below = np.searchsorted(ordered, lengths, "left")
        above = len(pool) - np.searchsorted(ordered, lengths, "right")
        distance: Scores = np.abs(below - above) / 2 + np.where(below > above, 0.25, 0.0)
        return -distance
