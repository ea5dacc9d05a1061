"""Is the testbed hard enough to tell selectors apart, and easy enough to learn?

`python -m harness.studies.calibration` reads the records of the experiment `calibration` (an
ordinary one: `cotsieve run calibration`), holds them against the targets below, and writes
`results/testbed/calibration.json` and the table in `results/README.md`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.experiment.paths import RESULTS
from harness.experiment.records import write_atomic
from harness.reporting.results import Results, load
from harness.stats import Outcome, difference, estimate, pivot

TASK = "chain_core"
FRACTION = 0.5
CLEAN = "clean"
VARIANTS = {"main": "systematic errors", "random-errors": "random errors"}
START, END = "<!-- calibration -->", "<!-- /calibration -->"
FULL_RANGE = (0.60, 0.85)
GAP = 0.08
QUERIES = 20


def measure(arms: Mapping[str, Results]) -> dict[str, Any]:
    """Accuracies on `chain_core` with intervals, differences, |C| and |I|, and targets met."""
    outcomes = {name: _outcomes(results) for name, results in arms.items()}
    main = arms["main"]
    found: dict[str, Any] = {
        "task": TASK,
        "fraction": FRACTION,
        "seeds": list(main.seeds),
        "settings": {
            name: main.protocol[name] for name in ("pool", "model", "train", "query", "evaluate")
        },
        "base": _estimate(outcomes["main"]["base"]),
        "full_clean": _estimate(outcomes[CLEAN]["full"]),
        "variants": {},
    }
    for arm, label in VARIANTS.items():
        own = outcomes[arm]
        facts = arms[arm].facts
        found["variants"][label] = {
            **{row: _estimate(own[row]) for row in ("full", "oracle", "random", "anti-oracle")},
            "oracle_minus_random": _difference(own["oracle"], own["random"]),
            "anti_oracle_minus_random": _difference(own["anti-oracle"], own["random"]),
            "full_minus_base": _difference(own["full"], own["base"]),
            "n_queries": facts["n_queries"],
            "n_C": facts["n_C"],
            "n_I": facts["n_I"],
        }
    found["targets"] = targets(found)
    return found


def targets(found: Mapping[str, Any]) -> dict[str, bool]:
    """What a calibrated testbed must meet, and whether this one does."""
    met = {
        f"full clean pool between {FULL_RANGE[0]:.0%} and {FULL_RANGE[1]:.0%}": bool(
            FULL_RANGE[0] <= found["full_clean"]["mean"] <= FULL_RANGE[1]
        )
    }
    for label, variant in found["variants"].items():
        gap = variant["oracle_minus_random"]["diff"]
        met[f"{label}: oracle at least {GAP:.0%} above random"] = bool(gap >= GAP)
        below = variant["anti_oracle_minus_random"]["ci_high"] < 0
        met[f"{label}: anti-oracle below random"] = bool(below)
        met[f"{label}: base below full"] = bool(variant["full_minus_base"]["ci_low"] > 0)
        enough = min(variant["n_C"], variant["n_I"]) >= QUERIES
        met[f"{label}: C and I hold at least {QUERIES} queries each"] = bool(enough)
    return met


def _outcomes(results: Results) -> dict[str, Outcome]:
    grid = pivot(results.outcomes)
    found = {}
    for row, fraction in (("base", 0.0), ("full", 1.0), *((r, FRACTION) for r in results.rows)):
        if (row, fraction) in results.groups:
            outcome, incomplete = grid.outcome((row, fraction), [TASK])
            if outcome is None or incomplete:
                raise ValueError(
                    f"{results.folder}: row {row!r} lacks seeds {incomplete}; expected a whole run"
                )
            found[row] = outcome
    return found


def _estimate(outcome: Outcome) -> dict[str, float]:
    made = estimate(outcome)
    return {"mean": made.mean, "ci_low": made.ci_low, "ci_high": made.ci_high}


def _difference(method: Outcome, reference: Outcome) -> dict[str, float]:
    made = difference(method, reference, rng=np.random.default_rng(0))
    return {"diff": made.diff, "ci_low": made.ci_low, "ci_high": made.ci_high}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of `results/README.md`."""

    def percent(value: Mapping[str, float]) -> str:
        low, high = (100 * value[name] for name in ("ci_low", "ci_high"))
        return f"{100 * value.get('mean', value.get('diff', 0.0)):.1f} [{low:.1f}, {high:.1f}]"

    lines = ["| accuracy on `chain_core`, % | " + " | ".join(found["variants"]) + " |"]
    lines.append("|:--|" + "--:|" * len(found["variants"]))
    both = {"base": found["base"], "full pool, errors repaired": found["full_clean"]}
    for name, value in both.items():
        lines.append(f"| {name} | " + " | ".join([percent(value)] * len(found["variants"])) + " |")
    rows = {
        "full": "full pool",
        "oracle": "oracle, half the pool",
        "random": "random, half",
        "anti-oracle": "anti-oracle, half",
        "oracle_minus_random": "oracle minus random, points",
        "anti_oracle_minus_random": "anti-oracle minus random, points",
    }
    for key, name in rows.items():
        cells = [percent(variant[key]) for variant in found["variants"].values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [f"{v['n_C']} and {v['n_I']} of {v['n_queries']}" for v in found["variants"].values()]
    lines.append("| queries put right (C) and spoiled (I) | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [
        f"- {'met' if met else '**missed**'}: {name}" for name, met in found["targets"].items()
    ]
    return "\n".join(lines)


def write(results: Path = RESULTS) -> dict[str, Any]:
    """Measure, write the JSON file and the table; return what was measured."""
    arms = {arm.arm: arm for arm in load(results / "calibration")}
    found = measure(arms)
    text = json.dumps(found, indent=1) + "\n"
    write_atomic(results / "testbed" / "calibration.json", text.encode())
    readme = results / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page = f"{before}{START}\n{markdown(found)}\n{END}{after}"
    write_atomic(readme, page.encode())
    return found


if __name__ == "__main__":
    sys.stdout.write(markdown(write()) + "\n")
