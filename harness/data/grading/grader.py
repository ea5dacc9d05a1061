"""One response against one reference."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, Self, get_args

from harness.data.grading.equivalence import Comparer
from harness.data.grading.extraction import Extracted, Kind, extract
from harness.data.grading.plain import located, normalise

VERSION = 1
"""Of everything that a verdict depends on; a change of any rule raises it."""
TIMEOUT = "timeout"
AnyKind = Kind | Literal["plain"]
"""`plain`: numbers compared exactly, all else as text; what the testbed and own files need."""
KINDS: tuple[AnyKind, ...] = ("plain", *get_args(Kind))


@dataclass(frozen=True)
class Verdict:
    """`extracted`: the answer as it stands in the response; `rule`: how it was found.

    A comparison that ran out of time counts as wrong, and its rule ends in ", timeout".
    """

    correct: bool
    extracted: str | None
    rule: str


class AnyGrader(Protocol):
    """What grades responses."""

    def grade(self, response: str, answer: str) -> Verdict:
        """Whether the final answer of `response` is `answer`."""

    def reference(self, answer: str) -> str:
        """The bare answer in `answer`; ValueError where it holds none."""

    def close(self) -> None:
        """Let go of what it holds."""


class PlainGrader:
    """Numbers compared exactly, all else as text; owns nothing."""

    def grade(self, response: str, answer: str) -> Verdict:
        """Whether the final answer of `response` is `answer`, a bare one."""
        found, rule = located(response)
        right = found is not None and normalise(found) == normalise(answer)
        return Verdict(right, found, rule)

    def reference(self, answer: str) -> str:
        """The answer behind a mark, else all of it."""
        found, rule = located(answer)
        bare = answer.strip() if found is None or rule.startswith("last") else found
        if not bare:
            raise ValueError(f"answer is {_short(answer)}; expected an answer")
        return bare

    def close(self) -> None:
        """Nothing to let go of."""


def open_grader(kind: AnyKind) -> AnyGrader:
    """A grader of answers of that kind."""
    if kind not in KINDS:
        raise ValueError(f"kind of answers {kind!r}; expected one of {', '.join(KINDS)}")
    return PlainGrader() if kind == "plain" else Grader(kind)


class Grader:
    """Grades answers of one kind; close it after use (it may own a process)."""

    def __init__(self, kind: Kind, comparer: Comparer | None = None) -> None:
        self._kind = kind
        self._comparer = comparer or Comparer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the process, if there is one."""
        self._comparer.close()

    def grade(self, response: str, answer: str) -> Verdict:
        """Whether the final answer of `response` is `answer`.

        `answer` is the bare answer, or a worked solution with a mark before it. ValueError where
        it holds none.
        """
        wanted = self.reference(answer)
        found = extract(response, self._kind)
        if found.text is None:
            return Verdict(False, None, found.rule)
        return self._compared(found, wanted)

    def reference(self, answer: str) -> str:
        """The bare answer: behind the last mark in it, else all of it."""
        marked = extract(answer, self._kind)
        bare = marked.text if not marked.rule.startswith(("last ", "none")) else answer.strip()
        if self._kind == "choice":
            bare = marked.text
        if not bare or (self._kind == "number" and not isinstance(value(bare), Fraction)):
            expected = {"number": "a number", "choice": "a letter from A to J"}
            raise ValueError(
                f"answer is {_short(answer)}; expected {expected.get(self._kind, 'an answer')}, "
                "alone or behind a mark such as ####"
            )
        return bare

    def _compared(self, found: Extracted, wanted: str) -> Verdict:
        assert found.text is not None
        given, own = value(found.text), value(wanted)
        exact = isinstance(given, Fraction) and isinstance(own, Fraction)
        plain = self._kind == "choice" or (self._kind == "number" and "\\" not in found.text)
        if given == own or plain or (exact and "%" not in found.text + wanted):
            return Verdict(given == own, found.text, found.rule)
        equal = self._comparer.equal(found.text, wanted)
        if equal is None:
            return Verdict(False, found.text, f"{found.rule}, {TIMEOUT}")
        return Verdict(equal, found.text, found.rule)


def value(text: str) -> Fraction | str:
    """What a short answer says: a number, or text without case and spacing."""
    return normalise(text.strip().strip("£€"))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
