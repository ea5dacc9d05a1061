"""Keep what Adam would turn into steps towards the queries.

LESS (2402.04333): a warm-up run on 5% of the pool for 4 epochs; at each of its checkpoints the
cosine between Adam's update on the example (its gradient mixed into the optimizer's moments, with
bias correction) and the mean gradient of the queries' reference responses; summed with the learning
rates, each the mean over the steps since the checkpoint before. The cosine takes out the length of
the update, which sides with short responses. Other than in the published code the gradients are
exact (no random projection), the query set is one task, and the weights are those of the
experiment's recipe (adapters only with LoRA). A pool of a few hundred has no 5% to speak of: the
warm-up sees at least `minimum` examples.
"""

from dataclasses import dataclass
from typing import Any, Literal

from harness import (
    Context,
    Pool,
    QuerySet,
    Request,
    Scores,
    ScoreSelector,
    Trajectory,
    influence,
)


@dataclass(frozen=True)
class Less(ScoreSelector):
    """Scores an example by sum over checkpoints of eta cos(Adam's update on it, mean g_query).

    `share`, `minimum`, `epochs`, `seed`: of the warm-up, see Trajectory (`epochs` None: the
    recipe's own budget). `checkpoints`: so many, at equal steps; 4 are the ends of its epochs.
    `layers`: whose weights count. `loss`: mean or sum over an example's response tokens.
    """

    share: float = 0.05
    minimum: int = 64
    epochs: float | None = 4.0
    checkpoints: int = 4
    seed: int = 0
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        self.requests()  # refuses impossible values

    def requests(self) -> tuple[Request[Any], ...]:
        """The run and the queries."""
        return self._run(), QuerySet()

    def _run(self) -> Trajectory:
        return Trajectory(self.share, self.minimum, self.epochs, self.checkpoints, True, self.seed)

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: Adam's step on it points more to where the queries' loss falls."""
        options = influence.CurvatureOptions("identity", layers=self.layers, loss=self.loss)
        queries, trajectory = context.get(QuerySet()), context.get(self._run())
        for _ in trajectory:
            context.count_pass(pool, queries, backward=True)
        return influence.less_scores(trajectory, pool, queries, options, progress=context.progress)
