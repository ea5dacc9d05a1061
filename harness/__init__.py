"""cotsieve: which chain-of-thought examples are worth fine-tuning on?"""

from harness.data.pool import Pool
from harness.data.queries import Answers, Queries
from harness.selection.context import Context, Warmup
from harness.selection.selector import Positions, Scores, ScoreSelector, Selector

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "Context",
    "Pool",
    "Positions",
    "Queries",
    "ScoreSelector",
    "Scores",
    "Selector",
    "Warmup",
    "__version__",
]
