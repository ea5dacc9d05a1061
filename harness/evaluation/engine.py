"""An engine on a checkpoint, and a pool that keeps one engine for many checkpoints.

Checkpoints with adapters are served by one engine on their base model, each under an id that is
never used again. On a GPU the weights of a full checkpoint are swapped in place, behind a check; on
a CPU, where vLLM's `reload_weights` does nothing and says nothing, each gets a new engine in the
same process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from harness.evaluation.backends import ProgressCallback, open_model
from harness.evaluation.environment import generators_kept, quiet
from harness.evaluation.lm_eval_bridge import Task, check_length, evaluate_tasks
from harness.evaluation.settings import (
    Completion,
    Decoding,
    Settings,
    context_too_long,
    out_of_memory,
)
from harness.evaluation.weights import check_held, weights_digest
from harness.training.checkpoint import ADAPTER

if TYPE_CHECKING:
    import pandas as pd

PROBE_PROMPTS = [[5 + n, 7, 11 + n, 13] for n in range(4)]
"""Low token ids, which every tokenizer has."""
PROBE_TOKENS = 16

T = TypeVar("T")


class Engine:
    """A model that can answer: lm-eval's vLLM or Hugging Face class; close it after use.

    Args:
        folder: checkpoint in the Hugging Face layout, tokenizer included.
        settings: its set-up; `max_length` is cut to what the model has.
        verbose: show logs and progress bars of the packages behind it.
        on_progress: called with the number of finished answers.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        verbose: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        self.folder = Path(folder)
        positions = _config(self.folder).get("max_position_embeddings", settings.max_length)
        self.requested_length = settings.max_length
        self.settings = replace(settings, max_length=min(settings.max_length, positions))
        self.verbose = verbose
        self.on_progress = on_progress
        self.weights = ""
        self._stack = ExitStack()
        self._model: Any = None
        self._adapters = 0
        self._retrying(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and give its memory back; a second call does nothing."""
        self._model = None
        self._stack.close()

    @property
    def torch_model(self) -> Any:
        """The torch module that holds the weights."""
        if self.settings.name == "hf":
            return self._model.model
        engine: Any = self._model.model.llm_engine
        return engine.model_executor.driver_worker.worker.get_model()

    def record(self) -> dict[str, Any]:
        """Everything about the engine that can change an answer; batch limits as vLLM set them."""
        recorded = self.settings.record()
        if self.settings.name == "hf":
            return recorded
        config: Any = self._model.model.llm_engine.vllm_config
        return {
            **recorded,
            "batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "chunked_prefill": bool(config.scheduler_config.enable_chunked_prefill),
            "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        }

    def serve(self, adapter: Path | None) -> None:
        """Answer with this adapter on the base model from now on, or without any."""
        if adapter is None:
            self._model.lora_request = None
            self.weights = weights_digest(self.folder)
            return
        from vllm.lora.request import LoRARequest

        # An id that was used before can bring back the adapter that had it.
        self._adapters += 1
        digest = weights_digest(self.folder, adapter)
        self._model.lora_request = LoRARequest(digest[:16], self._adapters, str(adapter))
        self.weights = digest

    def swap(self, folder: Path) -> None:
        """Put the weights of another checkpoint of the same architecture in place.

        Raises:
            StaleWeightsError: the engine does not hold them afterwards.
        """
        llm = self._model.model
        self.weights = ""
        with quiet(self.verbose), generators_kept():
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            llm.reset_prefix_cache()
        check_held(self.torch_model, folder, every=True)
        self.folder = Path(folder)
        self.weights = weights_digest(self.folder)

    def reset_prefix_cache(self) -> None:
        """Drop what vLLM keeps of prompts that it has seen, so that they are computed again."""
        if self.settings.name == "vllm" and self._model is not None:
            self._model.model.reset_prefix_cache()

    def evaluate(
        self, tasks: Sequence[Task], decoding: Decoding, order: int | None = None
    ) -> pd.DataFrame:
        """Answer and grade every item of every task, `decoding.decodes` times.

        `order`: seed of a random order in which the engine gets the items; None for that of a run.

        Returns:
            One row per item and decode with the columns `COLUMNS`, in the order of the files.
        """

        def call() -> pd.DataFrame:
            self._model.on_progress, self._model.order = self.on_progress, order
            with quiet(self.verbose), generators_kept():
                return evaluate_tasks(self._model, tasks, decoding, self.settings.max_length)

        samples = self._retrying(call)
        return samples.assign(weights=self.weights)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[Completion]]:
        """Complete prompts given as token ids; `decoding.decodes` completions for each."""
        ids = [[int(token) for token in prompt] for prompt in prompts]
        if not ids:
            return []
        for position, prompt in enumerate(ids):
            limit = self.settings.max_length
            check_length(f"prompt {position}", len(prompt), decoding.max_tokens, limit)

        def call() -> list[list[int]]:
            with quiet(self.verbose), generators_kept():
                answers: list[list[int]] = self._model.complete(ids, decoding)
                return answers

        answers = self._retrying(call)
        end, tokenizer = self._model.eot_token_id, self._model.tokenizer
        texts = tokenizer.batch_decode(
            [row[:-1] if row[-1:] == [end] else row for row in answers], skip_special_tokens=True
        )
        flat = [Completion(text, tuple(row)) for text, row in zip(texts, answers, strict=True)]
        k = decoding.decodes
        return [flat[start : start + k] for start in range(0, len(flat), k)]

    def _open(self) -> None:
        self._model = self._stack.enter_context(
            open_model(self.folder, self.settings, self.verbose)
        )
        check_held(self.torch_model, self.folder)
        self.weights = weights_digest(self.folder)

    def _retrying(self, call: Callable[[], T]) -> T:
        """The result of `call`; out of memory, it is tried again with fewer sequences at once."""
        while True:
            try:
                if self._model is None and call != self._open:
                    self._open()
                return call()
            except Exception as error:
                problem = None
                if context_too_long(error):
                    problem = f"not even one sequence of {self.settings.max_length} tokens fits"
                elif not out_of_memory(error):
                    raise
                elif self.settings.sequences == 1:
                    problem = "out of memory even with one sequence at a time"
                where = f"{self.settings.name} on {self.settings.device}, {self.folder.name}"
                if problem is not None:
                    raise MemoryError(
                        f"{where}: {problem} ({error}); set a larger --engine-memory, or a smaller "
                        "max_tokens under [evaluate]"
                    ) from error
                before, self.settings = self.settings.sequences, self.settings.fewer()
                sys.stderr.write(
                    f"{where}: out of memory with {before} sequences at once; "
                    f"trying {self.settings.sequences}\n"
                )
            self.close()


class EnginePool:
    """One engine at a time, kept while the next checkpoint can be served by it.

    Args:
        start: makes an engine; a test may hand in another.
    """

    def __init__(self, start: Callable[..., Engine] = Engine) -> None:
        self._start = start
        self._engine: Engine | None = None
        self._swappable: dict[str, bool] = {}
        self.started = 0

    def close(self) -> None:
        """Stop the engine, if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def engine(
        self,
        checkpoint: Path,
        settings: Settings,
        base: Path | None = None,
        verbose: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> Engine:
        """An engine that holds the weights of `checkpoint`; closed by the pool, not by the caller.

        `base`: the model that a checkpoint with an adapter was fine-tuned from.
        """
        adapter = checkpoint / ADAPTER
        if base is not None and settings.name == "vllm" and adapter.is_dir():
            rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
            engine = self._engine_on(base, replace(settings, lora_rank=rank), verbose)
            engine.serve(adapter)
        else:
            engine = self._engine_on(checkpoint, settings, verbose)
        engine.on_progress = on_progress
        return engine

    def _engine_on(self, folder: Path, settings: Settings, verbose: bool) -> Engine:
        """The engine as it is, with swapped weights, or a new one."""
        engine = self._engine
        if engine is not None and _suits(engine, settings):
            if engine.folder == folder:
                if settings.lora_rank:
                    engine.serve(None)
                return engine
            if settings.device != "cpu" and not settings.lora_rank:
                swapped = self._swapped(engine, folder)
                if swapped is not None:
                    return swapped
        return self._new(folder, settings, verbose)

    def _new(self, folder: Path, settings: Settings, verbose: bool) -> Engine:
        self.close()
        self._engine = self._start(folder, settings, verbose)
        self.started += 1
        return self._engine

    def _swapped(self, engine: Engine, folder: Path) -> Engine | None:
        """An engine with the weights of `folder`, by a swap where that works; None where not.

        The proof: after the first swap, probe prompts must have the answers that a new engine
        gives them, token for token. It costs one start of an engine; every later swap is checked
        by comparing the parameters themselves.
        """
        architecture = _architecture(folder)
        if (
            architecture != _architecture(engine.folder)
            or self._swappable.get(architecture) is False
        ):
            return None
        try:
            engine.swap(folder)
        except Exception as error:
            self._never_swap(architecture, f"{type(error).__name__}: {error}")
            return None
        if architecture in self._swappable:
            return engine
        after_swap = _probe(engine)
        new = self._new(folder, engine.settings, engine.verbose)
        self._swappable[architecture] = after_swap == _probe(new)
        if not self._swappable[architecture]:
            self._never_swap(architecture, "probe prompts were not answered as by a new engine")
        return new

    def _never_swap(self, architecture: str, reason: str) -> None:
        self._swappable[architecture] = False
        sys.stderr.write(
            f"weights are not swapped in place ({reason}); every checkpoint gets a new engine\n"
        )


def _suits(engine: Engine, settings: Settings) -> bool:
    """Whether a running engine can do what `settings` ask for."""
    running = engine.settings
    same = replace(running, max_length=0, sequences=1, lora_rank=0) == replace(
        settings, max_length=0, sequences=1, lora_rank=0
    )
    adapters = (running.lora_rank > 0) == (settings.lora_rank > 0)
    fits = running.lora_rank >= settings.lora_rank
    return same and adapters and fits and settings.max_length <= engine.requested_length


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _architecture(folder: Path) -> str:
    """What two checkpoints must share for weights to be swapped: the config without its names."""
    config = _config(folder)
    for name in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True)


def _probe(engine: Engine) -> list[tuple[int, ...]]:
    """Greedy answers to a few prompts."""
    answers = engine.generate(PROBE_PROMPTS, Decoding(max_tokens=PROBE_TOKENS))
    return [completion.ids for [completion] in answers]
