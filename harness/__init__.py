"""cotsieve: which chain-of-thought examples are worth fine-tuning on?"""

from harness.pool import Pool
from harness.selector import Context, Positions, Queries, Scores, ScoreSelector, Selector, Warmup

__version__ = "0.1.0"

__all__ = [
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
