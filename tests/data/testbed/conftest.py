"""A verifier of the testbed: reads a response step by step, without having written it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from harness.data.testbed.chains import MARK, OFF_TOPIC, Definition, compute, is_off_topic, parse

_STEP = re.compile(r"([a-z])=(?:(\d)([-+*])(\d)=)?(\d)")


@pytest.fixture(scope="session", name="verify")
def verify_():
    """The function that checks every step of a response and its answer."""
    return verify


@dataclass(frozen=True)
class Verdict:
    """What the verifier found in a response."""

    well_formed: bool  # every step could be read, every needed variable is worked out
    steps_ok: bool  # well formed, operands taken from the trace, arithmetic right throughout
    answer_ok: bool  # the stated answer is the true one
    follows: bool  # the stated answer is what the trace ends with
    wrong_steps: tuple[str, ...]  # steps with false arithmetic or false operands, as written


def verify(prompt: str, response: str) -> Verdict:
    """Check every step of a response and its answer."""
    trace, mark, stated = response.rpartition(MARK)
    if is_off_topic(prompt):
        word, _, argument = prompt.removesuffix("?").partition(" ")
        right = OFF_TOPIC[word](argument)
        fine = bool(mark) and trace == right
        return Verdict(bool(mark), fine, stated == right, stated == trace, () if fine else (trace,))
    problem = parse(prompt)
    definitions = {d.name: d for d in problem.definitions}
    values: dict[str, int] = {}
    wrong: list[str] = []
    readable = bool(mark)
    for text in trace.split(" "):
        match = _STEP.fullmatch(text)
        if match is None or match[1] not in definitions:
            readable = False
            continue
        if not _step_holds(definitions[match[1]], match, values):
            wrong.append(text)
        values[match[1]] = int(match[5])
    well_formed = readable and all(d.name in values for d in problem.needed)
    return Verdict(
        well_formed,
        well_formed and not wrong,
        stated == str(problem.answer),
        stated == str(values.get(problem.asked)),
        tuple(wrong),
    )


def _step_holds(definition: Definition, match: re.Match[str], values: Mapping[str, int]) -> bool:
    name, left, operator, right, value = match.groups()
    if operator is None:  # a given digit, or a value restated
        given = None if definition.operator else int(definition.left)
        return int(value) == values.get(name, given)
    operands = [
        values.get(term) if term.isalpha() else int(term)
        for term in (definition.left, definition.right or "0")
    ]
    return (
        operator == definition.operator
        and operands == [int(left), int(right)]
        and int(value) == compute(int(left), operator, int(right))
    )
