"""What a `Comparer` runs: a line with two texts in, a line with true or false out.

Texts are read as LaTeX by a grammar; sympy's own reader of expressions, which evaluates them as
Python, is never asked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from typing import Any

MEMORY = 4 << 30
TOLERANCE = 1e-6
"""Relative: math_verify rounds to six decimals, by which all small numbers are 0."""
_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])")
"""1.5e3: to LaTeX a product with Euler's number."""


def main() -> None:
    """Say once that all is loaded, then answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a package prints is not an answer
    _limit_memory()
    equal = _comparison()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        given, wanted = json.loads(line)
        try:
            found = equal(given, wanted)
        except Exception:  # whatever a parser does to a text that it cannot read: not equal
            found = False
        print(json.dumps(found), file=answers, flush=True)


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


if __name__ == "__main__":
    main()
