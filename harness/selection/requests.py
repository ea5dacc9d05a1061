"""What a selector may request: frozen descriptions of costly things, built as stages of the run.

Equal requests are one stage, whoever makes them: planned, shown, scheduled and priced like any
other. A selector lists its requests in `requests()` and reads each result with `context.get`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.data.queries import Queries as AnsweredQueries
from harness.influence.options import CurvatureOptions

if TYPE_CHECKING:  # named in the results of requests, as text
    from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: F401

    from harness.influence import Checkpoint, Curvature  # noqa: F401
    from harness.selection.features import FeatureTable  # noqa: F401
    from harness.selection.influence_table import InfluenceScores  # noqa: F401

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Request(Generic[T_co]):
    """A description of something costly; the type parameter is what `context.get` returns."""


@dataclass(frozen=True)
class BaseModel(Request["PreTrainedModel"]):
    """The base model: float32, eval mode, eager attention."""


@dataclass(frozen=True)
class ReferenceModel(Request["PreTrainedModel"]):
    """The base model fine-tuned on the whole pool: float32, eval mode, eager attention."""


@dataclass(frozen=True)
class Tokenizer(Request["PreTrainedTokenizerBase"]):
    """The tokenizer that made the pool."""


@dataclass(frozen=True)
class QuerySet(Request[Pool]):
    """The query problems with their reference responses; needs no fine-tuning."""


@dataclass(frozen=True)
class QueryAnswers(Request[AnsweredQueries]):
    """The query set with the model's answers before and after fine-tuning."""


@dataclass(frozen=True)
class Features(Request["FeatureTable"]):
    """Token losses and pooled hidden states under the base model, of the pool or the queries."""

    of: Literal["pool", "queries"] = "pool"


@dataclass(frozen=True)
class Decodes(Request[npt.NDArray[np.bool_]]):
    """Whether `k` sampled answers of the base model to each pool question are right, [n, k]."""

    k: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        from harness.experiment.settings import check_decodes  # pydantic takes long to import

        if self.k < 1:
            raise ValueError(f"k is {self.k}; expected at least 1 decode")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected at least 0")
        check_decodes(self.k, self.temperature)


@dataclass(frozen=True)
class FittedCurvature(Request["Curvature"]):
    """The curvature of the pool's loss at the reference model."""

    options: CurvatureOptions = field(default_factory=CurvatureOptions)


@dataclass(frozen=True)
class InfluenceTable(Request["InfluenceScores"]):
    """Influence of every pool example on C and I at the reference model.

    `aggregate`: s is the mean or the sum over queries. `whose` answers count: those after
    fine-tuning, those before with the opposite sign, or the contrast of both. `completion`: for C
    the model's own right answer or the reference one. `decodes`: of several right (wrong) decodes
    of a query, the mean or the sum. `max_queries`: at most so many queries per side for the ranks,
    drawn with `query_seed`. `method`: how s is computed (see `influence_scores`).
    """

    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    aggregate: Literal["mean", "sum"] = "mean"
    whose: Literal["after", "before", "contrast"] = "after"
    completion: Literal["own", "reference"] = "own"
    decodes: Literal["mean", "sum"] = "mean"
    max_queries: int | None = 64
    query_seed: int = 0
    method: Literal["auto", "forward", "ghost", "backward"] = "auto"


@dataclass(frozen=True)
class Trajectory(Request["tuple[Checkpoint, ...]"]):
    """Checkpoints of a training run with the experiment's recipe on part of the pool, by step.

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


@dataclass(frozen=True)
class ChosenBy(Request[tuple[str, ...]]):
    """Ids that another row of the experiment chose at the same fraction with the same seed."""

    row: str
