"""What a selector is given beside the pool: results of its requests, chance, and a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool, tokens_of
from harness.experiment.progress import Progress, no_progress
from harness.influence.costs import BOTH, FORWARD
from harness.selection.requests import Request

T = TypeVar("T")


class Context:
    """Results of a selector's requests, loaded when they are first asked for.

    Asking for something that was not requested raises: the planner could not have shown its cost.

    Args:
        requested: the selector's requests.
        load: returns the result of one of them.
        rng: generator of a stochastic selector, None for a deterministic one.
        device: where models run, "cpu" or "cuda".
    """

    def __init__(
        self,
        requested: Sequence[Request[Any]],
        load: Callable[[Request[Any]], Any],
        *,
        rng: np.random.Generator | None = None,
        device: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        self._requested = tuple(requested)
        self._load = load
        self._results: dict[Request[Any], Any] = {}
        self._rng = rng
        self.device = device
        self.progress = progress
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self.facts: dict[str, Any] = {}
        self.tables: dict[str, dict[str, npt.NDArray[Any]]] = {}
        self.operations = 0.0

    def get(self, request: Request[T]) -> T:
        """The result of `request`, which must be one of the selector's `requests()`."""
        if request not in self._requested:
            raise AttributeError(
                f"the selector reads {request} without requesting it; "
                f"expected one of its requests(): {list(self._requested)}"
            )
        if request not in self._results:
            self._results[request] = self._load(request)
        result: T = self._results[request]
        return result

    @property
    def rng(self) -> np.random.Generator:
        """The only source of chance; a fresh, seeded generator per cell."""
        if self._rng is None:
            raise AttributeError(
                "the selector uses context.rng but is declared deterministic; "
                "expected stochastic = True in its class"
            )
        return self._rng

    def record(self, **columns: npt.ArrayLike) -> None:
        """Keep per-example numbers (shape [n]) beside the subset, for reports."""
        self.columns.update({name: np.asarray(values) for name, values in columns.items()})

    def note(self, **facts: Any) -> None:
        """Keep facts about the whole selection (plain JSON values), for its records."""
        self.facts.update(facts)

    def attach(self, name: str, **columns: npt.ArrayLike) -> None:
        """Keep a further table, as `NAME.parquet` beside the scores."""
        if name in ("scores", "subset") or not name.isidentifier():
            raise ValueError(f"table name {name!r}; expected a free identifier")
        self.tables[name] = {key: np.asarray(values) for key, values in columns.items()}

    def count_pass(self, *pools: Pool, backward: bool = False) -> None:
        """Count a pass of a model over `pools` towards the cost of the selection."""
        per_token = BOTH if backward else FORWARD
        self.operations += per_token * sum(map(tokens_of, pools))
