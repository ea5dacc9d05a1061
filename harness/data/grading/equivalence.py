"""Whether two mathematical texts mean the same, asked of `math_verify` in a process with limits.

A response can be written so that comparing it takes for ever or all memory. The process behind a
`Comparer` has 5 seconds for a pair and a limit on its memory; when it exceeds either it is
replaced. Texts longer than any answer are not compared at all.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
from typing import Self

SECONDS = 5.0
START_SECONDS = 60.0
"""For a new process to import what it needs."""
LONGEST = 1000


class Comparer:
    """Compares pairs of texts; a process is started with the first pair. Close it after use."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def equal(self, given: str, wanted: str) -> bool | None:
        """Whether the answer `given` is the answer `wanted`; None where time ran out."""
        if max(len(given), len(wanted)) > LONGEST:
            return False
        for _ in range(2):  # a process can also have died between two questions
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([given, wanted]).encode() + b"\n")
                process.stdin.flush()
                line = self._line(process, self._seconds)
            except BrokenPipeError:
                self.close()
                continue
            if line is None:
                self.close()
                return None
            if line:
                return bool(json.loads(line))
            self.close()
        return None

    def close(self) -> None:
        """End the process; a later question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-m", "harness.data.grading.equivalence_worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if not self._line(self._process, START_SECONDS):
                self.close()
                raise RuntimeError(
                    "the process that compares formulas does not start; expected math-verify to "
                    "be installed (python -m harness.data.grading.equivalence_worker says more)"
                )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """The next line it says, empty at its end; None where it takes too long."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            if not waiting.select(seconds):
                return None
        return process.stdout.readline()
