"""Influence of a pool on C and I as a selector reads it: computed for a request, kept as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool
from harness.data.queries import Queries
from harness.experiment.progress import Progress, no_progress
from harness.selection.requests import InfluenceTable

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from harness.influence import Curvature

TABLE = "influence.parquet"
PER_QUERY = "queries.safetensors"


@dataclass(frozen=True)
class InfluenceScores:
    """What a selector gets for an `InfluenceTable`.

    `table`: columns id, s_C, s_I, r_C, r_I (of the sides there are), one row per example in pool
    order; `attrs` holds n_C and n_I, the number of queries behind s. `per_query`: infl(v, d) of the
    queries behind the ranks, "C" and "I", each [n, q] in pool order.
    """

    table: pd.DataFrame
    per_query: Mapping[str, npt.NDArray[np.float32]]

    def save(self, folder: Path) -> None:
        """Write the table and the columns of single queries into `folder`."""
        from safetensors.numpy import save_file

        table = self.table.copy()
        table.attrs = {}  # parquet would keep them, times included: equal scores, unequal bytes
        table.to_parquet(folder / TABLE, index=False)
        columns = {side: np.ascontiguousarray(values) for side, values in self.per_query.items()}
        save_file(columns, folder / PER_QUERY)

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any]) -> InfluenceScores:
        """Read what `save` wrote; `facts` are what the builder returned beside it."""
        import pandas as pd
        from safetensors.numpy import load_file

        table = pd.read_parquet(folder / TABLE)
        table.attrs = {name: facts[name] for name in ("n_C", "n_I") if name in facts}
        return cls(table, load_file(folder / PER_QUERY))


def compute_influence(
    request: InfluenceTable,
    model: nn.Module,
    pool: Pool,
    queries: Queries,
    curvature: Curvature | None = None,
    progress: Progress = no_progress,
) -> tuple[InfluenceScores, dict[str, Any]]:
    """The scores for `request` at `model`, and facts about them, `operations` among these.

    `curvature`: fitted on `pool` already; None fits it here. ValueError where fine-tuning changed
    the verdict on no query at all.
    """
    from harness.influence import fit, flipped, influence_scores
    from harness.influence.costs import scores_operations

    names = {"whose": request.whose, "completion": request.completion, "decodes": request.decodes}
    both = {side: flipped(queries, side, **names) for side in ("C", "I")}
    # An empty side has no columns; the selector that wants it says what is missing.
    sides = {side: completions for side, completions in both.items() if len(completions)}
    if not sides:
        raise ValueError(
            f"fine-tuning on the whole pool changed none of {len(queries.pool)} queries from "
            "wrong to right or back (C and I are empty); expected at least one: ask more "
            "queries, or train longer"
        )
    if curvature is None:
        curvature = fit(model, pool, request.curvature, progress=progress)
    per_query: dict[str, npt.NDArray[np.float32]] = {}
    table = influence_scores(
        model,
        pool,
        sides.get("C"),
        sides.get("I"),
        curvature=curvature,
        columns=per_query,
        aggregate=request.aggregate,
        max_queries=request.max_queries,
        query_seed=request.query_seed,
        method=request.method,
        progress=progress,
    )
    facts = {**table.attrs, **names}
    facts["operations"] = scores_operations(pool, list(sides.values()), curvature.options, facts)
    table.attrs = {name: facts[name] for name in ("n_C", "n_I") if name in facts}
    return InfluenceScores(table, per_query), facts
