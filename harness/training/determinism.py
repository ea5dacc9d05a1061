"""Keeps one training from changing the next: seeds, threads, precision and singletons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def isolated(seed: int, threads: int, device: str) -> Iterator[None]:
    """Seeded, deterministic torch for the time of one training; every global is put back.

    The Trainer seeds Python's, numpy's and torch's generators and keeps its device and precision in
    accelerate's process-wide singletons: the next training would inherit them.
    """
    import random

    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    singletons = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in singletons]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    old_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    cuda = list(range(torch.cuda.device_count())) if device == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            torch.set_num_threads(threads)
            # On a GPU some attention backward kernels have no deterministic form at all.
            torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
            memory.fill_uninitialized_memory = False  # a debugging aid that costs time
            for state in singletons:
                state.clear()
            logging.disable_progress_bar()
            yield
    finally:
        for state, before in zip(singletons, kept, strict=True):
            state.clear()
            state.update(before)
        if bars:
            logging.enable_progress_bar()
        logging.set_verbosity(verbosity)
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(old_threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
