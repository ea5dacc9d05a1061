"""Answers found in responses and compared with references, for benchmarks that people publish on.

A response is text that a model wrote: nothing of it is ever evaluated as code, and no response can
hold a run up (see equivalence.py). How an answer was found is part of its verdict.
"""

from harness.data.grading.equivalence import Comparer
from harness.data.grading.extraction import Extracted, extract
from harness.data.grading.grader import KINDS, Grader, PlainGrader, Verdict, open_grader

__all__ = [
    "KINDS",
    "Comparer",
    "Extracted",
    "Grader",
    "PlainGrader",
    "Verdict",
    "extract",
    "open_grader",
]
