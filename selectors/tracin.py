"""Keep what pulled the queries' loss down while the model was trained.

TracInCP (2002.08484): over checkpoints of a run on the pool, the sum of learning rate times the dot
product of an example's gradient with the mean gradient of the queries' reference responses. The
dot product grows with the length of the gradient, so that a few loud examples lead; `gradcos` and
`less` take the cosine. The run is the experiment's own recipe on the whole pool, trained once more
to keep its checkpoints. The learning rate is the mean over the steps since the checkpoint before.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from harness import Context, Pool, Scores, ScoreSelector, Warmup, influence
from harness.influence.costs import BOTH


@dataclass(frozen=True)
class TracIn(ScoreSelector):
    """Scores an example by sum over checkpoints of eta <g_example, mean g_query>.

    `checkpoints`: so many, at equal steps. `share`: of the pool that the run is trained on, drawn
    with `seed`. `epochs`: of that run, None for the recipe's own budget. `layers`: whose weights
    count. `loss`: mean or sum over an example's response tokens.
    """

    needs: ClassVar[tuple[str, ...]] = ("trajectory", "queryset")

    checkpoints: int = 4
    share: float = 1.0
    epochs: float | None = None
    seed: int = 0
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        self.warmup()  # refuses impossible values

    def warmup(self) -> Warmup:
        """The run whose checkpoints are summed over."""
        return Warmup(self.share, epochs=self.epochs, checkpoints=self.checkpoints, seed=self.seed)

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: training on it lowered the queries' loss more."""
        options = influence.CurvatureOptions("identity", layers=self.layers, loss=self.loss)
        queries, trajectory = context.queryset, context.trajectory
        for _ in trajectory:
            context.count(queries, BOTH)
            context.count(pool, BOTH)
        return influence.tracin_scores(
            trajectory, pool, queries, options, progress=context.progress
        )
