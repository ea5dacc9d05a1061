"""Worker processes that run jobs one after the other and tell how far they are.

Written on `multiprocessing` pipes rather than an executor pool because of what pools do not give:
knowing which job a dead worker took with it, live progress from inside a job, jobs that are given
up after a time limit, and workers that die when their parent is killed outright.

A worker is a place where one job runs at a time. Behind it stands a process for each role that its
jobs have had, so that an engine which is kept for many checkpoints never shares a process with
training.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
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
class Home:
    """A process for jobs of one role, and the pipe to it."""

    process: Any
    pipe: Connection


@dataclass
class Worker:
    """One job at a time, and the processes that it can run in, by role."""

    homes: dict[str, Home] = field(default_factory=dict)
    job: Any = None
    role: str = ""
    started: float = 0.0
    limit: float | None = None
    status: tuple[str, int | None, int | None] = field(default=("", None, None))

    @property
    def home(self) -> Home:
        """Where the job in hand runs."""
        return self.homes[self.role]


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A fixed number of workers.

    A job may say its `role` (jobs of other roles run in other processes) and after how many
    `seconds` it is given up.

    Args:
        count: how many.
        target: importable function `(job, report) -> result` that each job is handed to.
        threads: threads of one worker, for the libraries that read it from the environment.
        exclusive: only one process at a time, so that a GPU's memory is really given back: a role
            in `kept` keeps its process until a job of another role needs the device, any other
            gets a fresh process for every job.
        kept: roles whose processes hold something worth keeping.
    """

    def __init__(
        self,
        count: int,
        target: Callable[[Any, Report], Any],
        threads: int = 1,
        exclusive: bool = False,
        kept: Collection[str] = (),
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._target = target
        self._threads = threads
        self._exclusive = exclusive
        self._kept = frozenset(kept)
        self.workers = [Worker() for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self.workers:
            for role in list(worker.homes):
                if kind is None and worker.job is None:
                    self._dismiss(worker, role)
                self._stop(worker, role)

    @property
    def idle(self) -> Worker | None:
        """A worker without a job, or None."""
        return next((w for w in self.workers if w.job is None), None)

    @property
    def busy(self) -> list[Worker]:
        """Workers with a job."""
        return [w for w in self.workers if w.job is not None]

    def submit(self, job: Any) -> None:
        """Hand `job` (picklable) to an idle worker, best to one that has a process for its role."""
        role = getattr(job, "role", "")
        idle = [worker for worker in self.workers if worker.job is None]
        if not idle:
            raise RuntimeError("no idle worker")
        worker = next((w for w in idle if role in w.homes), idle[0])
        if self._exclusive:
            for other in [name for name in worker.homes if name != role]:
                self._dismiss(worker, other)
                self._stop(worker, other)
        if role not in worker.homes or not worker.homes[role].process.is_alive():
            self._start(worker, role)
        worker.job, worker.role, worker.status = job, role, ("", None, None)
        worker.started, worker.limit = time.monotonic(), getattr(job, "seconds", None)
        worker.home.pipe.send(job)

    def poll(self, seconds: float) -> Iterable[Outcome]:
        """Wait up to `seconds` for news; return the jobs that ended."""
        pipes = {w.home.pipe: w for w in self.busy}
        ended = []
        for pipe in wait(list(pipes), timeout=seconds):
            outcome = self._receive(pipes[pipe])  # type: ignore[index]
            if outcome is not None:
                ended.append(outcome)
        return ended + [self._given_up(worker) for worker in self.busy if _overdue(worker)]

    def _receive(self, worker: Worker) -> Outcome | None:
        home = worker.home
        try:
            kind, payload = home.pipe.recv()
        except (EOFError, ConnectionResetError):
            home.process.join()
            code = home.process.exitcode
            message = f"the worker process died (exit code {code}"
            message += "; killed, perhaps for memory)" if code == -signal.SIGKILL else ")"
            return self._lost(worker, message)
        if kind == "status":
            worker.status = payload
            return None
        job, worker.job = worker.job, None
        if self._exclusive and worker.role not in self._kept:
            self._stop(worker, worker.role)
        return Outcome(job, result=payload) if kind == "done" else Outcome(job, error=payload)

    def _given_up(self, worker: Worker) -> Outcome:
        done = "" if worker.status[1] is None else f" ({worker.status[1]} of {worker.status[2]})"
        return self._lost(
            worker,
            f"no end after the time limit of {worker.limit:g} s{done}; the process was ended",
        )

    def _lost(self, worker: Worker, message: str) -> Outcome:
        """The job of a process that is no more."""
        job, worker.job = worker.job, None
        self._stop(worker, worker.role)
        return Outcome(job, error={"message": message}, died=True)

    def _start(self, worker: Worker, role: str) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
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
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        worker.homes[role] = Home(process, ours)

    def _dismiss(self, worker: Worker, role: str) -> None:
        """Let an idle process end by itself, so that its libraries tidy up after themselves."""
        home = worker.homes[role]
        if home.process.is_alive():
            home.pipe.send(None)
            home.process.join(DISMISS_SECONDS)

    def _stop(self, worker: Worker, role: str) -> None:
        home = worker.homes.pop(role)
        home.pipe.close()
        # Nothing to save: finished artefacts are on disk, unfinished ones are redone.
        home.process.kill()
        home.process.join()


def _overdue(worker: Worker) -> bool:
    return worker.limit is not None and time.monotonic() - worker.started > worker.limit


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
            _end()
        try:
            message = ("done", target(job, report))
        except Exception as error:
            message = ("failed", _described(error))
        with lock:
            pipe.send(message)


def _end() -> None:
    """End this process: what asked to be told is told, and nothing else is taken apart.

    Python would go through every object of every package, which with vLLM takes seconds.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
