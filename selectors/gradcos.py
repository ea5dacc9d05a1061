"""Keep what pulls the fine-tuned model the way the queries do.

GradCos: the cosine of gradients, which explains predictions by similar training examples better
than the dot product does (2006.04528). Here of an example with the mean over the queries' reference
responses, at the model fine-tuned on the whole pool. It is influence without curvature and without
lengths, and `less` without Adam and with one checkpoint: the row to compare these with.
"""

from dataclasses import dataclass
from typing import Any, Literal

from harness import (
    Context,
    Pool,
    QuerySet,
    ReferenceModel,
    Request,
    Scores,
    ScoreSelector,
    influence,
)


@dataclass(frozen=True)
class GradCos(ScoreSelector):
    """Scores an example by cos(g_example, mean g_query) at the reference checkpoint.

    `layers`: whose weights count. The length of a gradient drops out, so that mean and sum over
    an example's tokens are the same.
    """

    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"

    def requests(self) -> tuple[Request[Any], ...]:
        """The reference model and the queries."""
        return ReferenceModel(), QuerySet()

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: its gradient points more to where the queries' loss falls."""
        options = influence.CurvatureOptions("identity", layers=self.layers)
        model, queries = context.get(ReferenceModel()), context.get(QuerySet())
        context.count_pass(pool, queries, backward=True)
        return influence.cosine_scores(model, pool, queries, options, progress=context.progress)
