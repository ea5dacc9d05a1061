"""The shared training recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """How every subset of an experiment is trained; part of each checkpoint's key.

    `budget` is what subsets of different content have in common: `examples` sees every example
    `epochs` times, `tokens` stops after `tokens` tokens (prompt and response), `steps` after
    `steps` batches. `micro_batch` splits a batch to save memory. In `bfloat16` the forward and
    backward passes run under autocast, full fine-tuning keeps float32 master weights and the
    checkpoint is saved in bfloat16.
    """

    learning_rate: float
    max_tokens: int
    method: Literal["full", "lora"] = "full"
    epochs: float = 3.0
    budget: Literal["examples", "tokens", "steps"] = "examples"
    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    gradient_checkpointing: bool = False
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    lora_rank: int = 16
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        choices = {
            "method": ("full", "lora"),
            "budget": ("examples", "tokens", "steps"),
            "schedule": ("linear", "cosine", "constant"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"recipe {name} is {getattr(self, name)!r}; expected {allowed}")
        sizes = ("learning_rate", "max_tokens", "epochs", "batch_size", "threads", "lora_rank")
        for name in sizes:
            if not getattr(self, name) > 0:
                raise ValueError(f"recipe {name} is {getattr(self, name)!r}; expected more than 0")
        if self.micro_batch is not None and (
            self.micro_batch < 1 or self.batch_size % self.micro_batch
        ):
            raise ValueError(
                f"recipe micro_batch is {self.micro_batch!r}; "
                f"expected a divisor of batch_size {self.batch_size}"
            )
        for name in ("steps", "tokens"):
            value = getattr(self, name)
            if (self.budget == name) != (value is not None) or (value is not None and value < 1):
                raise ValueError(
                    f"recipe {name} is {value!r} with budget {self.budget!r}; "
                    f'expected a positive number with budget = "{name}" and none otherwise'
                )
