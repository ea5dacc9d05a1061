"""Keep what pulled the queries' loss down while the model was trained.

TracInCP (2002.08484): over checkpoints of a run on the pool, the sum of learning rate times the dot
product of an example's gradient with the mean gradient of the queries' reference responses. The
dot product grows with the length of the gradient, so that a few loud examples lead; `gradcos` and
`less` take the cosine. The run is the experiment's own recipe on the whole pool, trained once more
to keep its checkpoints. The learning rate is the mean over the steps since the checkpoint before.
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
class TracIn(ScoreSelector):
    """Scores an example by sum over checkpoints of eta <g_example, mean g_query>.

    `checkpoints`: so many, at equal steps. `share`: of the pool that the run is trained on, drawn
    with `seed`. `epochs`: of that run, None for the recipe's own budget. `layers`: whose weights
    count. `loss`: mean or sum over an example's response tokens.
    """

    checkpoints: int = 4
    share: float = 1.0
    epochs: float | None = None
    seed: int = 0
    layers: Literal["attention+mlp", "attention", "mlp", "all"] = "attention+mlp"
    loss: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        self.requests()  # refuses impossible values

    def requests(self) -> tuple[Request[Any], ...]:
        """The run and the queries."""
        return self._run(), QuerySet()

    def _run(self) -> Trajectory:
        return Trajectory(
            self.share, epochs=self.epochs, checkpoints=self.checkpoints, seed=self.seed
        )

    def score(self, pool: Pool, context: Context) -> Scores:
        """Higher: training on it lowered the queries' loss more."""
        options = influence.CurvatureOptions("identity", layers=self.layers, loss=self.loss)
        queries, trajectory = context.get(QuerySet()), context.get(self._run())
        for _ in trajectory:
            context.count_pass(pool, queries, backward=True)
        return influence.tracin_scores(
            trajectory, pool, queries, options, progress=context.progress
        )
