"""Language models behind lm-eval: its own vLLM and Hugging Face classes, started and stopped here.

On a CPU a vLLM engine lives in this process, one per checkpoint, many after one another. It would
leave traces (thread count, environment, random state, a frozen heap) that change a training run
started later in the same process: `open_model` takes them back.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.traces import (
    generators_kept,
    held_back,
    one_collection,
    quiet,
    vllm_version_answered,
)

EngineName = Literal["vllm", "hf"]
WHOLE = 1_000_000  # batch size that means "all at once": vLLM makes its own batches
SEQUENCES = 512  # decoded together by vLLM on a CPU; fewer cost more per token, more gain nothing
HF_BATCH = 128
CACHE_LIMIT = 4 << 30  # bytes of key-value cache on a CPU


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


class Decodes:
    """Mixed into lm-eval's classes: a seed for each decode, and a record of tokens generated.

    lm-eval repeats a request for several decodes and gives every copy the same arguments; with one
    seed they would all be the same answer.
    """

    seeds: tuple[int, ...] = ()
    lengths: dict[tuple[tuple[int, ...], int | None], int]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's, with the seed of its decode in each request."""
        self.lengths = {}
        copies: Counter[int] = Counter()
        seeded = []
        for request in requests:
            prompt, options = request.args
            if self.seeds:
                options = options | {"seed": self.seeds[copies[id(request)]]}
                copies[id(request)] += 1
            seeded.append(replace(request, arguments=(prompt, options)))
        answers: list[str] = super().generate_until(seeded, disable_tqdm)  # type: ignore[misc]
        return answers


