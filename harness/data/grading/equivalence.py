"""Whether two mathematical texts mean the same, asked of `math_verify` in a process with limits.

A response can be written so that comparing it takes for ever or all memory. The process behind a
`Comparer` has 5 seconds for a pair and a limit on its memory; when it exceeds either it is
replaced. Texts longer than any answer are not compared at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import selectors
import subprocess
import sys
from typing import Any, Self

SECONDS = 5.0
START_SECONDS = 60.0
"""For a new process to import what it needs."""
LONGEST = 1000
MEMORY = 4 << 30
TOLERANCE = 1e-6
"""Relative: math_verify rounds to six decimals, by which all small numbers are 0."""
SERVE = "from harness.data.grading.equivalence import serve; serve()"
_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])")
"""1.5e3: to LaTeX a product with Euler's number."""


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
            command = [sys.executable, "-c", SERVE]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if not self._line(self._process, START_SECONDS):
                self.close()
                raise RuntimeError(
                    "the process that compares formulas does not start; expected math-verify to "
                    f"be installed (python -c {SERVE!r} says more)"
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


def serve() -> None:
    """The process behind a `Comparer`: pairs of texts in, true or false out, a line for each.

    Texts are read as LaTeX by a grammar; sympy's own reader of expressions, which evaluates them
    as Python, is never asked. The first line says that all is loaded.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a package prints is not an answer
    _limit_memory()
    equal = _comparison()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        given, wanted = json.loads(line)
        try:
            same = equal(given, wanted)
        except Exception:  # whatever a parser does to a text that it cannot read: not equal
            same = False
        print(json.dumps(same), file=answers, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _comparison() -> Any:
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    latex = [LatexExtractionConfig()]

    def read(text: str) -> Any:
        formula = _POWER.sub(r"\1 \\times 10^{\2}", text.strip().strip("$").strip())
        return parse(
            f"${formula}$",
            latex,
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )

    def equal(given: str, wanted: str) -> bool:
        left, right = read(wanted), read(given)
        if not (left and right and verify(left, right, timeout_seconds=None)):
            return False
        return all(_near(a, b) for a, b in zip(left, right, strict=True))

    return equal


def _near(left: Any, right: Any) -> bool:
    """False for two numbers that only an absolute rounding takes for one, such as 1e-9 and 2e-9."""
    if not (getattr(left, "is_number", False) and getattr(right, "is_number", False)):
        return True
    a, b = complex(left.evalf()), complex(right.evalf())
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
