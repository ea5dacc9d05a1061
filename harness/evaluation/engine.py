"""An engine on a checkpoint, and the host that keeps one engine for many checkpoints.

Checkpoints with adapters are served by one engine on their base model, each under an id that is
never used again. On a GPU the weights of a full checkpoint are swapped in place, behind a guard; on
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
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from harness.evaluation.backends import ProgressCallback, open_model
from harness.evaluation.environment import engine_version
from harness.evaluation.lm_eval_bridge import Task, answered, check_length
from harness.evaluation.patches import generators_kept, quiet
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

PROBES = 4
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
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        positions = config.get("max_position_embeddings", settings.max_length)
        self.asked = settings.max_length
        self.settings = replace(settings, max_length=min(settings.max_length, positions))
        self.version = engine_version(settings.name)
        self.verbose = verbose
        self.on_progress = on_progress
        self.weights = ""
        self._stack = ExitStack()
        self._model: Any = None
        self._adapters = 0
        self._retrying(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and give its memory back; a second call does nothing."""
        self._model = None
        self._stack.close()

    @property
    def held(self) -> Any:
        """The torch module that holds the weights."""
        if self.settings.name == "hf":
            return self._model.model
        engine: Any = self._model.model.llm_engine
        return engine.model_executor.driver_worker.worker.get_model()

    def record(self) -> dict[str, Any]:
        """Everything about the engine that can change an answer; batch limits as it has them."""
        known = self.settings.record()
        if self.settings.name == "hf":
            return known
        config: Any = self._model.model.llm_engine.vllm_config
        return {
            **known,
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
        check_held(self.held, folder, every=True)
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
                return answered(self._model, tasks, decoding, self.settings.max_length)

        frame = self._retrying(call)
        return frame.assign(weights=self.weights)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[Completion]]:
        """Complete prompts given as token ids; `decoding.decodes` completions for each."""
        ids = [[int(token) for token in prompt] for prompt in prompts]
        if not ids:
            return []
        for position, prompt in enumerate(ids):
            what = f"prompt {position}"
            check_length(what, len(prompt), decoding.max_tokens, self.settings.max_length)

        def call() -> list[list[int]]:
            with quiet(self.verbose), generators_kept():
                made: list[list[int]] = self._model.complete(ids, decoding)
                return made

        made = self._retrying(call)
        end, tokenizer = self._model.eot_token_id, self._model.tokenizer
        texts = tokenizer.batch_decode(
            [row[:-1] if row[-1:] == [end] else row for row in made], skip_special_tokens=True
        )
        flat = [Completion(text, tuple(row)) for text, row in zip(texts, made, strict=True)]
        k = decoding.decodes
        return [flat[start : start + k] for start in range(0, len(flat), k)]

    def _open(self) -> None:
        self._model = self._stack.enter_context(
            open_model(self.folder, self.settings, self.verbose)
        )
        check_held(self.held, self.folder)
        self.weights = weights_digest(self.folder)

    def _retrying(self, call: Callable[[], T]) -> T:
        """The result of `call`; out of memory, it is tried again with fewer sequences together."""
        while True:
            try:
                if self._model is None and call != self._open:
                    self._open()
                return call()
            except Exception as error:
                if context_too_long(error):
                    raise MemoryError(
                        f"{self._where()}: not even one sequence of {self.settings.max_length} "
                        f"tokens fits ({error}); set a larger --engine-memory, or a smaller "
                        "max_tokens under [evaluate]"
                    ) from error
                if not out_of_memory(error):
                    raise
                if self.settings.sequences == 1:
                    raise MemoryError(
                        f"{self._where()}: out of memory even with one sequence at a time "
                        f"({error}); set a larger --engine-memory, or a smaller max_tokens under "
                        "[evaluate]"
                    ) from error
                before, self.settings = self.settings, self.settings.fewer()
                sys.stderr.write(
                    f"{self._where()}: out of memory with {before.sequences} sequences together; "
                    f"trying {self.settings.sequences}\n"
                )
            self.close()

    def _where(self) -> str:
        return f"{self.settings.name} on {self.settings.device}, {self.folder.name}"


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
        """An engine that holds the weights of `checkpoint`; closed by the host, not by the caller.

        `base`: the model that a checkpoint with an adapter was fine-tuned from.
        """
        adapter = checkpoint / ADAPTER
        if base is not None and settings.name == "vllm" and adapter.is_dir():
            rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"]
            engine = self._kept(base, replace(settings, lora_rank=rank), verbose)
            engine.serve(adapter)
        else:
            engine = self._kept(checkpoint, settings, verbose)
        engine.on_progress = on_progress
        return engine

    def _kept(self, folder: Path, settings: Settings, verbose: bool) -> Engine:
        engine = self._engine
        if engine is not None and _fits(engine, settings):
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
        kind = _architecture(folder)
        if kind != _architecture(engine.folder) or self._swappable.get(kind) is False:
            return None
        try:
            engine.swap(folder)
        except Exception as error:
            self._refuse(kind, f"{type(error).__name__}: {error}")
            return None
        if kind in self._swappable:
            return engine
        probed = _probe(engine)
        new = self._new(folder, engine.settings, engine.verbose)
        self._swappable[kind] = probed == _probe(new)
        if not self._swappable[kind]:
            self._refuse(kind, "probe prompts were answered otherwise than by a new engine")
        return new

    def _refuse(self, kind: str, why: str) -> None:
        self._swappable[kind] = False
        sys.stderr.write(
            f"weights are not swapped in place ({why}); every checkpoint gets an engine\n"
        )


def _fits(engine: Engine, settings: Settings) -> bool:
    """Whether an engine that runs can do what `settings` ask for."""
    own = engine.settings
    same = replace(own, max_length=0, sequences=1, lora_rank=0) == replace(
        settings, max_length=0, sequences=1, lora_rank=0
    )
    ranks = (own.lora_rank > 0) == (settings.lora_rank > 0) and own.lora_rank >= settings.lora_rank
    return same and ranks and settings.max_length <= engine.asked


def _architecture(folder: Path) -> str:
    """What two checkpoints must share for weights to be swapped: config but for names."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True)


def _probe(engine: Engine) -> list[tuple[int, ...]]:
    """Greedy answers to a few prompts of low token ids."""
    prompts = [[5 + n, 7, 11 + n, 13] for n in range(PROBES)]
    made = engine.generate(prompts, Decoding(max_tokens=PROBE_TOKENS))
    return [completion.ids for [completion] in made]
