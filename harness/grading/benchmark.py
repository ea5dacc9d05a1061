"""Benchmarks whose answers can be graded, and how."""

from __future__ import annotations

from dataclasses import dataclass

from harness.grading.extraction import Kind


@dataclass(frozen=True)
class Benchmark:
    """`items`: size of its test set; `kind` of its answers."""

    name: str
    title: str
    items: int
    kind: Kind


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("gsm8k", "GSM8K, grade-school word problems", 1319, "number"),
        Benchmark("math500", "MATH-500, competition problems", 500, "math"),
        Benchmark("amc23", "AMC 12 of 2023", 40, "number"),
        Benchmark("aime24", "AIME of 2024", 30, "number"),
        Benchmark("aime25", "AIME of 2025", 30, "number"),
        Benchmark("olympiadbench", "OlympiadBench, open-ended English mathematics", 675, "math"),
        Benchmark("minerva", "Minerva, undergraduate science", 272, "math"),
        Benchmark("gpqa_diamond", "GPQA Diamond, graduate science, four choices", 198, "choice"),
    )
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; ValueError with those there are."""
    if name not in BENCHMARKS:
        raise ValueError(f"task {name!r} has no grader; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
