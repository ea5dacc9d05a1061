"""Every kind of stage of a run: what decides its bytes, who builds it, what it is expected to cost.

Builders stand in `builders`, `selection_builders` and `answer_builders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.data.testbed import BaseSpec
from harness.experiment.settings import DECODING, AnswerKind, DataConfig, TrainingRecipe
from harness.experiment.stage import Cost, Recipe
from harness.influence.options import CurvatureOptions
from harness.selection.requests import InfluenceTable, Trajectory

TRAINING_BYTES, LORA_BYTES = 16, 6
"""Memory per parameter: float32 weights, gradients and two AdamW moments; frozen with LoRA."""
WEIGHT_BYTES = 4

BUILD = "harness.running.builders:"
SELECT = "harness.running.selection_builders:"
ANSWER = "harness.running.answer_builders:"


@dataclass(frozen=True)
class TokenizerRecipe(Recipe):
    """The testbed's tokenizer."""

    kind = "tokenizer"
    builder = BUILD + "tokenizer"
    testbed: str = "chain"


@dataclass(frozen=True)
class BaseModelRecipe(Recipe):
    """A base model of the testbed, pre-trained from nothing."""

    kind = "base"
    builder = BUILD + "base_model"
    seconds = 80.0
    spec: BaseSpec

    @property
    def worker_threads(self) -> int:
        """Threads of the pre-training."""
        return self.spec.threads


@dataclass(frozen=True)
class LocalModelRecipe(Recipe):
    """A model folder of the user, known by the hash of its files."""

    kind = "model"
    external = True
    digest: str


@dataclass(frozen=True)
class HubModelRecipe(Recipe):
    """A model of the hub at one commit."""

    kind = "model"
    external = True
    name: str
    revision: str


