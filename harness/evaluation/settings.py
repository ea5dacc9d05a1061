"""How an engine is set up on this machine, and how it decodes; both are recorded with the answers.

The experiment file says what is measured. What a machine can hold (sequences, memory) is chosen
here from the model and the device, and can be overridden for one run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.evaluation.environment import engine_version

EngineName = Literal["vllm", "hf"]
SEQUENCES = {("vllm", "cpu"): 512, ("vllm", "cuda"): 256, ("hf", "cpu"): 128, ("hf", "cuda"): 32}
"""Decoded together. On a CPU fewer cost more per token and more gain nothing."""
SHRINK = 4
"""How many times fewer sequences are tried after running out of memory."""
CACHE_LIMIT = 4 << 30  # bytes of key-value cache on a CPU
RESERVE = 3 << 29  # bytes of a GPU that are left to CUDA and other processes
MOST = 0.92
"""Of a GPU's memory; graphs and fragments need the rest."""
MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "no available memory for the cache blocks",
)
CONTEXT_WORDS = ("kv cache is needed, which is larger", "max seq len")


@dataclass(frozen=True)
class Limits:
    """What a run overrides: share of a GPU's memory, sequences together, seconds per task."""

    memory: float | None = None
    sequences: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and not 0 < self.memory <= 1:
            raise ValueError(f"engine memory = {self.memory!r}; expected a share in (0, 1]")
        if self.sequences is not None and self.sequences < 1:
            raise ValueError(f"engine sequences = {self.sequences!r}; expected at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"task limit = {self.seconds!r} s; expected more than 0")


@dataclass(frozen=True)
class Settings:
    """One engine's set-up.

    Args:
        name: `vllm` or `hf`.
        max_length: tokens of the longest prompt and its answer.
        threads: processor threads.
        device: `cpu` (float32) or `cuda` (bfloat16).
        sequences: decoded together, at most.
        memory: share of the GPU's memory that vLLM takes; None on a CPU.
        batch_invariant: vLLM's kernels whose results do not depend on what else is in the batch.
        lora_rank: highest rank of adapters to be served; 0 for none.
    """

    name: EngineName
    max_length: int
    threads: int = 1
    device: str = "cpu"
    sequences: int = 0
    memory: float | None = None
    batch_invariant: bool = False
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.batch_invariant and (self.name, self.device) != ("vllm", "cuda"):
            raise ValueError(
                f"batch_invariant on {self.name}, {self.device}; expected vLLM on a GPU, "
                "where alone such kernels exist"
            )
        if not self.sequences:
            object.__setattr__(self, "sequences", SEQUENCES[self.name, self.device])

    @property
    def dtype(self) -> str:
        """Precision of weights and activations."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def fewer(self) -> Settings:
        """The same with fewer sequences together."""
        return replace(self, sequences=max(1, self.sequences // SHRINK))

    def record(self) -> dict[str, Any]:
        """Everything that can change an answer, for the record."""
        eager = self.name == "hf" or self.device == "cpu"
        known = {"version": engine_version(self.name), "dtype": self.dtype, "eager": eager}
        return {**asdict(self), **known}


def gpu_share() -> float:
    """Share of the GPU's memory that an engine can take: what is free but for a reserve."""
    import torch

    free, total = torch.cuda.mem_get_info()
    share: float = min(MOST, (free - RESERVE) / total)
    if share <= 0:
        raise MemoryError(
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU are free; expected more: "
            "another process holds it"
        )
    return share


def cache_bytes(folder: Path, max_length: int, sequences: int) -> int:
    """Bytes of float32 key-value cache for all sequences at full length, up to a limit.

    What no answer uses is never touched (`zeros_when_touched`). At least two sequences of full
    length fit.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * 4 * config["num_hidden_layers"] * width
    per_token *= config.get("num_key_value_heads") or heads
    length = 32 * (-(-max_length // 32) + 1)
    wanted = per_token * length * sequences
    limit = min(CACHE_LIMIT, _available() // 4)
    return int(max(min(wanted, limit), 2 * per_token * length))


def _available() -> int:
    """Bytes of memory that this machine could still give; a huge number where it does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def out_of_memory(error: BaseException) -> bool:
    """Whether fewer sequences could mend `error`."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS)


def context_too_long(error: BaseException) -> bool:
    """Whether `error` says that not even one sequence of full length fits."""
    text = str(error).lower()
    return all(word in text for word in CONTEXT_WORDS)


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
