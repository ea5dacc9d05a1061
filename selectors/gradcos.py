"""Keep what pulls the fine-tuned model the way the queries do.

GradCos: the cosine of gradients, which explains predictions by similar training examples better
than the dot product does (2006.04528). Here of an example with the mean over the queries' reference
responses, at the model fine-tuned on the whole pool. It is influence without curvature and without
lengths, and `less` without Adam and with one checkpoint: the row to compare these with.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from harness import Context, Pool, Scores, ScoreSelector, influence
from harness.influence.costs import BOTH


@dataclass(frozen=True)
class GradCos(ScoreSelector):
    """Scores an example by cos(g_example, mean g_query) at the reference checkpoint.

    `layers`: whose weights count. The length of a gradient drops out, so that mean and sum over
    an example's tokens are the same.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "queryset")

    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: its gradient points more to where the queries' loss falls."""
        options = influence.CurvatureOptions("identity", layers=self.layers)
        queries = context.queryset
        context.count(queries, BOTH)
        context.count(pool, BOTH)
        return influence.cosine_scores(
            context.reference, pool, queries, options, progress=context.progress
        )
