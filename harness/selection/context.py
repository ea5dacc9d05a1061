"""What a selector is given beside the pool, built the first time that it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool, tokens_of
from harness.data.queries import Queries
from harness.experiment.progress import Progress, no_progress

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.influence import Checkpoint
    from harness.influence import Curvature as Fitted
    from harness.selection.features import Features


@dataclass(frozen=True)
class Warmup:
    """The training run behind `context.trajectory`: the experiment's recipe on part of the pool.

    `share` of the pool, at least `minimum` examples, drawn with `seed`; `epochs` in place of the
    recipe's own budget (None keeps it). So many `checkpoints` at equal steps, the last one at the
    end. `moments`: keep Adam's moments with them, which takes three times the space.
    """

    share: float = 1.0
    minimum: int = 1
    epochs: float | None = None
    checkpoints: int = 4
    moments: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share!r}; expected more than 0 and at most 1")
        for name in ("minimum", "checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected at least 1")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs!r}; expected more than 0, or None")


class Decodes(Protocol):
    """The base model's sampled answers to the pool's own questions, graded."""

    def __call__(self, k: int, temperature: float) -> npt.NDArray[np.bool_]:
        """Correctness of `k` decodes of every example, shape [n, k]."""
        ...


@dataclass(frozen=True)
class Influence:
    """Influence of every pool example on C and I at the reference checkpoint.

    `table(**options)`: columns id, s_C, s_I, r_C, r_I (of the sides there are), one row per example
    in pool order; `attrs` holds n_C and n_I, the number of queries behind s. Calling the object is
    the same. `per_query(**options)`: infl(v, d) of the queries behind the ranks, "C" and "I" each
    [n, q], in pool order.
    """

    table: Callable[..., pd.DataFrame]
    per_query: Callable[..., Mapping[str, npt.NDArray[np.float32]]]

    def __call__(self, **options: Any) -> pd.DataFrame:
        """The table."""
        return self.table(**options)


class Curvature(Protocol):
    """The curvature of the pool's loss at the reference checkpoint."""

    def __call__(self, **options: Any) -> Fitted:
        """Fitted with `CurvatureOptions(**options)`; one fit serves all who ask for the same."""
        ...


class Context:
    """What a selector may use besides the pool, built only when it is asked for.

    Every costly thing comes from a provider, called once. Asking for something that the selector
    did not declare in `needs` raises, because the planner could not have shown its cost.
    """

    def __init__(
        self,
        providers: Mapping[str, Callable[[], Any]],
        *,
        needs: Sequence[str] = (),
        rng: np.random.Generator | None = None,
        device: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        self._providers = providers
        self._needs = frozenset(needs)
        self._built: dict[str, Any] = {}
        self._rng = rng
        self.device = device
        self.progress = progress
        self.recorded: dict[str, npt.NDArray[Any]] = {}
        self.noted: dict[str, Any] = {}
        self.attached: dict[str, dict[str, npt.NDArray[Any]]] = {}
        self.operations = 0.0

    def _get(self, name: str) -> Any:
        if name not in self._needs:
            raise AttributeError(
                f"the selector uses context.{name} without declaring it; "
                f'expected needs = (..., "{name}")'
            )
        if name not in self._built:
            self._built[name] = self._providers[name]()
        return self._built[name]

    @property
    def rng(self) -> np.random.Generator:
        """The only source of chance; a fresh, seeded generator per cell."""
        if self._rng is None:
            raise AttributeError(
                "the selector uses context.rng but is declared deterministic; "
                "expected stochastic = True in its class"
            )
        return self._rng

    @property
    def model(self) -> PreTrainedModel:
        """The base model: float32, eval mode, eager attention."""
        return self._get("model")  # type: ignore[no-any-return]

    @property
    def reference(self) -> PreTrainedModel:
        """The base model fine-tuned on the whole pool."""
        return self._get("reference")  # type: ignore[no-any-return]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the pool."""
        return self._get("tokenizer")

    @property
    def features(self) -> Features:
        """Per-token losses and hidden states under the base model, cached between selectors."""
        return self._get("features")  # type: ignore[no-any-return]

    @property
    def decodes(self) -> Decodes:
        """Sampled and graded answers of the base model to the pool's questions."""
        return self._get("decodes")  # type: ignore[no-any-return]

    @property
    def queryset(self) -> Pool:
        """The query problems with their reference responses; needs no fine-tuning."""
        return self._get("queryset")  # type: ignore[no-any-return]

    @property
    def queries(self) -> Queries:
        """The query set with answers before and after fine-tuning."""
        return self._get("queries")  # type: ignore[no-any-return]

    @property
    def influence(self) -> Influence:
        """Influence scores, cached between selectors that ask with the same options."""
        return self._get("influence")  # type: ignore[no-any-return]

    @property
    def curvature(self) -> Curvature:
        """Curvature at the reference checkpoint, fitted once for each set of options."""
        return self._get("curvature")  # type: ignore[no-any-return]

    @property
    def trajectory(self) -> tuple[Checkpoint, ...]:
        """Checkpoints of the run that the selector's `warmup()` describes, in order of steps."""
        return self._get("trajectory")  # type: ignore[no-any-return]

    def chosen_by(self, row: str) -> tuple[str, ...]:
        """Ids that another row of the experiment chose at the same fraction."""
        return self._get(f"row:{row}")  # type: ignore[no-any-return]

    def record(self, **columns: npt.ArrayLike) -> None:
        """Keep per-example numbers (shape [n]) beside the subset, for reports."""
        self.recorded.update({name: np.asarray(values) for name, values in columns.items()})

    def note(self, **facts: Any) -> None:
        """Keep facts about the whole selection (plain JSON values), for its records."""
        self.noted.update(facts)

    def attach(self, name: str, **columns: npt.ArrayLike) -> None:
        """Keep a further table, as `NAME.parquet` beside the scores."""
        if name in ("scores", "subset") or not name.isidentifier():
            raise ValueError(f"table name {name!r}; expected a free identifier")
        self.attached[name] = {key: np.asarray(values) for key, values in columns.items()}

    def count(self, pool: Pool, operations: float) -> None:
        """Note a pass over `pool` of so many operations per parameter and token, as a cost."""
        self.operations += operations * tokens_of(pool)