@dataclass(frozen=True)
class DataRecipe(Recipe):
    """A data set, tokenised.

    `file`: hash of a local one. `without_overlaps`: without the rows that other data sets hold too.
    """

    config: DataConfig
    max_tokens: int
    file: str | None = None
    without_overlaps: bool = False

    def inputs(self) -> dict[str, Any]:
        """What decides the rows: not where a file lies, nor how queries are decoded."""
        excluded = {"dataset", "overlap", *DECODING}
        values = self.config.model_dump(mode="json", exclude=excluded, exclude_none=True)
        source = {"dataset": self.config.dataset} if self.file is None else {"file": self.file}
        if self.without_overlaps:
            source["overlap"] = "drop"
        return {**source, **values, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class PoolRecipe(DataRecipe):
    """The pool that selectors choose from."""

    kind = "pool"
    builder = BUILD + "pool"


@dataclass(frozen=True)
class QuerySetRecipe(DataRecipe):
    """The query set that influence is measured on."""

    kind = "queryset"
    builder = BUILD + "query_set"


@dataclass(frozen=True)
class BuiltinItemsRecipe(Recipe):
    """Items of a built-in task."""

    kind = "items"
    builder = BUILD + "builtin_items"
    testbed: str
    items: int
    seed: int


@dataclass(frozen=True)
class BenchmarkItemsRecipe(Recipe):
    """Items of a public benchmark, from the hub or (`file`) a local copy."""

    kind = "items"
    builder = BUILD + "benchmark_items"
    benchmark: str
    yaml: str
    template: str | None
    file: str | None


@dataclass(frozen=True)
class FileItemsRecipe(Recipe):
    """Items of a task over a file of the user."""

    kind = "items"
    version = 2
    builder = BUILD + "file_items"
    file: str
    prompt: str
    answer: str
    id: str | None
    answer_kind: str | None
    template: str | None


@dataclass(frozen=True)
class DisjointRecipe(Recipe):
    """Proof that the testbed's pool, query set and tasks share no problem."""

    kind = "proof"
    builder = BUILD + "disjoint"


@dataclass(frozen=True)
class OverlapRecipe(Recipe):
    """A comparison of the questions of two data sets."""

    kind = "overlap"
    builder = "harness.running.overlap:build"
    side: str
    words: int
    share: float
    stock: int


@dataclass(frozen=True)
class EngineChoice:
    """The engine that gives answers."""

    name: Literal["vllm", "hf"]
    version: str
    batch_invariant: bool | None = None


@dataclass(frozen=True)
class AnswersRecipe(Recipe):
    """The query set answered by a model; both models draw with the same seeds."""

    kind = "answers"
    builder = ANSWER + "answers"
    needs_engine = True
    seconds = 5.0
    max_tokens: int
    engine: EngineChoice
    decodes: int = 1
    temperature: float = 0.0


@dataclass(frozen=True)
class SamplesRecipe(Recipe):
    """One task answered by a checkpoint; `seed` only where answers are sampled."""

    kind = "samples"
    version = 2
    builder = ANSWER + "samples"
    needs_engine = True
    seconds = 7.0
    task: str
    yaml: str
    max_tokens: int
    decodes: int
    temperature: float
    engine: EngineChoice
    threads: int
    seed: int | None = None
    answer_kind: AnswerKind = "plain"
    grader: int | None = None


@dataclass(frozen=True)
class FeaturesRecipe(Recipe):
    """Token losses and hidden states of the base model."""

    kind = "features"
    builder = SELECT + "features"


@dataclass(frozen=True)
class DecodesRecipe(Recipe):
    """Sampled answers of the base model to the pool's questions, graded."""

    kind = "decodes"
    builder = ANSWER + "decodes"
    needs_engine = True
    seconds = 15.0
    k: int
    temperature: float
    engine: EngineChoice


@dataclass(frozen=True)
class CurvatureRecipe(Recipe):
    """A curvature of the pool's loss at the reference model."""

    kind = "curvature"
    builder = SELECT + "curvature"
    seconds = 10.0
    options: CurvatureOptions


@dataclass(frozen=True)
class InfluenceRecipe(Recipe):
    """Influence of the pool on C and I, with a curvature; `rule` says when a query is right."""

    kind = "influence"
    version = 2
    builder = SELECT + "influence"
    seconds = 10.0
    request: InfluenceTable
    rule: str = "majority"


@dataclass(frozen=True)
class TrajectoryRecipe(Recipe):
    """Checkpoints on the way of a training run."""

    kind = "trajectory"
    builder = BUILD + "trajectory"
    seconds = 8.0
    train: TrainingRecipe
    run: Trajectory
    seed: int

    @property
    def worker_threads(self) -> int:
        """Threads of the training."""
        return self.train.threads

    def cost(self, parameters: int | None) -> Cost:
        """As a training run, with every checkpoint and, where kept, its moments."""
        copies = self.run.checkpoints * (3 if self.run.moments else 1)
        return _training_cost(self.train, self.seconds, parameters, copies)


@dataclass(frozen=True)
class SelectionRecipe(Recipe):
    """A selector with its parameters and code; `seed` and `row` only where it is stochastic."""

    selector: str
    params: Mapping[str, Any]
    code: str
    seed: int | None = None
    row: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class ScoresRecipe(SelectionRecipe):
    """Scores of every pool example by a score selector."""

    kind = "scores"
    builder = SELECT + "scores"


@dataclass(frozen=True)
class SetRecipe(SelectionRecipe):
    """A subset chosen as a whole by a selector that gives no scores."""

    kind = "subset"
    builder = SELECT + "chosen_set"
    fraction: float = field(kw_only=True)


@dataclass(frozen=True)
class TopRecipe(Recipe):
    """The subset with the highest scores."""

    kind = "subset"
    builder = SELECT + "top"
    fraction: float


@dataclass(frozen=True)
class ControlRecipe(Recipe):
    """The subset of a control: everything, or by the testbed's planted quality."""

    kind = "subset"
    builder = SELECT + "control"
    control: Literal["full", "oracle", "anti-oracle"]
    fraction: float
    seed: int | None = None


@dataclass(frozen=True)
class CheckpointRecipe(Recipe):
    """The base model fine-tuned on a subset."""

    kind = "checkpoint"
    builder = BUILD + "checkpoint"
    seconds = 8.0
    train: TrainingRecipe
    seed: int

    @property
    def worker_threads(self) -> int:
        """Threads of the training."""
        return self.train.threads

    def cost(self, parameters: int | None) -> Cost:
        """Memory of weights, gradients and moments (activations apart), disk of one copy."""
        return _training_cost(self.train, self.seconds, parameters, 1)


def _training_cost(
    recipe: TrainingRecipe, seconds: float, parameters: int | None, copies: int
) -> Cost:
    if parameters is None:
        return Cost(seconds)
    per_parameter = LORA_BYTES if recipe.method == "lora" else TRAINING_BYTES
    return Cost(seconds, parameters * per_parameter, parameters * WEIGHT_BYTES * copies)
