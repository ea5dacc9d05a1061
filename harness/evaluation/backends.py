"""Language models behind lm-eval: its own vLLM and Hugging Face classes, started and stopped here.

On a CPU a vLLM engine lives in this process, one per checkpoint, many after one another. It would
leave traces (thread count, environment, random state, a frozen heap) that change a training run
started later in the same process: `open_model` takes them back.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.patches import (
    generators_kept,
    held_back,
    kernels_once,
    one_collection,
    quiet,
    swapped,
    vllm_version_answered,
    zeros_when_touched,
)
from harness.evaluation.settings import Decoding, Settings, cache_bytes, gpu_share, item_seed

WHOLE = 1_000_000  # batch size that means "all at once": vLLM makes its own batches
ProgressCallback = Callable[[int, int], None]
"""Called with the number of answers that are finished and their number in all."""


class Decodes:
    """Mixed into lm-eval's classes: a seed for each decode, and a record of tokens generated.

    lm-eval repeats a request for several decodes and gives every copy the same arguments; with one
    seed they would all be the same answer.
    """

    seeds: tuple[int, ...] = ()
    order: int | None = None
    """Seed of the order in which requests are handed over; None for lm-eval's own."""
    on_progress: ProgressCallback | None = None
    lengths: dict[tuple[tuple[int, ...], int | None], tuple[int, bool]]
    """By prompt and seed: tokens generated, and whether the limit of tokens cut them off."""
    asked: int = 0
    answered: int = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's, with the seed of its decode in each request."""
        self.lengths = {}
        self.asked, self.answered = len(requests), 0
        copies: Counter[int] = Counter()
        seeded = []
        for request in requests:
            prompt, options = request.args
            if self.seeds:
                options = options | {"seed": self.seeds[copies[id(request)]]}
                copies[id(request)] += 1
            seeded.append(replace(request, arguments=(prompt, options)))
        with _shuffled(self.order):
            answers: list[str] = super().generate_until(seeded, disable_tqdm)  # type: ignore[misc]
        return answers

    def encode(self, prompts: list[str]) -> list[list[int]]:
        """Token ids as lm-eval's class makes them."""
        return [self.tok_encode(prompt) for prompt in prompts]  # type: ignore[attr-defined]


@contextmanager
def _shuffled(order: int | None) -> Iterator[None]:
    """Let lm-eval hand its requests over in a random order, from this seed; None changes nothing.

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


class _Bar:
    """Stands for vLLM's progress bars and tells how many of its answers are finished."""

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
        """Some more are finished."""
        self.n += count
        self.on_progress(self.n, self.total)

    def refresh(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is drawn."""


@functools.cache
def _vllm_class() -> Any:
    import vllm  # noqa: F401  (first and outside the trap: only lm-eval needs the answer)

    with vllm_version_answered():
        from lm_eval.models.vllm_causallms import VLLM

    class Vllm(Decodes, VLLM):  # type: ignore[misc]
        def encode(self, prompts: list[str]) -> list[list[int]]:
            """The same in one call, as generate_until does it."""
            made: list[list[int]] = self.tok_encode(prompts)
            return made

        def _model_generate(
            self, requests: Any, generate: bool = False, sampling_params: Any = None
        ) -> Any:
            if not generate:
                return super()._model_generate(requests, generate, sampling_params)
            seeds = [params.seed for params in sampling_params]
            end = self.tokenizer.decode(self.eot_token_id)
            for ids, params in zip(requests, sampling_params, strict=True):
                # The end of text is stopped at by its id; looking for its text costs at each token.
                params.stop = [text for text in params.stop if text != end]
                if params.seed is not None:
                    params.seed = item_seed(params.seed, ids)
            outputs = self.model.generate(
                [{"prompt_token_ids": ids} for ids in requests],
                sampling_params=sampling_params,
                use_tqdm=self.batch_size == "auto" or self._bar(),
                lora_request=self.lora_request,
            )
            for ids, seed, output in zip(requests, seeds, outputs, strict=True):
                made = output.outputs[0]
                cut = made.finish_reason == "length"
                self.lengths[tuple(ids), seed] = len(made.token_ids), cut
            return outputs

        def _bar(self) -> Any:
            return False if self.on_progress is None else functools.partial(_Bar, self.on_progress)

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
                length = len(until_end(made, end))
                self.lengths[tuple(ids[real].tolist()), seed] = length, end not in made
            self.answered += len(context)
            if self.on_progress is not None:
                self.on_progress(self.answered, max(self.asked, self.answered))
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
def open_model(folder: Path, settings: Settings, verbose: bool = False) -> Iterator[Any]:
    """Start an lm-eval model on a checkpoint; its traces in this process are removed at the end."""
    import torch

    count = torch.get_num_threads()
    set_threads = torch.set_num_threads
    before = dict(os.environ)
    _set_environment(settings)
    changed: dict[str, str] = {}
    model = None
    try:
        set_threads(settings.threads)
        try:
            with quiet(verbose), generators_kept(), held_back(verbose):
                start = _start_hf if settings.name == "hf" else _start_vllm
                model = start(folder, settings, verbose)
        finally:
            changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
        # vLLM replaces this function by one that only warns.
        torch.set_num_threads = set_threads
        set_threads(settings.threads)
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


def _set_environment(settings: Settings) -> None:
    """What vLLM reads from the environment when it starts."""
    if settings.name == "vllm":
        # With its own process an engine takes 20 s to start, and its weights are out of reach.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_BATCH_INVARIANT"] = "1" if settings.batch_invariant else "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _restore(key: str, value: str | None) -> None:
    if value is None:
        del os.environ[key]
    else:
        os.environ[key] = value


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
    arguments: dict[str, Any] = {
        "pretrained": str(folder),
        "max_model_len": settings.max_length,
        "seed": 0,
        "batch_size": "auto" if verbose else WHOLE,
        "disable_log_stats": True,
        "use_tqdm_on_load": verbose,
        "dtype": settings.dtype,
        "max_num_seqs": settings.sequences,
    }
    if settings.lora_rank:
        arguments |= {"enable_lora": True, "max_lora_rank": _lora_rank(settings.lora_rank)}
    if settings.device != "cpu":
        arguments["gpu_memory_utilization"] = settings.memory or gpu_share()
        return _vllm_class()(**arguments)
    arguments |= {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "block_size": 32,
        # A seeded request whose prompt is cut into chunks makes vLLM rewind its generator, which
        # on a CPU fails.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, settings.max_length),
        "kv_cache_memory_bytes": cache_bytes(folder, settings.max_length, settings.sequences),
    }
    build = _vllm_class()
    with one_collection(start=True), kernels_once(), zeros_when_touched():
        return build(**arguments)


def _lora_rank(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds `rank`."""
    for room in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= room:
            return room
    raise ValueError(f"LoRA rank {rank}; expected at most 512, the highest that vLLM serves")
