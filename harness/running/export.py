"""A chosen subset as a data set: the examples themselves, best first."""

from __future__ import annotations

import json
from pathlib import Path

from harness.data.pool import Pool
from harness.experiment.store import Store
from harness.running.plan import Plan
from harness.selection.subset import read_scores, read_subset


def export(
    plan: Plan, store: Store, arm: str, row: str, fraction: float, seed: int, path: Path
) -> int:
    """Write the subset of one finished cell to a .jsonl or .parquet file; return its size.

    Each line has id, rank (0 is best), prompt, response, the data set's other columns, and the
    scores behind the choice where the selector has any.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out {str(path)!r}; expected a name ending in .jsonl or .parquet")
    cells = [c for c in plan.cells if c.arm == arm and c.row.row == row and c.subset is not None]
    matching = [c for c in cells if c.fraction == fraction and c.seed == seed]
    if not matching:
        have = sorted({(c.fraction, c.seed) for c in cells})
        rows = sorted({c.row.row for c in plan.cells if c.subset is not None})
        hint = f"fraction and seed among {have}" if have else f"a row among {rows}"
        raise ValueError(f"no cell {row!r} at {fraction} with seed {seed}; expected {hint}")
    stage = matching[0].subset
    assert stage is not None
    subset = store.get(stage)
    if subset is None:
        raise ValueError(
            f"the subset of {matching[0].name} is not built yet; "
            f"expected a run of it before: cotsieve run {plan.experiment.name} --only row={row}"
        )
    pool = Pool.load(store.folder(stage.parents["pool"]))
    scored = stage.parents.get("scores")
    scores = read_scores(store.folder(scored) if scored else subset.folder)
    where = {name: i for i, name in enumerate(scores.get("id", []))}
    chosen = pool.take_ids(read_subset(subset.folder))
    rows_out = []
    for rank, name in enumerate(chosen.ids):
        entry = {"id": name, "rank": rank}
        entry |= {column: values[rank] for column, values in chosen.columns.items()}
        entry |= {c: values[where[name]] for c, values in scores.items() if c != "id"}
        rows_out.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows_out).to_parquet(path, index=False)
    else:
        lines = [json.dumps(entry, ensure_ascii=False) for entry in rows_out]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows_out)
