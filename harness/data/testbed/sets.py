"""The testbed's pool, query set and evaluation tasks, and the proof that they are disjoint.

The pool has eight classes of examples, good and bad, in known shares. The class (`quality`) is for
oracles and for scoring selectors; selectors never see it. All wrong facts are about multiplication,
the knowledge that the base model lacks. With systematic errors the tables of `WRONG_TABLES` are
always off by one; with random errors the digit is drawn anew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.data.testbed.chains import (
    LETTERS,
    MODULUS,
    OFF_TOPIC,
    Problem,
    Step,
    canonical,
    draw,
    draw_from,
    solution,
    work,
    write,
)

Errors = Literal["systematic", "random", "none"]
Row = dict[str, Any]

SHARES: Mapping[str, float] = {
    "clean-hard": 0.30,
    "clean-easy": 0.15,
    "near-duplicate": 0.10,
    "wrong-step": 0.15,
    "unfaithful": 0.05,
    "wrong-answer": 0.10,
    "verbose": 0.05,
    "off-topic": 0.10,
}
QUALITY: tuple[str, ...] = tuple(SHARES)
CORRECT: frozenset[str] = frozenset({"clean-hard", "clean-easy", "near-duplicate", "verbose"})
# Best first for learning the target; within a tier every order is as good as any other.
TIERS: tuple[tuple[str, ...], ...] = (
    ("clean-hard",),
    ("verbose",),
    ("near-duplicate",),
    ("clean-easy",),
    ("off-topic",),
    ("wrong-answer",),
    ("unfaithful",),
    ("wrong-step",),
)
WRONG_TABLES = (7,)  # right operands whose products are one too large under systematic errors
HARD_HOPS = (3, 4, 5)
DUPLICATE_SEEDS = 5
HARD_WEIGHTS = (0.25, 0.25, 0.5)
_EASY_WEIGHTS = (0.4, 0.4, 0.2)
TASKS: tuple[str, ...] = ("chain_core", "chain_long", "chain_distract", "chain_far")


@dataclass(frozen=True)
class PoolSpec:
    """Size, kind of errors and seed of a pool; `none` repairs every wrong response."""

    size: int = 1000
    errors: Errors = "systematic"
    seed: int = 0


def class_counts(size: int) -> dict[str, int]:
    """Return how many examples of each class a pool of `size` has (largest remainders)."""
    exact = {name: share * size for name, share in SHARES.items()}
    counts = {name: int(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1
    return counts


def make_pool(spec: PoolSpec) -> list[Row]:
    """Return the pool as rows: id, prompt, response, answer, steps, quality.

    `answer` is what the response states, as in a data set whose labels may be wrong. The order is
    random, so that neither id nor position tells the class.
    """
    if spec.size < len(QUALITY):
        raise ValueError(f"pool size {spec.size!r} is too small; expected at least {len(QUALITY)}")
    if spec.errors not in ("systematic", "random", "none"):
        raise ValueError(f"errors {spec.errors!r}; expected 'systematic', 'random' or 'none'")
    maker = _Maker(np.random.default_rng([spec.seed, 1]), spec.errors)
    rows = [
        maker.row(name, position)
        for name, count in class_counts(spec.size).items()
        for position in range(count)
    ]
    order = np.random.default_rng([spec.seed, 2]).permutation(len(rows))
    width = max(4, len(str(spec.size)))
    return [{"id": f"p{i:0{width}d}"} | rows[j] for i, j in enumerate(order)]


class _Maker:
    """Draws examples of each class from one generator; prompts do not repeat."""

    def __init__(self, rng: np.random.Generator, errors: Errors) -> None:
        self.rng = rng
        self.errors = errors
        self.seen: set[str] = set()
        self.seeds: list[Problem] = []
        self.makers: dict[str, Callable[[int], Row]] = {
            "clean-hard": lambda _: self.clean(self.hard()),
            "clean-easy": lambda _: self.clean(self.easy()),
            "near-duplicate": lambda position: self.clean(self.duplicate(position)),
            "wrong-step": lambda _: self.faulty(keep_answer=False),
            "unfaithful": lambda _: self.faulty(keep_answer=True),
            "wrong-answer": lambda _: self.flipped(),
            "verbose": lambda _: self.verbose(),
            "off-topic": lambda _: self.off_topic(),
        }

    def row(self, quality: str, position: int) -> Row:
        """Return a new example of the class whose prompt does not occur yet."""
        while True:
            row = self.makers[quality](position)
            if row["prompt"] not in self.seen:
                self.seen.add(row["prompt"])
                return row | {"quality": quality}

    def hard(self, **options: Any) -> Problem:
        return draw_from("pool", lambda: draw_core(self.rng, **options))

    def easy(self) -> Problem:
        return draw_from("pool", lambda: draw(self.rng, 1, weights=_EASY_WEIGHTS))

    def duplicate(self, position: int) -> Problem:
        if len(self.seeds) < DUPLICATE_SEEDS:
            self.seeds.append(self.hard())
        seed = self.seeds[position % DUPLICATE_SEEDS]
        letters = [LETTERS[i] for i in self.rng.permutation(len(LETTERS))]
        return seed.renamed(dict(zip(LETTERS, letters, strict=True)))

    def clean(self, problem: Problem) -> Row:
        return _row(problem)

    def faulty(self, keep_answer: bool) -> Row:
        """One false product, then consistent steps; the stated answer is theirs or the true one.

        A problem is drawn again when the error is lost on the way (the trace would end right), or
        when its trace has not exactly one place for the systematic error.
        """
        while True:
            problem = self.hard()
            truth = problem.answer
            steps = work(problem.needed, self.fault(problem))
            if self.errors == "none":
                return self.clean(problem)
            if sum(not step.true for step in steps) == 1 and steps[-1].value != truth:
                stated = truth if keep_answer else steps[-1].value
                return _row(problem, write(steps, stated))

    def fault(self, problem: Problem) -> Callable[[int, str, int], int | None] | None:
        if self.errors == "none":
            return None
        if self.errors == "systematic":
            return systematic_fault
        products = [i for i, d in enumerate(problem.needed[1:]) if d.operator == "*"]
        place = products[int(self.rng.integers(len(products)))]
        shift = int(self.rng.integers(1, MODULUS))
        countdown = iter(range(problem.hops))

        def one_random_digit(left: int, operator: str, right: int) -> int | None:
            return (left * right + shift) % MODULUS if next(countdown) == place else None

        return one_random_digit

    def flipped(self) -> Row:
        problem = self.hard()
        steps = work(problem.needed)
        shift = 1 if self.errors == "systematic" else int(self.rng.integers(1, MODULUS))
        stated = problem.answer if self.errors == "none" else (problem.answer + shift) % MODULUS
        return _row(problem, write(steps, stated))

    def verbose(self) -> Row:
        """Work the distractors out as well, then restate every value that matters."""
        problem = self.hard(hops=HARD_HOPS[0], distractors=1)  # short: no batch gets longer for it
        steps = work(problem.definitions)
        values = {step.name: step.value for step in steps}
        again = [Step(d.name, values[d.name]) for d in problem.needed]
        return _row(problem, write([*steps, *again], problem.answer))

    def off_topic(self) -> Row:
        words = list(OFF_TOPIC)
        word = words[int(self.rng.integers(len(words)))]
        text = "".join(LETTERS[i] for i in self.rng.integers(0, len(LETTERS), size=8))
        answer = OFF_TOPIC[word](text)
        response = f"{answer} #### {answer}"
        return {"prompt": f"{word} {text}?", "response": response, "answer": answer, "steps": 0}


def draw_core(rng: np.random.Generator, hops: int | None = None, **options: Any) -> Problem:
    """Draw a problem like those of `chain_core`: 3 to 5 hops, at least one product."""
    count = HARD_HOPS[int(rng.integers(len(HARD_HOPS)))] if hops is None else hops
    return draw(rng, count, weights=HARD_WEIGHTS, require="*", **options)


def systematic_fault(left: int, operator: str, right: int) -> int | None:
    """Return the wrong product that every systematic error uses, or None where facts stay right."""
    if operator == "*" and right in WRONG_TABLES:
        return (left * right + 1) % MODULUS
    return None


def make_queries(n: int, seed: int) -> list[Row]:
    """Return `n` problems drawn like `chain_core`, with reference responses."""
    rng = np.random.default_rng([seed, 3])
    return _problems("queries", "q", n, lambda: draw_core(rng))


def make_task(name: str, n: int, seed: int) -> list[Row]:
    """Return `n` items of a task: id, prompt, response, answer, steps."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; expected one of {list(TASKS)}")
    rng = np.random.default_rng([seed, 4, TASKS.index(name)])

    def make() -> Problem:
        if name == "chain_long":
            return draw_core(rng, hops=6)
        if name == "chain_distract":
            return draw_core(rng, hops=int(rng.integers(3, 5)), distractors=1)
        if name == "chain_far":
            return draw(rng, int(rng.integers(3, 6)), operators="+-")
        return draw_core(rng)

    return _problems(name, f"{name}-", n, make)


