"""Workers that run jobs in the test's own process, one after the other."""

from types import SimpleNamespace

import pytest

from harness.running.workers import Outcome


class InProcess:
    """As `Workers`, without processes: a submitted job has ended when it is next polled."""

    def __init__(self, count, target, **_):
        self.target = target
        self.workers = [None] * count
        self.ended = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def idle(self):
        return None if self.ended else self

    @property
    def busy(self):
        status = ("", None, None)
        return [SimpleNamespace(job=e.job, started=0.0, status=status) for e in self.ended]

    def submit(self, job):
        try:
            result = self.target(job, lambda *_: None)
        except Exception as error:
            described = {"message": f"{type(error).__name__}: {error}"}
            step = getattr(error, "step", None)
            described |= {} if step is None else {"step": step}
            self.ended.append(Outcome(job, error=described))
        else:
            self.ended.append(Outcome(job, result=result))

    def poll(self, seconds):
        ended, self.ended = self.ended, []
        return ended


@pytest.fixture
def in_process():
    return InProcess
