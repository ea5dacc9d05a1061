"""What an experiment does about questions that occur in two of its data sets.

Queries are compared with the items of the tasks, the rows of a pool with items and queries: bare
questions only, and nothing of the testbed, whose sets are proved to share no problem. A finding is
a row of the pool or of the query set, and that table's `overlap` says what happens to it: the run
stops, goes on without these rows, or goes on with them.

A comparison is a stage of its own whose key does not hold that choice. So it is built once whatever
the choice, and only where rows are dropped do the keys of everything behind them change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.contamination import (
    POOL,
    QUERY,
    SHARE,
    SHOWN,
    STOCK,
    WORDS,
    Finding,
    Questions,
    describe,
    finding_lines,
    overlap_counts,
    overlaps,
    remedy,
)
from harness.data.items import ITEMS_FILE, read_items
from harness.data.pool import Pool
from harness.experiment.settings import Overlap
from harness.experiment.stage import Stage
from harness.experiment.store import Store
from harness.running.recipes import BuiltinItemsRecipe, DataRecipe, OverlapRecipe

if TYPE_CHECKING:
    import pandas as pd

    from harness.running.workspace import Workspace

FINDINGS = "findings.parquet"
COLUMNS = [field.name for field in fields(Finding)]
MAIN = "main"
ITEMS = "items:"
"""What the role of a task's items begins with."""
REFUSE: Overlap = "refuse"
OUTCOMES: Mapping[Overlap, tuple[str, str]] = {
    "refuse": ("stops the run", "refused"),
    "drop": ("is left out before anything uses it", "dropped"),
    "keep": ("is kept and reported", "kept"),
}
"""What becomes of a finding: before it is known whether there is one, and after."""


@dataclass(frozen=True)
class Check:
    """A comparison, whose rows it is about (`side`), and what becomes of those that are found.

    `arm`: None where all arms share it, as they share the query set.
    """

    side: str
    arm: str | None
    action: Overlap
    stage: Stage

    @property
    def rows(self) -> Stage:
        """The rows that are compared."""
        return self.stage.parents["pool" if self.side == POOL else "queryset"]

    @property
    def used(self) -> Stage:
        """The rows that everything else uses: without those that overlap, where these go."""
        if self.action != "drop":
            return self.rows
        recipe = self.rows.recipe
        assert isinstance(recipe, DataRecipe)
        return Stage(
            replace(recipe, without_overlaps=True),
            f"{self.rows.label} without overlaps",
            {self.rows.kind: self.rows, "overlap": self.stage},
        )

    @property
    def sets(self) -> str:
        """What the rows are compared with, for a reader."""
        roles = [role for role in self.stage.parents if self.stage.parents[role] is not self.rows]
        tasks = [role.removeprefix(ITEMS) for role in roles if role.startswith(ITEMS)]
        return ", ".join([*tasks, *(["the query set"] if "queryset" in roles else [])])

    @property
    def title(self) -> str:
        """Whose rows, for a reader."""
        if self.side == QUERY:
            return "queries"
        return "pool rows" if self.arm in (None, MAIN) else f"pool rows of {self.arm}"

    def is_built(self, store: Store) -> bool:
        """Whether the comparison is in the store."""
        return store.has(self.stage)

    def findings(self, store: Store) -> list[Finding]:
        """What the comparison found."""
        return read(store.load(self.stage).folder)


def compare(
    side: str, rows: Stage, others: Mapping[str, Stage], action: Overlap | None, arm: str | None
) -> Check | None:
    """The comparison of `rows` with `others` by role; None where the testbed leaves nothing of it.

    Others are the items of tasks and, for a pool, the query set as it is used.
    """
    compared = {role: stage for role, stage in others.items() if not _is_builtin(stage)}
    if _is_builtin(rows) or not compared:
        return None
    recipe = OverlapRecipe(side, WORDS, SHARE, STOCK)
    stage = Stage(recipe, f"overlap of the {rows.label}", {rows.kind: rows, **compared})
    return Check(side, arm, action or REFUSE, stage)


def _is_builtin(stage: Stage) -> bool:
    """Whether a data set is the testbed's, whose sets are proved to be disjoint."""
    recipe = stage.recipe
    if isinstance(recipe, DataRecipe):
        return recipe.config.testbed is not None
    return isinstance(recipe, BuiltinItemsRecipe)


def build(recipe: OverlapRecipe, work: Workspace) -> dict[str, Any]:
    """Compare data sets: a line for every finding, and how many rows and pairs were found."""
    parents, store = work.stage.parents, work.store
    others = {
        role.removeprefix(ITEMS): _items(parent, store)
        for role, parent in parents.items()
        if role.startswith(ITEMS)
    }
    if recipe.side == POOL and "queryset" in parents:
        others[QUERY] = _rows(parents["queryset"], store)
    rows = _rows(parents["pool" if recipe.side == POOL else "queryset"], store)
    findings = overlaps(recipe.side, rows, others, n=recipe.words, share=recipe.share)
    frame(findings).to_parquet(work.folder / FINDINGS, index=False)
    pairs = dict(sorted(Counter(finding.other for finding in findings).items()))
    return {"rows": len({finding.id for finding in findings}), "pairs": pairs}


