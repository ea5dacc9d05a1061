"""One response against one reference, nothing of it ever evaluated as code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from harness.data.grading.equivalence import Comparer
from harness.data.grading.extraction import KINDS, Kind, extract

VERSION = 1
"""Of everything that a verdict depends on; a change of any rule raises it."""
TIMEOUT = "timeout"
_LONGEST = 1000  # a longer run of digits is degenerate output, and slow to turn into a number
_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class Verdict:
    """`extracted`: the answer as it stands in the response; `rule`: how it was found.

    A comparison that ran out of time counts as wrong, and its rule ends in ", timeout".
    """

    correct: bool
    extracted: str | None
    rule: str


class Grader:
    """Grades answers of one kind; close it after use (it may own a process).

    Plain answers are compared exactly as numbers, all else as text.
    """

    def __init__(self, kind: Kind, comparer: Comparer | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of answers {kind!r}; expected one of {', '.join(KINDS)}")
        self._kind = kind
        self._comparer = comparer or Comparer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        self._comparer.close()

    def grade(self, response: str, answer: str) -> Verdict:
        """Whether the final answer of `response` is `answer`.

        `answer` is the bare answer, or, unless the kind is plain, a worked solution with a mark
        before it. ValueError where it holds none.
        """
        extracted = extract(response, self._kind)
        if self._kind == "plain":
            text = extracted.text
            right = text is not None and normalise(text) == normalise(answer)
            return Verdict(right, text, extracted.rule)
        reference = self.reference(answer)
        if extracted.text is None:
            return Verdict(False, None, extracted.rule)
        return self._compared(extracted.text, extracted.rule, reference)

    def reference(self, answer: str) -> str:
        """The bare answer: behind the last mark in `answer`, else all of it."""
        marked = extract(answer, self._kind)
        unmarked = marked.rule.startswith(("last ", "none"))
        bare: str | None = answer.strip() if unmarked else marked.text
        if self._kind == "choice":
            bare = marked.text
        elif self._kind == "plain" and marked.text is None:
            bare = answer.strip()
        if not bare or (self._kind == "number" and not isinstance(value(bare), Fraction)):
            expected = {"number": "a number", "choice": "a letter from A to J"}
            excerpt = answer if len(answer) <= 60 else answer[:57] + "..."
            raise ValueError(
                f"answer is {excerpt!r}; expected {expected.get(self._kind, 'an answer')}, "
                "alone or behind a mark such as ####"
            )
        return bare

    def _compared(self, answer: str, rule: str, reference: str) -> Verdict:
        given, wanted = value(answer), value(reference)
        exact = isinstance(given, Fraction) and isinstance(wanted, Fraction)
        simple = self._kind == "choice" or (self._kind == "number" and "\\" not in answer)
        if given == wanted or simple or (exact and "%" not in answer + reference):
            return Verdict(given == wanted, answer, rule)
        equal = self._comparer.equal(answer, reference)
        if equal is None:
            return Verdict(False, answer, f"{rule}, {TIMEOUT}")
        return Verdict(equal, answer, rule)


def value(text: str) -> Fraction | str:
    """What a short answer says: a number, or text without case and spacing."""
    return normalise(text.strip().strip("£€"))


def normalise(answer: str) -> Fraction | str:
    """A number where the text is one (commas, currency, percent signs aside), else text.

    Numbers are exact decimals: `5` equals `5.0`, and `1/2` equals `0.5`.
    """
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
    match = _DECIMAL.fullmatch(text)
    if match is None or not (match[2] or match[3]) or len(text) > _LONGEST:
        return None
    whole, decimals = match[2] or "0", match[3] or ""
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    return -value if match[1] == "-" else value
