"""The answer in a response, and whether it is the right one.

Small on purpose: final answers that are numbers or short texts. Nothing is ever evaluated as code;
numbers are compared as exact decimals, so `5` equals `5.0` and `1/2` equals `0.5`.
"""

from __future__ import annotations

import re
from fractions import Fraction

MARK = "####"
"""What the final answer follows, as in GSM8K and in the testbed."""

_LONGEST = 1000  # a longer run of digits is degenerate output, and slow to turn into a number
_BOXED = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_PLAIN = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")


def located(response: str) -> tuple[str | None, str]:
    r"""Return the final answer and the rule that found it.

    It stands after the last `####`, else in the last `\boxed{}`, else it is the last number. None
    where the response has none, also where the mark is there with nothing behind it.
    """
    _, mark, after = response.rpartition(MARK)
    if mark:
        lines = after.strip().splitlines()
        return (lines[0].strip() or None if lines else None), MARK
    boxed = _last_boxed(response)
    if boxed is not None:
        return boxed or None, "boxed"
    numbers = _NUMBER.findall(response)
    return (numbers[-1], "last number") if numbers else (None, "none")


def extract(response: str) -> str | None:
    """Return the final answer, as `located` finds it."""
    return located(response)[0]


def is_correct(response: str, answer: str) -> bool:
    """Whether the answer extracted from `response` equals the reference `answer`."""
    given = extract(response)
    return given is not None and normalise(given) == normalise(answer)


def normalise(answer: str) -> Fraction | str:
    """Return a number where the text is one (commas, currency, percent signs aside), else text."""
    text = _WRAPPED.sub(r"\1", answer.strip()).replace("\\$", "$").replace("\\%", "%")
    text = text.replace("\\!", "").replace("\u2212", "-").strip("$ \t\n").rstrip(".%").strip()
    sign, unsigned = ("-", text[1:]) if text[:1] == "-" else ("", text)
    number = sign + re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", unsigned.lstrip("$ "))
    top, slash, bottom = number.partition("/")
    value = _decimal(top.strip())
    if slash and value is not None:
        below = _decimal(bottom.strip())
        value = value / below if below else None
    if value is not None:
        return value
    return re.sub(r"\s+", " ", text).casefold()


def _decimal(text: str) -> Fraction | None:
    found = _PLAIN.fullmatch(text)
    if found is None or not (found[2] or found[3]) or len(text) > _LONGEST:
        return None
    whole, decimals = found[2] or "0", found[3] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    return -value if found[1] == "-" else value


def _last_boxed(response: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, braces inside it matched."""
    for start in reversed([found.end() for found in _BOXED.finditer(response)]):
        depth = 1
        for end in range(start, len(response)):
            if response[end - 1] == "\\" and response[end] in "{}":
                continue
            depth += {"{": 1, "}": -1}.get(response[end], 0)
            if depth == 0:
                return response[start:end].strip()
    return None
