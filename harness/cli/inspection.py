"""`cotsieve overlap`: makes the data sets, compares them and prints every finding."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.experiment.store import Store
from harness.running import overlap
from harness.running.display import Progress
from harness.running.plan import Plan
from harness.running.run import Run


def inspect(plan: Plan, store: Store, results: Path, as_json: bool) -> bool:
    """Make what the comparison lacks and print the findings; return whether one is refused."""
    view = Progress(Console(stderr=True))
    try:
        Run(plan, store, results).compare(view)
    finally:
        view.end()
    refused = bool(overlap.refusal(plan.checks, store))
    if as_json:
        checks = overlap.picture(plan.checks, store)
        found = {"experiment": plan.experiment.name, "refused": refused, "checks": checks}
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return refused
    out = Console()
    for line in overlap.listing(plan.checks, store):
        out.print(Text(line), soft_wrap=True)
    if not plan.checks:
        out.print("Nothing to compare: every run proves that the testbed's sets share no problem.")
    return refused
