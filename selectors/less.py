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
from typing import ClassVar, Literal

from harness import Context, Pool, Scores, ScoreSelector, Warmup, influence
from harness.influence.costs import BOTH


@dataclass(frozen=True)
class Less(ScoreSelector):
    """Scores an example by sum over checkpoints of eta cos(Adam's update on it, mean g_query).

    `share`, `minimum`, `epochs`, `seed`: of the warm-up, see Warmup (`epochs` None: the recipe's
    own budget). `checkpoints`: so many, at equal steps; 4 are the ends of its epochs. `layers`:
    whose weights count. `loss`: mean or sum over an example's response tokens.
    """

    needs: ClassVar[tuple[str, ...]] = ("trajectory", "queryset")

    share: float = 0.05
    minimum: int = 64
    epochs: float | None = 4.0
    checkpoints: int = 4
    seed: int = 0
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        self.warmup()  # refuses impossible values

    def warmup(self) -> Warmup:
        """The warm-up run, with Adam's moments."""
        return Warmup(self.share, self.minimum, self.epochs, self.checkpoints, True, self.seed)

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: Adam's step on it points more to where the queries' loss falls."""
        options = influence.CurvatureOptions("identity", layers=self.layers, loss=self.loss)
        queries, trajectory = context.queryset, context.trajectory
        for _ in trajectory:
            context.count(queries, BOTH)
            context.count(pool, BOTH)
        return influence.less_scores(trajectory, pool, queries, options, progress=context.progress)
