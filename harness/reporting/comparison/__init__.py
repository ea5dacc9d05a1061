"""Two rows of an experiment, set against each other from its records.

Accuracy by task with a paired difference, the items that changed most, what was chosen and what it
cost; in the end one sentence that the numbers allow. Needs neither torch nor a store.
"""

from harness.reporting.comparison.compare import Story, compare
from harness.reporting.comparison.row import fitting

__all__ = ["Story", "compare", "fitting"]
