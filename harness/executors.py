"""Worker processes that run jobs one after the other and tell how far they are.

Written on `multiprocessing` pipes rather than an executor pool because three things are needed
that pools do not give: knowing which job a dead worker took with it, live progress from inside a
job, and workers that die when their parent is killed outright.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

PARENT_CHECK_SECONDS = 1.0
REPORT_SECONDS = 0.2
DISMISS_SECONDS = 5.0

Report = Callable[[str, int | None, int | None], None]
"""Called inside a job with a description, steps done and steps in all."""


@dataclass
class Outcome:
    """How a job ended: its result, or what went wrong."""

    job: Any
    result: Any = None
    error: Mapping[str, Any] | None = None
    died: bool = False


@dataclass
class Worker:
    """One process and the job it has in hand."""

    process: Any = None
    pipe: Connection | None = None
    job: Any = None
    started: float = 0.0
    status: tuple[str, int | None, int | None] = field(default=("", None, None))


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A fixed number of worker processes.

    Args:
        count: how many.
        target: importable function `(job, report) -> result` that each job is handed to.
        threads: threads of one worker, for the libraries that read it from the environment.
        recycle: start a fresh process for every job, so that a GPU's memory is really given back.
    """

    def __init__(
        self,
        count: int,
        target: Callable[[Any, Report], Any],
        threads: int = 1,
        recycle: bool = False,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._target = target
        self._threads = threads
        self._recycle = recycle
        self.workers = [Worker() for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for worker in self.workers:
                self._dismiss(worker)
        for worker in self.workers:
            self._stop(worker)

    @property
    def idle(self) -> Worker | None:
        """A worker without a job, or None."""
        return next((w for w in self.workers if w.job is None), None)

    @property
    def busy(self) -> list[Worker]:
        """Workers with a job."""
        return [w for w in self.workers if w.job is not None]

    def submit(self, job: Any) -> None:
        """Hand `job` (picklable) to an idle worker."""
        worker = self.idle
        if worker is None:
            raise RuntimeError("no idle worker")
        if worker.process is None or not worker.process.is_alive():
            self._start(worker)
        assert worker.pipe is not None
        worker.job, worker.started, worker.status = job, time.monotonic(), ("", None, None)
        worker.pipe.send(job)

    def poll(self, seconds: float) -> Iterable[Outcome]:
        """Wait up to `seconds` for news; return the jobs that ended."""
        pipes = {w.pipe: w for w in self.busy if w.pipe is not None}
        ended = []
        for pipe in wait(list(pipes), timeout=seconds):
            outcome = self._receive(pipes[pipe])  # type: ignore[index]
            if outcome is not None:
                ended.append(outcome)
        return ended

    def _receive(self, worker: Worker) -> Outcome | None:
        assert worker.pipe is not None
        try:
            kind, payload = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode
            message = f"the worker process died (exit code {code}"
            message += "; killed, perhaps for memory)" if code == -signal.SIGKILL else ")"
            outcome = Outcome(worker.job, error={"message": message}, died=True)
            self._stop(worker)
            return outcome
        if kind == "status":
            worker.status = payload
            return None
        job, worker.job = worker.job, None
        if self._recycle:
            self._stop(worker)
        return Outcome(job, result=payload) if kind == "done" else Outcome(job, error=payload)

    def _start(self, worker: Worker) -> None:
        ours, theirs = self._context.Pipe()
        worker.pipe = ours
        worker.process = self._context.Process(
            target=_serve,
            args=(theirs, self._target, os.getpid()),
            daemon=True,
        )
        limits = {
            name: str(self._threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        before = {name: os.environ.get(name) for name in limits}
        os.environ.update(limits)  # read by the libraries when the child loads them
        try:
            worker.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()

    def _dismiss(self, worker: Worker) -> None:
        """Let an idle worker end by itself, so that its libraries tidy up after themselves."""
        if worker.pipe is not None and worker.job is None and worker.process.is_alive():
            worker.pipe.send(None)
            worker.process.join(DISMISS_SECONDS)

    def _stop(self, worker: Worker) -> None:
        if worker.pipe is not None:
            worker.pipe.close()
        if worker.process is not None:
            # Nothing to save: finished artefacts are on disk, unfinished ones are redone.
            worker.process.kill()
            worker.process.join()
        worker.process = worker.pipe = worker.job = None


def _serve(
    pipe: Connection,
    target: Callable[[Any, Report], Any],
    parent: int,
) -> None:
    """Loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    lock = threading.Lock()
    last = 0.0

    def report(description: str, done: int | None, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS or not done:
            last = now
            with lock:
                pipe.send(("status", (description, done, total)))

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if job is None:
            return
        try:
            message = ("done", target(job, report))
        except Exception as error:
            message = ("failed", _described(error))
        with lock:
            pipe.send(message)


def _described(error: Exception) -> dict[str, Any]:
    described: dict[str, Any] = {"message": f"{type(error).__name__}: {error}"}
    step = getattr(error, "step", None)
    if step is not None:
        described["step"] = int(step)
    return described


def _follow(parent: int) -> None:
    """End this process when its parent is gone, whatever ended it."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)
