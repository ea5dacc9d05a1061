"""Many checkpoints through one process that stays, beside a fresh process for each.

Both do the same jobs by the same code, with the same settings and threads, in turns: one by the
workers of a run, the other by processes that end as any Python program does. A third pass loses its
process to SIGKILL in the middle and goes on, as a run does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.evaluation.environment import engine_version, vllm_build
from harness.experiment.stage import Stage
from harness.experiment.store import META, Store, file_digest
from harness.running.evaluation_builders import SAMPLES
from harness.running.job import EVALUATE, Job
from harness.running.workers import Outcome, Report, Workers
from harness.studies.speed.checkpoints import Series, series
from harness.studies.speed.machine import load, machine
from harness.studies.speed.measure import environment
from harness.studies.speed.phases import DISTRIBUTIONS, timed_job
from harness.studies.speed.served import PHASES, different, problems, summary

POLL_SECONDS = 0.02

Answers = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Token ids of prompts and of what was answered, sorted."""


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Repetitions of both sides, the pass with a kill, and what they come to."""
    if vllm_build() is None:
        raise ValueError("no vLLM build is installed; expected one: its engines are measured")
    if asked.checkpoints < 3:
        raise ValueError(f"--checkpoints is {asked.checkpoints}; expected at least 3")
    os.environ |= environment(asked.threads)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = series(
            Store(asked.store),
            Path(folder),
            asked.base,
            asked.checkpoints,
            asked.items,
            asked.threads,
        )
        repetitions = []
        for _ in range(asked.repeats):
            found, samples = in_turns(made)
            repetitions.append(found)
        report = {
            "what": asked.what,
            "machine": machine(DISTRIBUTIONS) | {"vllm": engine_version("vllm")},
            "threads": asked.threads,
            "repeats": asked.repeats,
            "checkpoints": asked.checkpoints,
            "items": asked.items,
            "tasks": [str(cell.inputs["task"]) for cell in made.checkpoints[0]],
            "base": asked.base,
            "parameters": made.parameters,
            "summary": summary(repetitions),
            "killed": killed(made, samples),
            "repetitions": repetitions,
        }
    return {**report, "seconds": time.monotonic() - start, "problems": problems(report)}


def in_turns(series: Series) -> tuple[dict[str, Any], list[Any]]:
    """One repetition: every checkpoint by the process that stays and by a fresh one.

    Returns:
        Seconds, loads and differences, ready for JSON; and the samples of the first by cell.
    """
    found: dict[str, Any] = {"kept": [], "fresh": [], "load": [load()]}
    ids: dict[str, list[Answers]] = {"kept": [], "fresh": []}
    with tempfile.TemporaryDirectory() as folder:
        stores = {side: series.store(Path(folder) / side) for side in ids}
        own = children_seconds()
        fresh_seconds = 0.0
        with _workers(series) as staying:
            for position in range(len(series.checkpoints)):
                for side in ("kept", "fresh") if position % 2 == 0 else ("fresh", "kept"):
                    job = series.job(position, stores[side])
                    before = children_seconds()
                    if side == "kept":
                        seconds, answers = _done(staying, job)
                    else:
                        seconds, answers = _alone(job)
                        fresh_seconds += children_seconds() - before
                    found[side].append(seconds)
                    ids[side].append(answers)
            ending = time.monotonic()
        found["kept"][-1]["end"] += time.monotonic() - ending
        whole = children_seconds() - own
        found["processor_s"] = {"kept": whole - fresh_seconds, "fresh": fresh_seconds}
        found["load"].append(load())
        samples = {side: rows(series.cells, store) for side, store in stores.items()}
    pairs = list(zip(samples["kept"], samples["fresh"], strict=True))
    found["rows"] = sum(len(frame) for frame in samples["kept"])
    found["different_rows"] = sum(different(kept, fresh) for kept, fresh in pairs)
    found["different_ids"] = sum(
        left != right
        for kept, fresh in zip(ids["kept"], ids["fresh"], strict=True)
        for left, right in zip(kept, fresh, strict=True)
    )
    found["distinct_checkpoints"] = len({tuple(map(tuple, answers)) for answers in ids["kept"]})
    return found, samples["kept"]


def killed(series: Series, known: Sequence[Any]) -> dict[str, Any]:
    """All checkpoints again; in the middle of one, the process that answers is killed.

    Args:
        known: samples of every cell, by whose rows these are judged.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = series.store(Path(folder))
        waiting = [series.job(n, store) for n in range(len(series.checkpoints))]
        middle = waiting[len(waiting) // 2]
        begun: list[str] = []
        before: dict[str, str] = {}
        ended: list[Outcome] = []
        start = time.monotonic()
        with _workers(series) as workers:
            while waiting or workers.busy:
                if workers.idle is not None:
                    job = waiting.pop(0)
                    begun += [s.key for s in job.stages if not store.has(s.kind, s.key)]
                    workers.submit(job)
                if not before and workers.busy[0].job is middle and _answering(workers):
                    before = fingerprints(series.cells, store)
                    os.kill(workers.busy[0].home.process.pid, signal.SIGKILL)
                for outcome in workers.poll(POLL_SECONDS):
                    ended.append(outcome)
                    if outcome.died and outcome.job.attempt == 0:
                        waiting.insert(0, replace(outcome.job, attempt=1))
                    elif outcome.error is not None:
                        raise RuntimeError(str(outcome.error["message"]))
        seconds = time.monotonic() - start
        after = fingerprints(series.cells, store)
        twice = {key for key in begun if begun.count(key) > 1}
        pairs = zip(series.cells, rows(series.cells, store), known, strict=True)
        apart = {cell.key: different(found, wanted) for cell, found, wanted in pairs}
    return {
        "deaths": sum(outcome.died for outcome in ended),
        "cells": len(series.cells),
        "finished_before": len(before),
        "lost": sum(after.get(key) != value for key, value in before.items()),
        "finished_after": len(after),
        "done_twice": len(twice),
        "tasks": len(series.checkpoints[0]),
        "different_rows": sum(count for key, count in apart.items() if key not in twice),
        "different_rows_done_twice": sum(count for key, count in apart.items() if key in twice),
        "seconds": seconds,
    }


def rows(cells: Sequence[Stage], store: Store) -> list[Any]:
    """The samples of every cell, in order."""
    import pandas as pd

    return [pd.read_parquet(store.folder(cell.kind, cell.key) / SAMPLES) for cell in cells]


def fingerprints(cells: Sequence[Stage], store: Store) -> dict[str, str]:
    """Hash of samples and meta.json of every cell that is finished, by key."""
    found = {}
    for cell in cells:
        folder = store.folder(cell.kind, cell.key)
        if store.has(cell.kind, cell.key):
            found[cell.key] = file_digest(folder / SAMPLES) + file_digest(folder / META)
    return found


def children_seconds() -> float:
    """Processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _target() -> Callable[[Job, Report], Any]:
    """What both sides do with a job; a test may put another in its place."""
    return timed_job


def _workers(series: Series) -> Workers:
    """As a run makes them."""
    return Workers(1, _target(), threads=series.threads, kept=(EVALUATE,))


def _done(workers: Workers, job: Job) -> tuple[dict[str, float], Answers]:
    """A job by the process that stays: seconds from here on by phase, and token ids."""
    submitted = time.monotonic()
    workers.submit(job)
    ended: list[Outcome] = []
    while not ended:
        ended = list(workers.poll(POLL_SECONDS))
    if ended[0].error is not None:
        raise RuntimeError(str(ended[0].error["message"]))
    return _phases(submitted, ended[0].result), ended[0].result["answers"]


def _alone(job: Job) -> tuple[dict[str, float], Answers]:
    """A job in a process that does nothing else, from its start to its end."""
    submitted = time.monotonic()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_once, args=(theirs, _target(), job))
    process.start()
    theirs.close()
    result: Mapping[str, Any] = ours.recv()
    process.join()
    ours.close()
    if process.exitcode:
        raise RuntimeError(f"a fresh process ended with {process.exitcode}; expected 0")
    return _phases(submitted, result), result["answers"]


def _once(pipe: Connection, target: Callable[[Job, Report], Any], job: Job) -> None:
    """All that a fresh process does."""
    pipe.send(target(job, _unheard))


def _unheard(description: str, done: int | None, total: int | None) -> None:
    """A report to nobody."""


def _phases(submitted: float, result: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by phase, which make up all the time from `submitted` until now."""
    seconds = {"begin": result["begun"] - submitted, **result["seconds"]}
    seconds["end"] = time.monotonic() - submitted - sum(seconds.values())
    return {phase: seconds[phase] for phase in PHASES}


def _answering(workers: Workers) -> bool:
    """Whether some of the job's answers are finished and others are not."""
    what, done, total = workers.busy[0].status
    return what == "answers" and bool(done) and done != total
