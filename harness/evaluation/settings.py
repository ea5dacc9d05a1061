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
from typing import Any

import numpy as np

from harness.evaluation.environment import EngineName, engine_version
from harness.experiment.settings import check_decodes

SEQUENCES = {("vllm", "cpu"): 512, ("vllm", "cuda"): 256, ("hf", "cpu"): 128, ("hf", "cuda"): 32}
"""Default of sequences decoded at once. On a CPU fewer cost more per token, more gain nothing."""
SHRINK = 4
"""After running out of memory this many times fewer sequences are tried."""
CACHE_LIMIT = 4 << 30  # bytes of key-value cache on a CPU
RESERVE = 3 << 29  # bytes of a GPU left to CUDA and other processes
MAX_SHARE = 0.92
"""Of a GPU's memory; graphs and fragmentation need the rest."""
MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "no available memory for the cache blocks",
)
CONTEXT_WORDS = ("kv cache is needed, which is larger", "max seq len")


@dataclass(frozen=True)
class Limits:
    """What a run overrides: share of a GPU's memory, sequences at once, seconds per task."""

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
        sequences: decoded at once, at most.
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
                "which alone has such kernels"
            )
        if not self.sequences:
            object.__setattr__(self, "sequences", SEQUENCES[self.name, self.device])

    @property
    def dtype(self) -> str:
        """Precision of weights and activations."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def fewer(self) -> Settings:
        """The same with fewer sequences at once."""
        return replace(self, sequences=max(1, self.sequences // SHRINK))

    def record(self) -> dict[str, Any]:
        """Everything that can change an answer, for the record."""
        eager = self.name == "hf" or self.device == "cpu"
        version = engine_version(self.name)
        return {**asdict(self), "version": version, "dtype": self.dtype, "eager": eager}


def gpu_share() -> float:
    """Share of the GPU's memory that an engine can take: what is free but for a reserve."""
    import torch

    free, total = torch.cuda.mem_get_info()
    share: float = min(MAX_SHARE, (free - RESERVE) / total)
    if share <= 0:
        raise MemoryError(
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU are free; expected more: "
            "another process holds it"
        )
    return share


def cache_bytes(folder: Path, max_length: int, sequences: int) -> int:
    """Bytes of float32 key-value cache for all sequences at full length, up to a limit.

    At least two sequences of full length fit.
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
    """Bytes of memory that this machine can still give; all it has where it does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        facts = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
        return int(facts["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def out_of_memory(error: BaseException) -> bool:
    """Whether fewer sequences could avoid `error`."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS)


def context_too_long(error: BaseException) -> bool:
    """Whether `error` says that not even one sequence of full length fits."""
    text = str(error).lower()
    return all(word in text for word in CONTEXT_WORDS)


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: `decodes` per prompt, sampled; greedily where `temperature` is 0."""

    max_tokens: int
    decodes: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.decodes < 1 or self.temperature < 0:
            raise ValueError(f"{self!r}; expected max_tokens and decodes >= 1, temperature >= 0")
        check_decodes(self.decodes, self.temperature)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """One seed per decode, to be mixed with the prompt (`item_seed`); (None,) for greedy."""
        if self.temperature == 0:
            return (None,)
        state = np.random.SeedSequence(self.seed).generate_state(self.decodes)
        return tuple(int(value) for value in state)

    @property
    def sampling(self) -> dict[str, float]:
        """How tokens are drawn; nothing is left to a checkpoint's own defaults."""
        chosen = {"temperature": float(self.temperature), "repetition_penalty": 1.0}
        return chosen | ({"top_p": 1.0, "top_k": 0} if self.temperature > 0 else {})

    def lm_eval_options(self, max_tokens: int) -> dict[str, Any]:
        """lm-eval's generation arguments, with the token limit of a task."""
        limits = {"until": [], "max_gen_toks": max_tokens, "do_sample": self.temperature > 0}
        return {**limits, **self.sampling}


@dataclass(frozen=True)
class Completion:
    """One generated continuation; `ids` end with the end-of-text token where it was generated."""

    text: str
    ids: tuple[int, ...]


def item_seed(seed: int, prompt: Sequence[int]) -> int:
    """Seed of one decode of one prompt, in [0, 2**31)."""
    content = np.asarray([seed, *prompt], dtype="<i8").tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "little") >> 1