@functools.cache
def _vllm_class() -> Any:
    import vllm  # noqa: F401  (first and outside the trap: only lm-eval needs the answer)

    with vllm_version_answered():
        from lm_eval.models.vllm_causallms import VLLM

    class Vllm(Decodes, VLLM):  # type: ignore[misc]
        def _model_generate(
            self, requests: Any, generate: bool = False, sampling_params: Any = None
        ) -> Any:
            if not generate:
                return super()._model_generate(requests, generate, sampling_params)
            seeds = [params.seed for params in sampling_params]
            for ids, params in zip(requests, sampling_params, strict=True):
                if params.seed is not None:
                    params.seed = item_seed(params.seed, ids)
            outputs = super()._model_generate(requests, generate, sampling_params)
            for ids, seed, output in zip(requests, seeds, outputs, strict=True):
                self.lengths[tuple(ids), seed] = len(output.outputs[0].token_ids)
            return outputs

        def complete(self, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
            """Token ids of one completion per prompt, each with the seed of the next decode."""
            from vllm import SamplingParams

            self.lengths = {}
            options = dict(decoding.options, max_tokens=decoding.max_tokens, detokenize=False)
            for name in ("until", "max_gen_toks", "do_sample"):
                del options[name]
            seeds = decoding.seeds if decoding.temperature > 0 else (None,)
            requests = [prompt for prompt in prompts for _ in seeds]
            chosen = [SamplingParams(seed=seed, **options) for _ in prompts for seed in seeds]
            outputs = self._model_generate(requests, True, chosen)
            return [list(output.outputs[0].token_ids) for output in outputs]

        def close(self) -> None:
            self.model.llm_engine.engine_core.shutdown()
            del self.model

    return Vllm


@functools.cache
def _hf_class() -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    class Hf(Decodes, HFLM):  # type: ignore[misc]
        def _model_generate(
            self, context: Any, max_length: int, stop: list[str], **options: Any
        ) -> Any:
            seed, mask = options.pop("seed", None), options["attention_mask"].bool()
            end = self.eot_token_id
            # The end of text is stopped at by its id; looking for its text in each step is slow.
            stop = [text for text in stop if text != self.tokenizer.decode(end)]
            with torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(item_seed(seed, context.flatten().tolist()))
                output = super()._model_generate(
                    context, max_length, stop, eos_token_id=end, **options
                )
            width = context.shape[1]
            for ids, real, made in zip(context, mask, output[:, width:].tolist(), strict=True):
                self.lengths[tuple(ids[real].tolist()), seed] = len(until_end(made, end))
            return output

        def complete(self, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
            """Token ids of one completion per prompt and decode, sorted into batches by length."""
            self.lengths = {}
            options = decoding.options
            for name in ("until", "max_gen_toks"):
                del options[name]
            seeds = decoding.seeds if decoding.temperature > 0 else (None,)
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            made: dict[tuple[int, int | None], list[int]] = {}
            for start in range(0, len(order), self.batch_size):
                chunk = order[start : start + self.batch_size]
                context, mask = self._left_padded([prompts[i] for i in chunk])
                width = context.shape[1]
                for seed in seeds:
                    output = self._model_generate(
                        context,
                        width + decoding.max_tokens,
                        [],
                        attention_mask=mask,
                        seed=seed,
                        **options,
                    )
                    for i, ids in zip(chunk, output[:, width:].tolist(), strict=True):
                        made[i, seed] = until_end(ids, self.eot_token_id)
            return [made[i, seed] for i in range(len(prompts)) for seed in seeds]

        def _left_padded(self, prompts: list[list[int]]) -> tuple[Any, Any]:
            width = max(map(len, prompts))
            pad = self.tokenizer.pad_token_id
            context = torch.full((len(prompts), width), pad, dtype=torch.long)
            mask = torch.zeros_like(context)
            for row, ids in enumerate(prompts):
                context[row, width - len(ids) :] = torch.tensor(ids)
                mask[row, width - len(ids) :] = 1
            return context.to(self.device), mask.to(self.device)

        def get_model_info(self) -> dict[str, Any]:
            """Nothing: lm-eval's asks the hub about the checkpoint, in vain."""
            return {}

        def close(self) -> None:
            del self._model

    return Hf


def until_end(ids: list[int], end: int) -> list[int]:
    """The ids up to and with the first `end`; what follows is padding."""
    return ids[: ids.index(end) + 1] if end in ids else ids


@contextmanager
def open_model(
    folder: Path,
    name: EngineName,
    max_length: int,
    threads: int,
    device: str,
    memory: float,
    verbose: bool,
) -> Iterator[Any]:
    """Start an lm-eval model on a checkpoint; its traces in this process are removed at the end."""
    import torch

    count = torch.get_num_threads()
    set_threads = torch.set_num_threads
    before = dict(os.environ)
    if name == "vllm" and device == "cpu":
        # Read by vLLM when it starts: with its own process an engine takes 20 s to start.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    changed: dict[str, str | None] = {}
    model = None
    try:
        set_threads(threads)
        with quiet(verbose), generators_kept(), held_back(verbose):
            if name == "hf":
                model = _start_hf(folder, max_length, device)
            else:
                model = _start_vllm(folder, max_length, device, memory, verbose)
        changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
        # vLLM replaces this function by one that only warns.
        torch.set_num_threads = set_threads
        set_threads(threads)
        yield model
    finally:
        with quiet(verbose), one_collection(start=False):
            if model is not None:
                model.close()
            del model
        torch.set_num_threads = set_threads
        set_threads(count)
        for key, value in changed.items():
            if os.environ.get(key) == value:
                _restore(key, before.get(key))


def _restore(key: str, value: str | None) -> None:
    if value is None:
        del os.environ[key]
    else:
        os.environ[key] = value


def _start_hf(folder: Path, max_length: int, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    # A loaded model is handed over: given a path, lm-eval sets up accelerate for the process.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return _hf_class()(
        pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=HF_BATCH
    )


def _start_vllm(folder: Path, max_length: int, device: str, memory: float, verbose: bool) -> Any:
    arguments: dict[str, Any] = {
        "pretrained": str(folder),
        "max_model_len": max_length,
        "seed": 0,
        "batch_size": "auto" if verbose else WHOLE,
        "disable_log_stats": True,
        "use_tqdm_on_load": verbose,
    }
    if device != "cpu":
        arguments |= {"dtype": "bfloat16", "gpu_memory_utilization": memory}
        return _vllm_class()(**arguments)
    arguments |= {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "block_size": 32,
        "max_num_seqs": SEQUENCES,
        # A seeded request whose prompt is cut into chunks makes vLLM rewind its generator, which
        # on a CPU fails.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, max_length),
        "kv_cache_memory_bytes": cache_bytes(folder, max_length),
    }
    build = _vllm_class()
    with one_collection(start=True):
        return build(**arguments)


def cache_bytes(folder: Path, max_length: int) -> int:
    """Bytes of float32 key-value cache for all sequences at full length, up to a limit.

    vLLM fills the cache with zeros when it starts, which for a gibibyte takes longer than the rest
    of the start. At least two sequences of full length fit.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * 4 * config["num_hidden_layers"] * width
    per_token *= config.get("num_key_value_heads") or heads
    length = 32 * (-(-max_length // 32) + 1)
    wanted = per_token * length * SEQUENCES
    return int(max(min(wanted, CACHE_LIMIT), 2 * per_token * length))
