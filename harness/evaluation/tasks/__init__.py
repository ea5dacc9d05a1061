"""Evaluation tasks: frozen files, one for each, that say how its items are asked and graded.

The files are lm-eval's, and readable without it. Those in `benchmarks/` also hold where the items
come from (a hub data set at one commit), how many there are, the instruction behind each question,
the limit of tokens and the kind of the answers.
"""

from harness.evaluation.tasks.benchmark import BENCHMARKS, Benchmark, benchmark
from harness.evaluation.tasks.files import LOCAL, TASKS, task_digest, task_file, titles
from harness.evaluation.tasks.items import find_file, make_items

__all__ = [
    "BENCHMARKS",
    "LOCAL",
    "TASKS",
    "Benchmark",
    "benchmark",
    "find_file",
    "make_items",
    "task_digest",
    "task_file",
    "titles",
]
