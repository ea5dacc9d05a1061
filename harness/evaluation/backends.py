"""Language models behind lm-eval: its own vLLM and Hugging Face classes, started and stopped here.

On a CPU a vLLM engine lives in this process, one per checkpoint, many after one another. It changes
the process (thread count, environment, random state, a frozen heap) in ways that would change a
training run started later in the same process: `open_model` undoes all of it.
"""

from __future__ import annotations

import functools
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.environment import (
    generators_kept,
    no_collections,
    quiet,
    swapped,
    vllm_version_answered,
)
from harness.evaluation.settings import Decoding, Settings, cache_bytes, gpu_share, item_seed

UNBATCHED = 1_000_000  # lm-eval's batch size for "all requests at once": vLLM makes its own batches
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Highest ranks of adapters that vLLM can be started for."""
ProgressCallback = Callable[[int, int], None]
"""Called with the number of finished answers and the number of all."""


class SeededDecodes:
    """Mixed into lm-eval's classes: one seed per decode, and a record of the tokens generated.

    lm-eval repeats a request for several decodes and gives every copy the same arguments; with one
    seed all copies would be answered alike.
    """

    seeds: tuple[int | None, ...] = (None,)
    order: int | None = None
    """Seed of the order in which requests are handed over; None for lm-eval's own."""
    on_progress: ProgressCallback | None = None
    lengths: dict[tuple[tuple[int, ...], int | None], tuple[int, bool]]
    """By prompt and seed: tokens generated, and whether the token limit cut them off."""
    total: int = 0
    answered: int = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's, with the seed of its decode in each request."""
        self.lengths = {}
        self.total, self.answered = len(requests), 0
        copies: Counter[int] = Counter()
        seeded = []
        for request in requests:
            prompt, options = request.args
            seed = self.seeds[copies[id(request)]]
            copies[id(request)] += 1
            if seed is not None:
                options = options | {"seed": seed}
            seeded.append(replace(request, arguments=(prompt, options)))
        with _shuffled(self.order):
            answers: list[str] = super().generate_until(seeded, disable_tqdm)  # type: ignore[misc]
        return answers

    def encode(self, prompts: list[str]) -> list[list[int]]:
        """Token ids as lm-eval's class makes them."""
        return [self.tok_encode(prompt) for prompt in prompts]  # type: ignore[attr-defined]


@contextmanager
def _shuffled(order: int | None) -> Iterator[None]:
    """Make lm-eval hand its requests over in a random order, from this seed; None changes nothing.

    lm-eval sorts requests by length and text, so shuffled items alone would change no batch. Its
    own bookkeeping still takes every answer back to its request.
    """
    if order is None:
        yield
        return
    from lm_eval.models.utils import Collator

    sort, rng = Collator._reorder, np.random.default_rng(order)

    def shuffle(collator: Any, requests: Any) -> Iterator[Any]:
        ranks = rng.permutation(len(collator))
        collator._sort_fn = lambda numbered: ranks[numbered[0]]
        yield from sort(collator, requests)

    with swapped(Collator, "_reorder", shuffle):
        yield


