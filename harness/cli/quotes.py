"""After a run: copies the texts that its page quotes from the store into the results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.data.items import ITEMS_FILE, read_items
from harness.experiment import records
from harness.experiment.records import parquet_bytes
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.reporting import quotes
from harness.reporting.results import load
from harness.running.plan import Plan
from harness.running.recipes import BuiltinItemsRecipe


def write_texts(plan: Plan, store: Store, folder: Path) -> None:
    """Keep what a report may quote: examples of each arm's pool, and questions with answers.

    Files whose artefacts are in another store stay as they are.
    """
    if not records.read(folder):
        return
    arms = {results.arm: results for results in load(folder)}
    quoted_items: set[tuple[str, str]] = set()
    for arm, stage in plan.pools.items():
        pool = store.get(stage)
        if pool is not None:
            builtin = plan.experiment.pool.testbed is not None
            shown = None if builtin else quotes.shown_examples(arms[arm])
            columns = ["id", *quotes.EXAMPLE_COLUMNS]
            frame = pd.read_parquet(pool.folder / "pool.parquet", columns=columns)
            kept = quotes.kept_examples(frame, shown)
            records.write_atomic(folder / quotes.examples_file(arm), parquet_bytes(kept))
        quoted_items |= set(quotes.shown_questions(arms[arm]))
    parts = [
        _questions(task, stage, store, quoted_items)
        for task, stage in plan.cells[0].samples.items()
    ]
    if parts and all(frame is not None for frame in parts):
        whole = pd.concat(parts, ignore_index=True)
        records.write_atomic(folder / quotes.QUESTIONS, parquet_bytes(whole))


def _questions(
    task: str, samples: Stage, store: Store, shown: set[tuple[str, str]]
) -> pd.DataFrame | None:
    """What is kept of a task's items; None where they are not in the store."""
    items = samples.parents["items"]
    artefact = store.get(items)
    if artefact is None:
        return None
    rows = read_items(artefact.folder / ITEMS_FILE)
    frame = pd.DataFrame(
        [
            # The bare question, without a chat template, where the item has it.
            (task, row["id"], row.get("question", row["prompt"]), row["answer"])
            for row in rows
        ],
        columns=["task", "item", *quotes.QUESTION_COLUMNS],
    )
    return quotes.kept_questions(
        frame, None if isinstance(items.recipe, BuiltinItemsRecipe) else sorted(shown)
    )
