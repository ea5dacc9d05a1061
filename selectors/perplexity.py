"""Keep a band of perplexity under the base model.

The middle band is the usual baseline ("Mid-PPL", 2410.16208, 2503.01807): neither what the model
knows already nor noise. Two public implementations disagree on what the middle is; both are here by
name, so that published rows can be matched.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness import Context, Features, Pool, Request, Scores, ScoreSelector


@dataclass(frozen=True)
class Perplexity(ScoreSelector):
    """Scores an example by the mean negative log-likelihood of its response tokens.

    `band`: "middle", the central examples by rank, the lower of two equally central ones;
    "top", the highest first; "bottom", the lowest first. As published elsewhere: "from-third",
    positions int(0.33 n) and following of the descending order (where they run out, the ones just
    above); "lowest", the k lowest, as a set the same as "bottom".
    """

    band: Literal["middle", "top", "bottom", "from-third", "lowest"] = "middle"

    def requests(self) -> tuple[Request[Any], ...]:
        """Token losses under the base model."""
        return (Features(),)

    def score(self, pool: Pool, context: Context) -> Scores:
        """The loss itself for "top"; elsewhere what orders the band, best first."""
        losses = context.get(Features()).losses
        nll = np.array([float(row.mean(dtype=np.float64)) for row in losses])
        context.record(nll=nll)
        if self.band == "top":
            return nll
        if self.band in ("bottom", "lowest"):
            return -nll
        n = len(pool)
        if self.band == "middle":
            ordered = np.sort(nll)
            below = np.searchsorted(ordered, nll, "left")
            above = n - np.searchsorted(ordered, nll, "right")
            distance: Scores = np.abs(below - above) / 2 + np.where(below > above, 0.25, 0.0)
            return -distance
        place = np.empty(n)
        place[np.argsort(-nll, kind="stable")] = np.arange(n)
        start = int(0.33 * n)
        return np.where(place >= start, start - place, place - n)
