"""How answers are decoded: greedily or sampled, with a seed for every decode of every prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: `decodes` samples per item, greedy where `temperature` is 0."""

    max_tokens: int
    decodes: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.decodes < 1 or self.temperature < 0:
            raise ValueError(f"{self!r}; expected max_tokens and decodes >= 1, temperature >= 0")
        if self.decodes > 1 and self.temperature == 0:
            raise ValueError(f"{self!r}; expected temperature > 0: greedy decodes are all the same")

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed per decode; the prompt is mixed in, so that items do not share their noise."""
        state = np.random.SeedSequence(self.seed).generate_state(self.decodes)
        return tuple(int(value) for value in state)

    @property
    def options(self) -> dict[str, Any]:
        """lm-eval's generation arguments; nothing is left to a checkpoint's own defaults."""
        chosen: dict[str, Any] = {
            "until": [],
            "max_gen_toks": self.max_tokens,
            "do_sample": self.temperature > 0,
            "temperature": float(self.temperature),
            "repetition_penalty": 1.0,
        }
        if self.temperature > 0:
            chosen |= {"top_p": 1.0, "top_k": 0}
        return chosen


@dataclass(frozen=True)
class Completion:
    """One generated continuation; `ids` end with the end-of-text token where it was generated."""

    text: str
    ids: tuple[int, ...]


def item_seed(seed: int, prompt: Sequence[int]) -> int:
    """Seed of one decode of one prompt, in [0, 2**31)."""
    content = np.asarray([seed, *prompt], dtype="<i8").tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "little") >> 1
