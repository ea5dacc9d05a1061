r"""The final answer of a response, and the rule that found it.

Marks of a final answer are `\boxed{...}` (the last complete one), `####`, and a line that starts
with "A:", "Answer:" or "Final answer:"; the one that stands last in the response counts. Without
any, it is the last "answer is" with an answer behind it ("so our answer is correct" has none where
a number is asked for), and without that the last number, or the last letter of a choice. Time grows
linearly with the response, whatever it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "math", "choice"]
"""A number; any mathematical object; the letter of a choice."""

NONE = "none"
LINE = 2000
"""Characters behind a mark that are looked at."""
_MARKS = (
    ("####", re.compile(r"####")),
    (
        "answer:",
        re.compile(r"^[ \t>*_#]*(?:the\s+)?(?:final\s+)?(?:answer|A)[*_]*:", re.IGNORECASE | re.M),
    ),
)
_PROSE = re.compile(r"\banswer\s+(?:is|to\s.{0,80}?\sis)\b\s*:?", re.IGNORECASE)
_TRIED = 100  # times that "answer is" is looked behind, from the last one back
_TOKEN = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-\u2212]\s?)?[$£€]?(?:\d{1,3}(?:,\d{3})+(?![\d,]|\.\d*,)|\d+)(?:\.\d+)?"
    r"|(?:(?<![\w)\]}])[-\u2212]\s?)?(?<!\d)\.\d+"
)
_LETTER = re.compile(r"(?<![A-Za-z\\])\(?([A-J])\)?(?![A-Za-z'])")


@dataclass(frozen=True)
class Extracted:
    """The answer as it stands in the response, None where there is none, and the rule."""

    text: str | None
    rule: str


def extract(response: str, kind: Kind) -> Extracted:
    """The final answer of `response`; `rule` is a mark, "last number", "last letter" or "none"."""
    found = _marked(response)
    if found is not None:
        text, rule = found
        if rule == "boxed" and kind != "choice":
            numbers = _NUMBER.findall(text) if kind == "number" else []
            return Extracted(numbers[0] if len(numbers) == 1 else text.strip() or None, rule)
        return Extracted(_read(text, kind), rule)
    for match in list(_PROSE.finditer(response))[: -_TRIED - 1 : -1]:
        answer = _read(response[match.end() : match.end() + LINE], kind)
        if answer is not None:
            return Extracted(answer, "answer is")
    return _unmarked(response, kind)


def _read(text: str, kind: Kind) -> str | None:
    """The answer at the start of what stands behind a mark."""
    line = _first_line(text)
    if kind == "number":
        return _number(line)
    if kind == "choice":
        letters = _LETTER.findall(line)
        return letters[0] if letters else None
    return _sentence(line) or None


def _marked(response: str) -> tuple[str, str] | None:
    """What follows the last mark, and its name; for a box its content."""
    best: tuple[int, str, str] | None = None
    box = _last_box(response)
    if box is not None:
        best = (box[0], response[box[0] : box[1]], "boxed")
    for rule, pattern in _MARKS:
        for match in pattern.finditer(response):
            if best is None or match.end() > best[0]:
                best = (match.end(), response[match.end() :], rule)
    return None if best is None else best[1:]


def _last_box(response: str) -> tuple[int, int] | None:
    """Start and end of the content of the last complete box, in one reading."""
    open_: list[int | None] = []
    found: tuple[int, int] | None = None
    for token in _TOKEN.finditer(response):
        text = token.group()
        if text == "}":
            start = open_.pop() if open_ else None
            if start is not None and (found is None or start > found[0]):
                found = (start, token.start())
        elif text == "{":
            open_.append(None)
        elif text.endswith("{") and "boxed" in text:
            open_.append(token.end())
    return found


def _unmarked(response: str, kind: Kind) -> Extracted:
    if kind == "choice":
        letters = _LETTER.findall(response)
        return Extracted(letters[-1], "last letter") if letters else Extracted(None, NONE)
    numbers = _NUMBER.findall(response)
    return Extracted(numbers[-1], "last number") if numbers else Extracted(None, NONE)


def _first_line(text: str) -> str:
    lines = text.lstrip()[:LINE].splitlines()
    return lines[0].strip().strip("*_ ") if lines else ""


def _number(text: str) -> str | None:
    """Behind the last "=", the first number."""
    numbers = _NUMBER.findall(text.rpartition("=")[2]) or _NUMBER.findall(text)
    return numbers[0] if numbers else None


def _sentence(line: str) -> str:
    """The formula in a line, else the line without the full stop at its end."""
    formula = re.search(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    if formula is not None and not line[: formula.start()].strip(" :"):
        return next(group for group in formula.groups() if group is not None).strip()
    return re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip()
