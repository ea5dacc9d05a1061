"""What is committed in results/ and reports/: whole, consistent, and reproducible from itself."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from harness.experiment import config, records
from harness.experiment.store import digest
from harness.reporting import report
from harness.reporting.results import load

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
EXPERIMENTS = sorted(path.parent.name for path in RESULTS.glob("*/records.jsonl"))
TEXTS = (".csv", ".md", ".tex")
COMPLETE = ("commit", "dirty", "packages", "python", "platform", "device", "processor", "engine")


@pytest.fixture(autouse=True, scope="module")
def _as_committed():
    """Only the committed state is judged, not what a run has added since."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results", "reports"]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if changed:
        pytest.skip("results/ or reports/ differ from the commit: experiments were run here since")


def test_the_experiments_of_the_documentation_are_committed():
    assert {"quick", "calibration", "testbed"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_of_the_protocol_is_done_exactly_once(name):
    for arm in load(RESULTS / name):
        names = [cell.name for cell in arm.cells]
        assert len(set(names)) == len(names)
        assert {cell.status for cell in arm.cells} == {"done"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_records_are_complete_and_their_files_exist(name):
    folder = RESULTS / name
    import tomllib

    protocol = digest(tomllib.loads((folder / "protocol.toml").read_text()))
    for entry in records.newest(records.read(folder)).values():
        assert entry["schema"] == records.SCHEMA
        assert entry["protocol"] == protocol, entry["cell"]
        assert all(entry["provenance"].get(key) is not None for key in COMPLETE)
        assert entry["provenance"]["dirty"] is False, "recorded with uncommitted changes"
        samples = pd.read_parquet(folder / entry["samples"])
        means = samples.groupby("task")["correct"].mean()
        assert entry["accuracy"] == pytest.approx(means.to_dict())
        if entry["row"] != "base":
            chosen = pd.read_parquet(folder / entry["selection"])
            assert chosen["chosen"].sum() == entry["n_examples"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_tables_are_what_the_records_give(name, tmp_path, monkeypatch):
    # Figures take most of a report's time; `nox -s report -- --check` compares them, byte for byte.
    monkeypatch.setattr(report.figures, "draw", lambda *_: {})
    report.build(RESULTS / name, tmp_path)
    committed = ROOT / "reports" / name
    made, there = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.suffix in TEXTS}
        for folder in (tmp_path, committed)
    )
    assert made == there
    for path in made:
        assert (tmp_path / path).read_text() == (committed / path).read_text(), path


def test_quick_ranks_the_controls():
    table = pd.read_csv(ROOT / "reports/quick/main.csv")
    means = table[table["task"] == "mean"].set_index("row")["mean"]
    assert means["oracle"] > means["random"] > means["anti-oracle"]


def test_the_calibration_table_says_what_the_reports_of_its_arms_say():
    readme = (RESULTS / "README.md").read_text()
    systematic, repaired, random = (
        pd.read_csv(ROOT / "reports/calibration" / arm / "main.csv")
        .query("task == 'chain_core'")
        .set_index("row")
        for arm in ("", "clean", "random-errors")
    )

    def line(title, row, *names, arms=(systematic, random)):
        cells = (100 * arm.loc[row, list(names)].astype(float) for arm in arms)
        return " | ".join([f"| {title}", *("{:.1f} [{:.1f}, {:.1f}]".format(*c) for c in cells)])

    mean, difference = ("mean", "ci_low", "ci_high"), ("diff", "diff_low", "diff_high")
    expected = [
        line("base", "base", *mean),
        line("full pool, errors repaired", "full", *mean, arms=(repaired, repaired)),
        line("full pool", "full", *mean),
        line("oracle, half the pool", "oracle", *mean),
        line("random, half", "random", *mean),
        line("anti-oracle, half", "anti-oracle", *mean),
        line("oracle minus random, points", "oracle", *difference),
        line("anti-oracle minus random, points", "anti-oracle", *difference),
    ]
    facts = json.loads((RESULTS / "calibration/facts.json").read_text())["arms"]
    queries = [
        f"{arm['n_C']} and {arm['n_I']} of {arm['n_queries']}"
        for arm in (facts["main"], facts["random-errors"])
    ]
    expected.append(" | ".join(["| queries put right (C) and spoiled (I)", *queries]))
    assert [text for text in expected if f"{text} |\n" not in readme] == []
    targets = {"full clean pool between 60% and 85%": 0.6 <= repaired["mean"]["full"] <= 0.85}
    for name, arm, counts in (
        ("systematic errors", systematic, facts["main"]),
        ("random errors", random, facts["random-errors"]),
    ):
        targets |= {
            f"{name}: oracle at least 8% above random": arm["diff"]["oracle"] >= 0.08,
            f"{name}: anti-oracle below random": arm["diff_high"]["anti-oracle"] < 0,
            f"{name}: base below full": arm["ci_high"]["base"] < arm["ci_low"]["full"],
            f"{name}: C and I hold at least 20 queries each": min(counts["n_C"], counts["n_I"])
            >= 20,
        }
    listed = [f"- {'met' if met else '**missed**'}: {name}" for name, met in targets.items()]
    assert "\n".join(listed) in readme


def test_the_calibrated_settings_are_those_of_the_experiments():
    loaded = {
        name: config.load(ROOT / f"experiments/{name}.toml")
        for name in ("quick", "testbed", "calibration")
    }
    for part in ("pool", "model", "train", "query", "evaluate"):
        values = {getattr(experiment, part).model_dump_json() for experiment in loaded.values()}
        assert len(values) == 1, part
