"""Any outcomes table, analysed: which method is better, how sure is that, and what is missing.

`read` takes a file of anybody's results, `analyse` compares every method with a reference on the
seeds and items that both have. Nothing is imputed: what is missing or left out is counted by name.
"""

from harness.reporting.outcomes.analyse import Analysis, Section, analyse
from harness.reporting.outcomes.outcomes import Measured, read

__all__ = ["Analysis", "Measured", "Section", "analyse", "read"]
