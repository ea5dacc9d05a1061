"""What is known of a pool's examples, beside a row's choice among them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.reporting.results import Results

SCORE = "score"
"""The column of a selection that its row ranks by."""
FACTS = ("quality", "response_tokens", "steps")


def middle(results: Results) -> float:
    """The fraction nearest to one half, the lower of two: for figures that show only one."""
    return min(results.fractions, key=lambda share: (abs(share - 0.5), share))


def described(results: Results, chosen: pd.DataFrame) -> pd.DataFrame:
    """A selection with the pool's `FACTS` of every example, missing where they are not known."""
    if results.pool is None:
        return chosen.assign(**dict.fromkeys(FACTS))
    known = results.pool.reindex(columns=["id", *FACTS])
    if chosen["id"].equals(known["id"]):  # as a run writes them; looking ids up takes far longer
        return chosen.assign(**{name: known[name] for name in FACTS})
    return chosen.merge(known, on="id", how="left", validate="1:1")


def score_column(chosen: pd.DataFrame) -> str | None:
    """The column a row ranks by; where it ranks by none, the first number its selector noted."""
    if SCORE in chosen:
        return SCORE
    noted = chosen.drop(columns=["id", "chosen"]).select_dtypes("number")
    return next((str(name) for name in noted if np.isfinite(noted[name]).all()), None)


def planted(results: Results, points: pd.DataFrame) -> list[str]:
    """Planted classes of errors: all but the correct ones; empty where none are known to be."""
    if results.repaired:
        return []
    correct = set(results.facts.get("correct_classes", ()))
    return sorted(set(points["quality"].dropna()) - correct)
