"""Workers: results, failures, deaths, and no orphan after the parent is killed."""

import atexit
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest

from harness.running.workers import Workers


class Broken(RuntimeError):
    step = 7


def work(job, report):
    kind, value = job
    if kind == "square":
        report("squaring", 1, 1)
        return value * value
    if kind == "fail":
        raise Broken(f"cannot do {value}")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "last words":
        atexit.register(value.write_text, "goodbye")
    if kind == "pid":
        with open(value, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    return None


def drain(workers, count):
    ended = []
    while len(ended) < count:
        ended += workers.poll(5)
    return ended


def test_results_failures_and_deaths_are_told_apart():
    with Workers(1, work) as workers:
        workers.submit(("square", 3))
        assert drain(workers, 1)[0].result == 9
        workers.submit(("fail", "this"))
        (failed,) = drain(workers, 1)
        assert failed.error == {"message": "Broken: cannot do this", "step": 7}
        assert not failed.died
        workers.submit(("die", 0))
        (dead,) = drain(workers, 1)
        assert dead.died
        assert dead.job == ("die", 0)
        assert "exit code -9" in dead.error["message"]
        workers.submit(("square", 4))  # a dead worker is replaced
        assert drain(workers, 1)[0].result == 16


def test_a_process_that_is_let_go_says_its_last_words(tmp_path):
    with Workers(1, work) as workers:
        workers.submit(("last words", tmp_path / "said"))
        drain(workers, 1)
        process = workers.workers[0].home.process
        workers._dismiss(workers.workers[0], "")
        assert process.exitcode == 0
    assert (tmp_path / "said").read_text() == "goodbye"


def test_no_job_without_an_idle_worker():
    with Workers(1, work) as workers:
        workers.submit(("square", 1))
        with pytest.raises(RuntimeError, match="no idle worker"):
            workers.submit(("square", 2))


def parent(path):
    workers = Workers(1, work)
    workers.submit(("pid", path))
    time.sleep(60)


def test_workers_end_with_a_killed_parent(tmp_path):
    path = tmp_path / "pid"
    process = multiprocessing.get_context("spawn").Process(target=parent, args=(str(path),))
    process.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(path.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{worker}/stat") as stat:
            if stat.read().rsplit(")", 1)[1].split()[0] == "Z":  # dead, not yet reaped
                return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} outlived its parent")


@dataclass(frozen=True)
class Errand:
    """A job with a role and a time limit."""

    what: str
    role: str = "work"
    seconds: float | None = None


KEPT = []
"""Grows with every errand that this process has done."""


def errand(job, report):
    if job.what == "hang":
        report("waiting", 3, 8)
        time.sleep(600)
    KEPT.append(job.what)
    return os.getpid(), len(KEPT)


def test_each_role_has_a_process_of_its_own_that_is_kept():
    with Workers(1, errand) as workers:
        done = []
        for role in ("work", "evaluate", "work", "evaluate"):
            workers.submit(Errand("go", role))
            done += [outcome.result for outcome in drain(workers, 1)]
    first, second, third, fourth = done
    assert (first[0], second[0]) == (third[0], fourth[0])
    assert first[0] != second[0]
    assert [count for _, count in done] == [1, 1, 2, 2]


def test_an_exclusive_device_is_given_up_for_another_role():
    roles = ("evaluate", "evaluate", "work", "work", "evaluate")
    with Workers(1, errand, exclusive=True, kept=("evaluate",)) as workers:
        done = []
        for role in roles:
            workers.submit(Errand("go", role))
            done += [outcome.result for outcome in drain(workers, 1)]
            running = workers.workers[0].homes
            assert list(running) == ([] if role == "work" else ["evaluate"])
    pids = [pid for pid, _ in done]
    assert pids[0] == pids[1]  # kept while nothing else needs the device
    assert len(set(pids)) == 4  # training: a fresh process for every job


def test_a_job_that_hangs_is_given_up_and_its_worker_goes_on():
    with Workers(1, errand) as workers:
        workers.submit(Errand("hang", seconds=1.0))
        (given_up,) = drain(workers, 1)
        assert given_up.died
        assert given_up.job.what == "hang"
        assert "time limit of 1 s (3 of 8)" in given_up.error["message"]
        workers.submit(Errand("go", seconds=60.0))
        assert drain(workers, 1)[0].result[1] == 1
