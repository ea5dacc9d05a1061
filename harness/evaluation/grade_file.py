"""Responses in a file, graded: one verdict per row, and the accuracy with its interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.grading.grader import VERSION, Grader
from harness.data.items import numbered_lines, write_items
from harness.evaluation.benchmarks import Benchmark
from harness.stats import wilson

ADDED = ("correct", "extracted", "rule")
"""Columns that grading adds to a row, in place of its own columns of these names."""


@dataclass
class Graded:
    """`rows`: the input's columns with `id` and `ADDED`; `malformed`: row numbers and reasons."""

    benchmark: Benchmark
    rows: list[dict[str, Any]] = field(default_factory=list)
    malformed: list[tuple[int, str]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For JSON; Wilson's 95% interval, rows taken as independent."""
        n, correct = len(self.rows), sum(row["correct"] for row in self.rows)
        low, high = wilson(correct / n, n)
        return {
            "task": self.benchmark.name,
            "grader": VERSION,
            "n": n,
            "n_correct": correct,
            "accuracy": correct / n,
            "ci_low": low,
            "ci_high": high,
            "rows": [{name: row[name] for name in ("id", *ADDED)} for row in self.rows],
            "malformed": [{"row": number, "reason": reason} for number, reason in self.malformed],
        }


def grade_file(
    path: Path,
    benchmark: Benchmark,
    *,
    response: str = "response",
    answer: str = "answer",
    id: str = "id",
    progress: Callable[..., Iterable[Any]] | None = None,
) -> Graded:
    """Grade every row of a JSON Lines file that can be graded.

    `response`, `answer`, `id`: columns; a row without an id has its number, from 1.

    Raises:
        ValueError: no row can be graded; names the first reasons.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines")
    lines = [(n, line) for n, line in numbered_lines(path, errors="replace") if line.strip()]
    graded = Graded(benchmark)
    with Grader(benchmark.kind) as grader:
        for number, line in lines if progress is None else progress(lines, "grading", len(lines)):
            try:
                row = _row(line, response, answer)
                verdict = grader.grade(row[response], _reference(row[answer]))
            except ValueError as error:
                graded.malformed.append((number, str(error)))
                continue
            added = {name: getattr(verdict, name) for name in ADDED}
            graded.rows.append({**row, "id": row.get(id, number), **added})
    if not graded.rows:
        reasons = "; ".join(f"row {n}: {why}" for n, why in graded.malformed[:3]) or "it is empty"
        raise ValueError(
            f"{path}: no row can be graded ({reasons}); expected JSON objects with {response!r} "
            f"and {answer!r}"
        )
    return graded


def write(graded: Graded, path: Path) -> None:
    """Write the rows as JSON Lines."""
    write_items(path, graded.rows)


def lines(graded: Graded) -> Iterator[str]:
    """The summary in words."""
    facts, benchmark = graded.summary(), graded.benchmark
    share, low, high = (100 * facts[name] for name in ("accuracy", "ci_low", "ci_high"))
    counts = f"{facts['n_correct']} of {facts['n']} correct"
    yield f"{benchmark.name}: {counts}, {share:.1f}% [{low:.1f}, {high:.1f}]"
    rules = Counter(row["rule"] for row in graded.rows)
    ordered = sorted(rules.items(), key=lambda item: (-item[1], item[0]))
    yield "answers found by: " + ", ".join(f"{rule} {count}" for rule, count in ordered)
    if facts["n"] not in benchmark.sizes:
        sizes = " or ".join(map(str, benchmark.sizes))
        yield f"note: {facts['n']} rows were graded; the test set of {benchmark.name} has {sizes}"
    if len({str(row["id"]) for row in graded.rows}) < facts["n"]:
        yield "note: ids repeat; the interval takes rows as independent"


def _row(line: str, response: str, answer: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}; expected an object")
    for name in (response, answer):
        if name not in row:
            raise ValueError(f"no {name!r}; its columns are {sorted(row)[:8]}")
    if not isinstance(row[response], str):
        raise ValueError(f"{response!r} is a {type(row[response]).__name__}; expected a text")
    return row


def _reference(answer: Any) -> str:
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"answer is a {type(answer).__name__}; expected a text or a number")
    return str(answer)