def leave_out(work: Workspace) -> dict[str, Any]:
    """Write the rows of a data set that overlap nothing."""
    kind, parents = work.stage.kind, work.stage.parents
    complete = work.store.load(parents[kind])
    overlapping = {finding.id for finding in read(work.store.load(parents["overlap"]).folder)}
    pool = Pool.load(complete.folder)
    kept = [position for position, name in enumerate(pool.ids) if name not in overlapping]
    if not kept:
        raise ValueError(
            f"{parents[kind].label}: all {len(pool)} rows overlap other data sets; "
            'overlap = "drop" expected at least one that does not'
        )
    remaining = pool.take(kept)
    remaining.save(work.folder)
    report = dict(complete.info["report"])
    report["kept"] -= len(pool) - len(remaining)
    report["truncated"] -= sum(pool.truncated) - sum(remaining.truncated)
    if overlapping:
        reason = "overlaps an evaluation item" + (" or a query" if kind == "pool" else "")
        ids = [name for name in pool.ids if name in overlapping]
        dropped = {"count": len(overlapping), "ids": ids}
        report["problems"] = {**report["problems"], reason: dropped}
    return {"report": report}


def frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """Findings as a table."""
    import pandas as pd

    rows = [asdict(finding) for finding in findings]
    return pd.DataFrame(rows, columns=COLUMNS).astype(
        {name: float if name == "share" else str for name in COLUMNS}
    )


def read(folder: Path) -> list[Finding]:
    """The findings that a comparison wrote."""
    import pandas as pd

    rows = pd.read_parquet(folder / FINDINGS).to_dict("records")
    return [Finding(**{str(name): value for name, value in row.items()}) for row in rows]


def of_arm(checks: Iterable[Check], arm: str) -> list[Check]:
    """The comparisons that an arm rests on, its pool's first."""
    return sorted((c for c in checks if c.arm in (None, arm)), key=lambda c: c.side != POOL)


def facts(checks: Sequence[Check], store: Store) -> dict[str, Any]:
    """Of an arm's comparisons that are made: action and counts by side, and the first findings."""
    built = [check for check in checks if check.is_built(store)]
    sides: dict[str, Any] = {}
    first: list[Finding] = []
    for check in built:
        info = store.load(check.stage).info
        sides[check.side] = {"action": check.action, **info}
        first += check.findings(store)[: SHOWN - len(first)]
    return {**sides, "first": [asdict(finding) for finding in first]} if built else {}


def refusal(checks: Iterable[Check], store: Store) -> str:
    """Why a run must not go on, for a reader; empty where nothing that was found is refused."""
    refused: dict[str, list[Finding]] = {}
    for check in checks:
        if check.action == REFUSE:
            refused.setdefault(check.arm or MAIN, []).extend(check.findings(store))
    parts = [
        ("" if arm == MAIN else f"arm {arm}: ") + describe(sorted(findings, key=lambda f: f.side))
        for arm, findings in refused.items()
        if findings
    ]
    return "\n".join([*parts, "`cotsieve overlap` lists all of them"]) if parts else ""


def outlook(checks: Iterable[Check], store: Store) -> list[str]:
    """What a run will do about overlap, or has found already; a line for every comparison."""
    lines = []
    for check in checks:
        head = f"Overlap: {check.title} are compared with {check.sets} before anything is trained; "
        if not check.is_built(store):
            lines.append(f"{head}what stands in both {OUTCOMES[check.action][0]}.")
            continue
        rows = store.load(check.stage).info["rows"]
        lines.append(f"{head}{rows} found" + (f", {OUTCOMES[check.action][1]}." if rows else "."))
    return lines


def picture(checks: Iterable[Check], store: Store) -> list[dict[str, Any]]:
    """Every comparison with its findings, for programs."""
    return [
        {
            "side": check.side,
            "arm": check.arm,
            "action": check.action,
            "with": check.sets,
            "rows": store.load(check.stage).info["rows"],
            "findings": [asdict(finding) for finding in check.findings(store)],
        }
        for check in checks
    ]


def listing(checks: Iterable[Check], store: Store) -> list[str]:
    """Every finding of every comparison, for a reader."""
    lines, refused = [], []
    for check in checks:
        findings = check.findings(store)
        outcome = f" ({OUTCOMES[check.action][1]}):" if findings else ": no overlap"
        lines += [f"{check.title} and {check.sets}{outcome}", *overlap_counts(findings)]
        lines += [line for finding in findings for line in finding_lines(finding)]
        refused += findings if check.action == REFUSE else []
    return [*lines, remedy(refused)] if refused else lines


def _rows(stage: Stage, store: Store) -> Questions:
    import pyarrow.parquet as pq

    path = store.load(stage).folder / "pool.parquet"
    table = pq.read_table(path, columns=["id", "prompt"]).to_pydict()
    return list(zip(table["id"], table["prompt"], strict=True))


def _items(stage: Stage, store: Store) -> Questions:
    items = read_items(store.load(stage).folder / ITEMS_FILE)
    return [(item["id"], item["question"]) for item in items]
