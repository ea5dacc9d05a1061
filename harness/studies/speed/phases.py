"""A job as a run has it, with a clock at each of its parts; what the evaluation bench hands out.

Nothing is done otherwise than by `harness.running.job.run_job`: what it would import on the way is
imported first, and three methods are timed where they stand.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.running.job import Job, run_job
from harness.running.workers import Report

DISTRIBUTIONS = ("cotsieve", "torch", "transformers", "numpy", "lm_eval", "datasets")
"""Besides vLLM, which goes by two names."""


def timed_job(job: Job, report: Report) -> dict[str, Any]:
    """Do `job`; when it began, the seconds of each phase, and the token ids of every answer."""
    begun = time.monotonic()
    _import()
    seconds = {"import": time.monotonic() - begun}
    from harness.evaluation.backends import _vllm_class
    from harness.evaluation.engine import Engine, EnginePool

    answers: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def keep(outputs: Any) -> None:
        for output in outputs:
            answers.append((tuple(output.prompt_token_ids), tuple(output.outputs[0].token_ids)))

    start = time.monotonic()
    with (
        clocked(EnginePool, "engine", seconds),
        clocked(Engine, "evaluate", seconds),
        clocked(_vllm_class(), "_model_generate", seconds, keep),
    ):
        run_job(job, report)
    whole = time.monotonic() - start
    engine, evaluate, decoding = (
        seconds.pop(name, 0.0) for name in ("engine", "evaluate", "_model_generate")
    )
    seconds |= {"engine": engine, "decoding": decoding, "grading": evaluate - decoding}
    seconds["store"] = whole - engine - evaluate
    return {"begun": begun, "seconds": seconds, "answers": sorted(answers)}


@contextmanager
def clocked(
    owner: Any,
    name: str,
    seconds: dict[str, float],
    look: Callable[[Any], None] = lambda result: None,
) -> Iterator[None]:
    """Add up the seconds of every call of a method; `look` sees what it returns."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        try:
            result = real(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start
        look(result)
        return result

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, real)


def _import() -> None:
    """What a job that evaluates imports by and by."""
    from harness.evaluation.backends import _vllm_class
    from harness.running.job import _import_heavy

    _import_heavy()
    _vllm_class()
    from lm_eval import evaluator, tasks  # noqa: F401
