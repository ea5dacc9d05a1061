"""The tables of an experiment file: frozen, checked, unknown keys refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

TESTBED_CONTROLS = ("oracle", "anti-oracle")
"""Rows that exist where the quality of each example is known."""
TESTBED = "testbed:"
DECODING = frozenset({"decodes", "temperature", "rule"})
"""Settings of the query set that do not change its problems."""

AnswerKind = Literal["plain", "number", "math", "choice"]
"""How answers are graded: as text and exact numbers, as a number, as mathematics, by letter."""

Overlap = Literal["refuse", "drop", "keep"]
"""What becomes of rows that overlap another data set; `refuse` where an experiment says nothing."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Model(BaseModel):
    """Frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Model):
    """A data set: `testbed:NAME`, a .jsonl or .parquet file, or a hub name with its revision."""

    dataset: str
    revision: str | None = None
    split: str = "train"
    prompt: str = "prompt"
    response: str = "response"
    answer: str | None = None
    id: str | None = None
    template: str | None = None
    size: Count | None = None
    seed: int = 0
    kind: AnswerKind | None = None

    @property
    def testbed(self) -> str | None:
        """Name of the built-in data set, or None."""
        return self.dataset.removeprefix(TESTBED) if self.dataset.startswith(TESTBED) else None

    @property
    def local(self) -> bool:
        """Whether `dataset` is a file."""
        return self.dataset.endswith((".jsonl", ".parquet"))

    @model_validator(mode="after")
    def _revision(self) -> DataConfig:
        hub = not self.local and self.testbed is None
        if hub and not re.fullmatch(r"[0-9a-f]{7,40}", self.revision or ""):
            raise ValueError(
                f"revision = {self.revision!r} for hub data set {self.dataset!r}; expected the "
                "hash of a commit (or a path ending in .jsonl or .parquet, or 'testbed:chain')"
            )
        if not hub and self.revision is not None:
            raise ValueError(f"revision = {self.revision!r}; expected none for {self.dataset!r}")
        return self


class ComparedConfig(DataConfig):
    """A data set that is compared with the others before anything is trained."""

    overlap: Overlap | None = None

    @model_validator(mode="after")
    def _comparable(self) -> ComparedConfig:
        if self.overlap is not None and self.testbed is not None:
            raise ValueError(
                f"overlap = {self.overlap!r} for {self.dataset!r}; expected none, since every run "
                "proves that the testbed's sets share no problem"
            )
        return self


class PoolConfig(ComparedConfig):
    """The pool that selectors choose from."""

    errors: Literal["systematic", "random", "none"] = "systematic"
    invalid: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _known(self) -> PoolConfig:
        if self.testbed not in (None, "chain"):
            raise ValueError(f"dataset = {self.dataset!r}; expected 'testbed:chain'")
        return self


def check_decodes(decodes: int, temperature: float) -> None:
    """Refuse several decodes at temperature 0."""
    if decodes > 1 and temperature == 0:
        raise ValueError(
            f"decodes = {decodes} with temperature = 0; expected a temperature above 0, "
            "since greedy decodes are all the same"
        )


class QueryConfig(ComparedConfig):
    """The query set: what influence is measured on; never an evaluation task.

    Each query is answered `decodes` times at `temperature`, before and after fine-tuning; `rule`
    says when it counts as right: by a majority of its decodes (a tie is wrong), any or all of them.
    """

    decodes: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 0.0
    rule: Literal["majority", "any", "all"] = "majority"

    @model_validator(mode="after")
    def _decoding(self) -> QueryConfig:
        check_decodes(self.decodes, self.temperature)
        return self

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are decoded; empty for one greedy answer."""
        if self.decodes == 1 and self.temperature == 0:
            return {}
        return {"decodes": self.decodes, "temperature": self.temperature}

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without decoding where that is one greedy answer: protocols written so far stay valid."""
        dumped: dict[str, Any] = handler(self)
        if not self.decoding:
            for name in DECODING:
                dumped.pop(name, None)
        return dumped


class ModelConfig(Model):
    """The base model: `testbed:NAME`, a local folder, or a hub name with its revision."""

    base: str = "testbed:small"
    revision: str | None = None
    seed: int = 0


class TrainingRecipe(Model):
    """How every subset of an experiment is trained; part of each checkpoint's key.

    `budget` is what subsets of different content have in common: `examples` sees every example
    `epochs` times, `tokens` stops after `tokens` tokens (prompt and response), `steps` after
    `steps` batches. `micro_batch` splits a batch to save memory. In `bfloat16` the forward and
    backward passes run under autocast, full fine-tuning keeps float32 master weights and the
    checkpoint is saved in bfloat16.
    """

    method: Literal["full", "lora"] = "full"
    budget: Literal["examples", "tokens", "steps"] = "examples"
    epochs: Positive = 3.0
    steps: Count | None = None
    tokens: Count | None = None
    batch_size: Count = 32
    micro_batch: Count | None = None
    gradient_checkpointing: bool = False
    learning_rate: Positive
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    max_tokens: Count = 2048
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Count = 1
    lora_rank: Count = 16
    lora_alpha: Count = 32

    @model_validator(mode="after")
    def _budget(self) -> TrainingRecipe:
        for name in ("steps", "tokens"):
            given = getattr(self, name) is not None
            if given != (self.budget == name):
                raise ValueError(
                    f"budget = {self.budget!r} with {name} = {getattr(self, name)!r}; expected "
                    f"{name} exactly where budget = {name!r}"
                )
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} with batch_size = {self.batch_size}; expected "
                "a divisor of the batch size"
            )
        return self

    def changed(self, **values: Any) -> TrainingRecipe:
        """The recipe with other values, checked like any."""
        return TrainingRecipe(**{**self.model_dump(), **values})


class EvaluateConfig(Model):
    """What is measured, and how answers are decoded.

    `max_tokens` holds for every task that has no limit of its own under [[task]]; without it a
    benchmark has the limit of its task file.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    items: Count = 300
    seed: int = 0
    decodes: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Count | None = None
    engine: Literal["auto", "vllm", "hf"] = "auto"
    batch_invariant: bool | None = None

    @model_validator(mode="after")
    def _decoding(self) -> EvaluateConfig:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks = {list(self.tasks)!r}; expected each task once")
        check_decodes(self.decodes, self.temperature)
        return self


class TaskConfig(Model):
    """An evaluation task over a local file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    data: str
    prompt: str = "prompt"
    answer: str = "answer"
    id: str | None = None
    kind: AnswerKind | None = None
    max_tokens: Count | None = None


class GridConfig(Model):
    """Fractions of the pool and training seeds."""

    fractions: tuple[Fraction, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    @field_validator("fractions", "seeds")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{list(values)!r} holds a value twice; expected distinct ones")
        return values


class SelectorConfig(Model):
    """A selector and the parameter sets that make its rows."""

    name: str
    rows: tuple[dict[str, Any], ...] = ({},)


class ProtocolConfig(Model):
    """The analysis, fixed before the first record."""

    reference: str = "random"
    primary: Literal["mean accuracy"] = "mean accuracy"
    correction: Literal["holm"] = "holm"
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05


class ArmConfig(Model):
    """The same experiment on another variant of the pool, reported beside the main one."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    pool: dict[str, Any]
    fractions: tuple[Fraction, ...] | None = None


class Row(Model):
    """One line of the table: a selector with its parameters, or a control."""

    row: str
    selector: str | None = None
    params: dict[str, Any] = {}
