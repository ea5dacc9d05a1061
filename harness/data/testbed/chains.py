"""Chains of arithmetic modulo ten: problems and their worked solutions.

A problem defines variables one after another and asks for the last one:
`c=3,y=c*2,e=y+9;e?`, worked out as `c=3 y=3*2=6 e=6+9=5 #### 5`. Every definition of the chain
uses the one before it, so a problem of n hops really takes n steps; whatever the question does
not depend on is a distractor. Off-topic prompts (`sort dcab?`) share the alphabet.

The space of problems is cut by a hash of the canonical form (variables renamed, distractors
dropped) into splits, so that pool, query set and tasks are disjoint whatever their seeds.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MODULUS = 10
PREVIOUS = 0.7
LETTERS = "abcdefghkm"
OPERATORS = "+-*"
MARK = " #### "
OFF_TOPIC: Mapping[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
}
SPLITS: Mapping[str, range] = {
    "pool": range(0, 8),
    "queries": range(8, 12),
    "chain_core": range(12, 13),
    "chain_long": range(13, 14),
    "chain_distract": range(14, 15),
    "chain_far": range(15, 16),
}
_RESIDUES = 16
_DEFINITION = re.compile(r"([a-z])=([a-z0-9])(?:([-+*])([a-z0-9]))?")

Fault = Callable[[int, str, int], int | None]


def compute(left: int, operator: str, right: int) -> int:
    """Return `left operator right` modulo ten."""
    if operator == "+":
        return (left + right) % MODULUS
    if operator == "-":
        return (left - right) % MODULUS
    if operator == "*":
        return (left * right) % MODULUS
    raise ValueError(f"operator {operator!r} is unknown; expected one of {OPERATORS!r}")


@dataclass(frozen=True)
class Definition:
    """`name=left` (a digit), or `name=left operator right` (variables or digits)."""

    name: str
    left: str
    operator: str = ""
    right: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.left}{self.operator}{self.right}"

    @property
    def uses(self) -> tuple[str, ...]:
        """Return the variables that this definition refers to."""
        return tuple(term for term in (self.left, self.right) if term.isalpha())


@dataclass(frozen=True)
class Problem:
    """Definitions, each after those that it uses, and the variable asked for."""

    definitions: tuple[Definition, ...]
    asked: str

    @property
    def prompt(self) -> str:
        """Return the text of the problem; it ends with `?` and the response follows directly."""
        return ",".join(map(str, self.definitions)) + f";{self.asked}?"

    @cached_property
    def needed(self) -> tuple[Definition, ...]:
        """Return the definitions that the question depends on, in the order of the text."""
        names = {self.asked}
        for definition in reversed(self.definitions):
            if definition.name in names:
                names.update(definition.uses)
        return tuple(d for d in self.definitions if d.name in names)

    @property
    def hops(self) -> int:
        """Return the number of operations that the question takes."""
        return sum(bool(d.operator) for d in self.needed)

    @property
    def answer(self) -> int:
        """Return the value of the variable asked for."""
        return work(self.needed)[-1].value

    def renamed(self, names: Mapping[str, str]) -> "Problem":
        """Return the same problem with other variable names."""

        def swap(term: str) -> str:
            return names.get(term, term)

        definitions = (
            Definition(swap(d.name), swap(d.left), d.operator, swap(d.right))
            for d in self.definitions
        )
        return Problem(tuple(definitions), swap(self.asked))


@dataclass(frozen=True)
class Step:
    """One worked definition: `name=left operator right=value`, or `name=value`."""

    name: str
    value: int
    left: int = 0
    operator: str = ""
    right: int = 0

    def __str__(self) -> str:
        if not self.operator:
            return f"{self.name}={self.value}"
        return f"{self.name}={self.left}{self.operator}{self.right}={self.value}"

    @property
    def true(self) -> bool:
        """Return whether the arithmetic of the step is right."""
        return not self.operator or self.value == compute(self.left, self.operator, self.right)


def work(definitions: Sequence[Definition], fault: Fault | None = None) -> list[Step]:
    """Work definitions out in the order given; `fault` may replace the value of an operation."""
    values: dict[str, int] = {}
    steps = []
    for d in definitions:
        left = values[d.left] if d.left.isalpha() else int(d.left)
        if d.operator:
            right = values[d.right] if d.right.isalpha() else int(d.right)
            wrong = fault(left, d.operator, right) if fault else None
            value = compute(left, d.operator, right) if wrong is None else wrong
            steps.append(Step(d.name, value, left, d.operator, right))
        else:
            steps.append(Step(d.name, left))
        values[d.name] = steps[-1].value
    return steps


def write(steps: Sequence[Step], answer: object) -> str:
    """Return the response made of these steps and this final answer."""
    return " ".join(map(str, steps)) + f"{MARK}{answer}"


def solution(problem: Problem) -> str:
    """Return the reference response: the needed steps and the answer, nothing else."""
    steps = work(problem.needed)
    return write(steps, steps[-1].value)


def draw(
    rng: np.random.Generator,
    hops: int,
    *,
    operators: str = OPERATORS,
    weights: Sequence[float] | None = None,
    require: str = "",
    distractors: int = 0,
) -> Problem:
    """Draw a problem with exactly `hops` operations on the way to the question.

    A definition takes the one before and a digit with chance `PREVIOUS`, else an earlier one and
    the one before. `require` names an operator that occurs at least once. Distractors stand
    anywhere in the text.
    """
    if not 1 <= hops <= len(LETTERS) - 1 - distractors:
        raise ValueError(
            f"hops {hops!r} with {distractors} distractors; expected 1 to "
            f"{len(LETTERS) - 1 - distractors}, there are {len(LETTERS)} letters"
        )
    names = [LETTERS[i] for i in rng.permutation(len(LETTERS))]
    chosen = [operators[i] for i in rng.choice(len(operators), size=hops, p=weights)]
    if require and require not in chosen:
        chosen[int(rng.integers(hops))] = require
    digits = rng.integers(0, MODULUS, size=hops + 1)
    earlier = rng.random(hops) >= PREVIOUS
    text = [Definition(names[0], str(digits[0]))]
    for i, operator in enumerate(chosen, start=1):
        if earlier[i - 1] and i > 1:
            other = names[int(rng.integers(i - 1))]
            text.append(Definition(names[i], other, operator, names[i - 1]))
        else:
            digit = int(digits[i])
            if operator == "*" and digit < 2:  # times 0 and 1 hide what came before, teach little
                digit = int(rng.integers(2, MODULUS))
            text.append(Definition(names[i], names[i - 1], operator, str(digit)))
    for name in names[hops + 1 : hops + 1 + distractors]:
        place = int(rng.integers(1, len(text) + 1))
        source = text[int(rng.integers(place))].name
        operator = operators[int(rng.integers(len(operators)))]
        text.insert(place, Definition(name, source, operator, str(rng.integers(2, MODULUS))))
    return Problem(tuple(text), names[hops])


def parse(prompt: str) -> Problem:
    """Read a problem back from its text."""
    body, _, asked = prompt.removesuffix("?").partition(";")
    matches = [_DEFINITION.fullmatch(part) for part in body.split(",")]
    if not all(matches) or not prompt.endswith("?") or len(asked) != 1:
        raise ValueError(f"prompt {prompt!r} is not a chain; expected like 'c=3,y=c*2;y?'")
    definitions = tuple(Definition(*(group or "" for group in m.groups())) for m in matches if m)
    names = {d.name for d in definitions}
    if asked not in names or len(names) != len(definitions):
        raise ValueError(f"prompt {prompt!r} asks for or redefines a variable; expected each once")
    return Problem(definitions, asked)


def canonical(prompt: str) -> str:
    """Return a prompt with distractors dropped and variables renamed in order of appearance."""
    if is_off_topic(prompt):
        return prompt
    problem = parse(prompt)
    needed = problem.needed
    names = dict(zip((d.name for d in needed), LETTERS, strict=False))
    return Problem(needed, problem.asked).renamed(names).prompt


def split_of(prompt: str) -> str:
    """Return the split (pool, queries or a task) that owns the canonical form of a prompt."""
    digest = hashlib.blake2b(canonical(prompt).encode(), digest_size=8).digest()
    residue = int.from_bytes(digest) % _RESIDUES
    return next(name for name, residues in SPLITS.items() if residue in residues)


def draw_from(split: str, make: Callable[[], Problem]) -> Problem:
    """Call `make` until it gives a problem that belongs to `split`."""
    while True:
        problem = make()
        if split_of(problem.prompt) == split:
            return problem


def is_off_topic(prompt: str) -> bool:
    """Return whether a prompt is one of the string exercises."""
    return prompt.partition(" ")[0] in OFF_TOPIC
