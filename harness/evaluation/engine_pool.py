"""An engine kept from checkpoint to checkpoint, and replaced when it must be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.evaluation.backends import Told
from harness.evaluation.engine import Engine, _architecture, _fits, _probe
from harness.evaluation.engine_settings import Settings
from harness.training.checkpoint import ADAPTER


class Host:
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
        told: Told | None = None,
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
        engine.told = told
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
