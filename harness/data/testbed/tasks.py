"""The testbed's query set and evaluation tasks, and the proof that they are disjoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.data.testbed.chains import Problem, canonical, draw, draw_from, solution
from harness.data.testbed.pool import draw_core

Row = dict[str, Any]

TASKS: tuple[str, ...] = ("chain_core", "chain_long", "chain_distract", "chain_far")


def make_queries(n: int, seed: int) -> list[Row]:
    """Return `n` problems drawn like `chain_core`, with reference responses."""
    rng = np.random.default_rng([seed, 3])
    return _rows("queries", "q", n, lambda: draw_core(rng))


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

    return _rows(name, f"{name}-", n, make)


def _rows(split: str, prefix: str, n: int, make: Callable[[], Problem]) -> list[Row]:
    seen: set[str] = set()
    rows: list[Row] = []
    while len(rows) < n:
        problem = draw_from(split, make)
        form = canonical(problem.prompt)
        if form in seen:
            continue
        seen.add(form)
        rows.append(
            {
                "id": f"{prefix}{len(rows):04d}",
                "prompt": problem.prompt,
                "response": solution(problem),
                "answer": str(problem.answer),
                "steps": problem.hops,
            }
        )
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