def _problems(split: str, prefix: str, n: int, make: Callable[[], Problem]) -> list[Row]:
    seen: set[str] = set()
    rows: list[Row] = []
    while len(rows) < n:
        problem = draw_from(split, make)
        form = canonical(problem.prompt)
        if form in seen:
            continue
        seen.add(form)
        rows.append({"id": f"{prefix}{len(rows):04d}"} | _row(problem))
    return rows


def check_disjoint(
    pool: Sequence[Mapping[str, Any]],
    queries: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Raise when one problem, whatever its variable names, occurs in two of the sets."""
    owner: dict[str, tuple[str, str]] = {}
    sets: Iterable[tuple[str, Sequence[Mapping[str, Any]]]] = (
        ("pool", pool),
        ("queries", queries),
        *tasks.items(),
    )
    for name, rows in sets:
        for row in rows:
            form = canonical(row["prompt"])
            held_by, item = owner.setdefault(form, (name, row["id"]))
            if held_by != name:
                raise ValueError(
                    f"item {row['id']!r} of {name} is item {item!r} of {held_by} up to variable "
                    f"names ({row['prompt']!r}); expected disjoint sets"
                )


def oracle_order(quality: Sequence[str], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return all positions, best class first, in random order within a class."""
    tier = {name: level for level, names in enumerate(TIERS) for name in names}
    unknown = sorted(set(quality) - set(tier))
    if unknown:
        raise ValueError(f"quality classes {unknown!r} are unknown; expected {list(QUALITY)}")
    shuffled = rng.permutation(len(quality))
    levels = np.array([tier[quality[i]] for i in shuffled])
    return np.asarray(shuffled[np.argsort(levels, kind="stable")], dtype=np.int64)


def anti_oracle_order(quality: Sequence[str], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return all positions, worst class first, in random order within a class."""
    return oracle_order(quality, rng)[::-1].copy()


def _row(problem: Problem, response: str | None = None) -> Row:
    """A problem with this response, or with the reference response."""
    response = solution(problem) if response is None else response
    stated = response.rpartition("#### ")[2]
    steps = problem.hops
    return {"prompt": problem.prompt, "response": response, "answer": stated, "steps": steps}
