"""cotsieve: which chain-of-thought examples are worth fine-tuning on?"""

from harness.data.pool import Pool
from harness.data.queries import Answers, Queries
from harness.selection.context import Context
from harness.selection.requests import (
    BaseModel,
    ChosenBy,
    Decodes,
    Features,
    FittedCurvature,
    InfluenceTable,
    QueryAnswers,
    QuerySet,
    ReferenceModel,
    Request,
    Tokenizer,
    Trajectory,
)
from harness.selection.selector import Positions, Scores, ScoreSelector, Selector

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "BaseModel",
    "ChosenBy",
    "Context",
    "Decodes",
    "Features",
    "FittedCurvature",
    "InfluenceTable",
    "Pool",
    "Positions",
    "Queries",
    "QueryAnswers",
    "QuerySet",
    "ReferenceModel",
    "Request",
    "ScoreSelector",
    "Scores",
    "Selector",
    "Tokenizer",
    "Trajectory",
    "__version__",
]