class _ProgressBar:
    """Takes the place of vLLM's progress bars and reports how many answers are finished."""

    def __init__(
        self, on_progress: ProgressCallback, iterable: Iterable[Any] = (), total: int = 0, **_: Any
    ) -> None:
        self.on_progress, self.iterable, self.total = on_progress, iterable, total
        self.n = 0
        self.postfix = ""
        self.format_dict = {"elapsed": 1e-9}  # what vLLM divides by for its own display

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def update(self, count: int = 1) -> None:
        """Report that `count` more are finished."""
        self.n += count
        self.on_progress(self.n, self.total)

    def refresh(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Draw nothing."""


@functools.cache
def _vllm_class() -> Any:
    import vllm  # noqa: F401  (before the patch: only lm-eval's question needs another answer)

    with vllm_version_answered():
        from lm_eval.models.vllm_causallms import VLLM

    class Vllm(SeededDecodes, VLLM):  # type: ignore[misc]
        def encode(self, prompts: list[str]) -> list[list[int]]:
            """The same in one call, as generate_until does it."""
            ids: list[list[int]] = self.tok_encode(prompts)
            return ids

        def _model_generate(
            self, requests: Any, generate: bool = False, sampling_params: Any = None
        ) -> Any:
            if not generate:
                return super()._model_generate(requests, generate, sampling_params)
            seeds = [params.seed for params in sampling_params]
            end = self.tokenizer.decode(self.eot_token_id)
            for ids, params in zip(requests, sampling_params, strict=True):
                # Generation stops at the id of the end of text, not at its text.
                params.stop = [text for text in params.stop if text != end]
                if params.seed is not None:
                    params.seed = item_seed(params.seed, ids)
            bar: Any = self.batch_size == "auto"
            if not bar and self.on_progress is not None:
                bar = functools.partial(_ProgressBar, self.on_progress)
            outputs = self.model.generate(
                [{"prompt_token_ids": ids} for ids in requests],
                sampling_params=sampling_params,
                use_tqdm=bar,
                lora_request=self.lora_request,
            )
            for ids, seed, output in zip(requests, seeds, outputs, strict=True):
                [answer] = output.outputs
                self.lengths[tuple(ids), seed] = (
                    len(answer.token_ids),
                    answer.finish_reason == "length",
                )
            return outputs

        def complete(self, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
            """Token ids of every decode of every prompt."""
            from vllm import SamplingParams

            self.lengths = {}
            options = {"max_tokens": decoding.max_tokens, "detokenize": False, **decoding.sampling}
            requests = [prompt for prompt in prompts for _ in decoding.seeds]
            params = [
                SamplingParams(seed=seed, **options) for _ in prompts for seed in decoding.seeds
            ]
            outputs = self._model_generate(requests, True, params)
            return [list(output.outputs[0].token_ids) for output in outputs]

        def close(self) -> None:
            self.model.llm_engine.engine_core.shutdown()
            del self.model

    return Vllm


@functools.cache
def _hf_class() -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    class Hf(SeededDecodes, HFLM):  # type: ignore[misc]
        def _model_generate(
            self, context: Any, max_length: int, stop: list[str], **options: Any
        ) -> Any:
            seed, mask = options.pop("seed", None), options["attention_mask"].bool()
            end = self.eot_token_id
            # Generation stops at the id of the end of text; searching for its text is slow.
            stop = [text for text in stop if text != self.tokenizer.decode(end)]
            with torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(item_seed(seed, context.flatten().tolist()))
                output = super()._model_generate(
                    context, max_length, stop, eos_token_id=end, **options
                )
            generated = output[:, context.shape[1] :].tolist()
            for ids, real, answer in zip(context, mask, generated, strict=True):
                length = len(_until_end(answer, end))
                self.lengths[tuple(ids[real].tolist()), seed] = length, end not in answer
            self.answered += len(context)
            if self.on_progress is not None:
                self.on_progress(self.answered, max(self.total, self.answered))
            return output

        def complete(self, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
            """Token ids of every decode of every prompt, in batches of similar length."""
            self.lengths = {}
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            answers: dict[tuple[int, int | None], list[int]] = {}
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                context, mask = self._left_padded([prompts[i] for i in batch])
                width = context.shape[1]
                for seed in decoding.seeds:
                    output = self._model_generate(
                        context,
                        width + decoding.max_tokens,
                        [],
                        attention_mask=mask,
                        seed=seed,
                        do_sample=decoding.temperature > 0,
                        **decoding.sampling,
                    )
                    for i, ids in zip(batch, output[:, width:].tolist(), strict=True):
                        answers[i, seed] = _until_end(ids, self.eot_token_id)
            return [answers[i, seed] for i in range(len(prompts)) for seed in decoding.seeds]

        def _left_padded(self, prompts: list[list[int]]) -> tuple[Any, Any]:
            """Token ids and attention mask, both [prompts, longest]."""
            width = max(map(len, prompts))
            pad = self.tokenizer.pad_token_id
            ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
            mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
            return torch.tensor(ids).to(self.device), torch.tensor(mask).to(self.device)

        def get_model_info(self) -> dict[str, Any]:
            """Nothing: lm-eval's asks the hub about a checkpoint that is not there."""
            return {}

        def close(self) -> None:
            del self._model

    return Hf


def _until_end(ids: list[int], end: int) -> list[int]:
    """The ids up to and with the first `end`; what follows is padding."""
    return ids[: ids.index(end) + 1] if end in ids else ids


@contextmanager
def open_model(folder: Path, settings: Settings, verbose: bool = False) -> Iterator[Any]:
    """Start an lm-eval model on a checkpoint; at the end the process is as it was before."""
    import torch

    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    before = dict(os.environ)
    changed: dict[str, str] = {}
    model = None
    try:
        try:
            set_threads(settings.threads)
            with quiet(verbose), generators_kept(), no_collections():
                start = _start_hf if settings.name == "hf" else _start_vllm
                model = start(folder, settings, verbose)
        finally:
            changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
            torch.set_num_threads = set_threads  # vLLM puts a function there that only warns
        set_threads(settings.threads)
        yield model
    finally:
        with quiet(verbose), no_collections():
            if model is not None:
                model.close()
            del model
        gc.collect()
        torch.set_num_threads = set_threads
        set_threads(threads)
        for key, value in changed.items():
            if os.environ.get(key) == value:
                del os.environ[key]
                os.environ |= {key: before[key]} if key in before else {}


def _start_hf(folder: Path, settings: Settings, verbose: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # A loaded model is handed over: given a path, lm-eval sets up accelerate for the process.
    dtype = getattr(torch, settings.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(settings.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return _hf_class()(
        pretrained=model,
        tokenizer=tokenizer,
        max_length=settings.max_length,
        batch_size=settings.sequences,
    )


def _start_vllm(folder: Path, settings: Settings, verbose: bool) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # In a process of its own an engine takes 20 s to start, and its weights are out of reach.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_BATCH_INVARIANT"] = "1" if settings.batch_invariant else "0"
    arguments: dict[str, Any] = {
        "pretrained": str(folder),
        "max_model_len": settings.max_length,
        "seed": 0,
        "batch_size": "auto" if verbose else UNBATCHED,
        "disable_log_stats": True,
        "use_tqdm_on_load": verbose,
        "dtype": settings.dtype,
        "max_num_seqs": settings.sequences,
    }
    if settings.lora_rank:
        arguments |= {"enable_lora": True, "max_lora_rank": _max_lora_rank(settings.lora_rank)}
    if settings.device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "block_size": 32,
            # A seeded request whose prompt is cut into chunks makes vLLM rewind its generator,
            # which fails on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, settings.max_length),
            "kv_cache_memory_bytes": cache_bytes(folder, settings.max_length, settings.sequences),
        }
    else:
        arguments["gpu_memory_utilization"] = settings.memory or gpu_share()
    return _vllm_class()(**arguments)


def _max_lora_rank(rank: int) -> int:
    """The smallest of `LORA_RANKS` that holds `rank`."""
    if rank > LORA_RANKS[-1]:
        raise ValueError(
            f"LoRA rank {rank}; expected at most {LORA_RANKS[-1]}, the highest that vLLM serves"
        )
    return next(room for room in LORA_RANKS if rank <= room)
