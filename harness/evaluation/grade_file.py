"""Responses in a file, graded: one verdict per row, and what they amount to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.grading.grader import VERSION, Grader
from harness.data.items import numbered_lines
from harness.evaluation.benchmarks import Benchmark
from harness.experiment.records import write_atomic
from harness.stats import wilson

Progress = Callable[..., Iterable[Any]]
ADDED = ("correct", "extracted", "rule")
"""Columns that grading adds to a row; a row's own of these names are replaced."""


@dataclass
class Graded:
    """`rows`: the input's columns with `id` and `ADDED`; `malformed`: row number and reason."""

    benchmark: Benchmark
    rows: list[dict[str, Any]] = field(default_factory=list)
    malformed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def correct(self) -> int:
        """Rows with a right answer."""
        return sum(row["correct"] for row in self.rows)

    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval for the share of right answers, rows taken as independent."""
        return wilson(self.correct / len(self.rows), len(self.rows))

    def summary(self) -> dict[str, Any]:
        """Fit for JSON."""
        low, high = self.interval()
        return {
            "task": self.benchmark.name,
            "grader": VERSION,
            "n": len(self.rows),
            "n_correct": self.correct,
            "accuracy": self.correct / len(self.rows),
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
    progress: Progress | None = None,
) -> Graded:
    """Grade every row of a JSON-lines file that can be graded.

    `response`, `answer`, `id`: columns; without an id a row is known by its number, from 1.

    Raises:
        ValueError: no row can be graded; the first reasons are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines")
    lines = numbered_lines(path, errors="replace")
    numbered = [(number, line) for number, line in lines if line.strip()]
    shown = numbered if progress is None else progress(numbered, "grading", len(numbered))
    found = Graded(benchmark)
    with Grader(benchmark.kind) as grader:
        for number, line in shown:
            try:
                row = _row(line, response, answer)
                verdict = grader.grade(row[response], _reference(row[answer]))
            except ValueError as error:
                found.malformed.append((number, str(error)))
                continue
            known = {"id": row.get(id, number)}
            added = {name: getattr(verdict, name) for name in ADDED}
            found.rows.append({**row, **known, **added})
    if not found.rows:
        reasons = "; ".join(f"row {n}: {why}" for n, why in found.malformed[:3]) or "it is empty"
        raise ValueError(
            f"{path}: no row can be graded ({reasons}); expected JSON objects with {response!r} "
            f"and {answer!r}"
        )
    return found


def write(graded: Graded, path: Path) -> None:
    """The rows as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) for row in graded.rows)
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def lines(graded: Graded) -> Iterator[str]:
    """The summary in words."""
    n, correct = len(graded.rows), graded.correct
    low, high = graded.interval()
    yield (
        f"{graded.benchmark.name}: {correct} of {n} correct, "
        f"{100 * correct / n:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    )
    rules: dict[str, int] = {}
    for row in graded.rows:
        rules[row["rule"]] = rules.get(row["rule"], 0) + 1
    ordered = sorted(rules.items(), key=lambda item: (-item[1], item[0]))
    yield "answers found by: " + ", ".join(f"{rule} {count}" for rule, count in ordered)
    own = graded.benchmark
    if n not in own.sizes:
        sizes = " or ".join(map(str, own.sizes))
        yield f"note: {n} rows were graded; the test set of {own.name} has {sizes}"
    if len({str(row["id"]) for row in graded.rows}) < n:
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
