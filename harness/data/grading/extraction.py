r"""The final answer of a response, and the rule that found it.

Marks of a final answer are `\boxed{...}` (the last complete one), `####`, and a line that starts
with "A:", "Answer:" or "Final answer:"; the one that stands last in the response counts. Without
any, it is the last "answer is" with an answer behind it ("so our answer is correct" has none where
a number is asked for), and without that the last number, or the last letter of a choice. Time grows
linearly with the response, whatever it holds.

Plain answers (of the testbed and of files without a kind) have simpler rules: the answer follows
the last `####`, else it stands in the last `\boxed{}`, else it is the last number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["plain", "number", "math", "choice"]
"""A short text or number, by simpler rules; a number; a mathematical object; a choice's letter."""
KINDS: tuple[Kind, ...] = get_args(Kind)
MARK = "####"
"""What the final answer follows in GSM8K and in the testbed."""
NONE = "none"
LINE = 2000
"""Characters behind a mark that are looked at."""
_MARKS = (
    (MARK, re.compile(MARK)),
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
_PLAIN_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_PLAIN_BOX = re.compile(r"\\boxed\s*\{")
_LETTER = re.compile(r"(?<![A-Za-z\\])\(?([A-J])\)?(?![A-Za-z'])")


@dataclass(frozen=True)
class Extracted:
    """The answer as it stands in the response, None where there is none, and the rule."""

    text: str | None
    rule: str


def extract(response: str, kind: Kind = "plain") -> Extracted:
    """The final answer of `response`; `rule` is a mark, "last number", "last letter" or "none"."""
    if kind == "plain":
        return _plain(response)
    marked = _marked(response)
    if marked is not None:
        text, rule = marked
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
    box: tuple[int, int] | None = None
    for token in _TOKEN.finditer(response):
        text = token.group()
        if text == "}":
            start = open_.pop() if open_ else None
            if start is not None and (box is None or start > box[0]):
                box = (start, token.start())
        elif text == "{":
            open_.append(None)
        elif text.endswith("{") and "boxed" in text:
            open_.append(token.end())
    return box


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


def _plain(response: str) -> Extracted:
    """No text where a mark is there with nothing behind it."""
    _, mark, after = response.rpartition(MARK)
    if mark:
        lines = after.strip().splitlines()
        return Extracted(lines[0].strip() or None if lines else None, MARK)
    boxed = _plain_box(response)
    if boxed is not None:
        return Extracted(boxed or None, "boxed")
    numbers = _PLAIN_NUMBER.findall(response)
    return Extracted(numbers[-1], "last number") if numbers else Extracted(None, NONE)


def _plain_box(response: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, braces inside it matched."""
    for start in reversed([match.end() for match in _PLAIN_BOX.finditer(response)]):
        depth = 1
        for end in range(start, len(response)):
            if response[end - 1] == "\\" and response[end] in "{}":
                continue
            depth += {"{": 1, "}": -1}.get(response[end], 0)
            if depth == 0:
                return response[start:end].strip()
    return None
