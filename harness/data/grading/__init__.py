"""Answers extracted from responses and compared with references.

A response is text that a model wrote: nothing of it is ever evaluated as code, and no response can
hold up a run (see equivalence.py). How an answer was found is part of its verdict.
"""

from harness.data.grading.equivalence import Comparer
from harness.data.grading.extraction import KINDS, Extracted, Kind, extract
from harness.data.grading.grader import Grader, Verdict, normalise

__all__ = ["KINDS", "Comparer", "Extracted", "Grader", "Kind", "Verdict", "extract", "normalise"]
