"""The influence study from nothing to its report, small; check (v); resuming; the report alone."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.experiment.settings import TrainingRecipe
from harness.experiment.store import Store
from harness.studies.influence import builders
from harness.studies.influence.metrics import ANCHOR, SHUFFLED
from harness.studies.influence.report import AUROC, CLAIM, DROP, LDS, LEAD, build, measure
from harness.studies.influence.study import Protocol, Stages, Study, shuffled

ROOT = Path(__file__).parents[3]
SMALL = Protocol(
    base="tiny",
    pool_size=240,
    queries=60,
    recipe=TrainingRecipe(learning_rate=1e-3, max_tokens=128, budget="steps", steps=60),
    halves=24,
    seeds=(0, 1),
    removed=(0.1,),
    removal_queries=4,
    removal_methods=("identity", "ekfac"),
    removal_random=3,
    removal_seeds=(0,),
)


def test_subsets_are_seeded_and_of_equal_size():
    members = SMALL.members()
    assert members.shape == (24, 240)
    assert (members.sum(axis=1) == 120).all()
    assert (members == SMALL.members()).all()
    assert len({row.tobytes() for row in members}) == 24
    # More subsets leave the first ones as they are: a study can be extended.
    assert (dataclasses.replace(SMALL, halves=30).members()[:24] == members).all()
    assert (SMALL.random_removals(0.1).sum(axis=1) == 24).all()


def test_what_an_experiment_made_is_found_again():
    from harness.experiment.config import load
    from harness.running import plan

    file = ROOT / "experiments" / "quick.toml"
    laid = plan.make(load(file), file)
    stages = Stages.of(Protocol(pool_size=1000, pool_seed=0))
    assert laid.pools["main"].key == stages.pool.key
    bases = {cell.checkpoint.parents["model"].key for cell in laid.cells if cell.checkpoint}
    assert bases == {stages.base.key}


def test_a_retraining_is_known_by_its_content():
    stages = Stages.of(SMALL)
    first = stages.retraining(SMALL, ["a", "b"], 0, "one label")
    assert first.key == stages.retraining(SMALL, ["a", "b"], 0, "another").key
    assert first.key != stages.retraining(SMALL, ["a", "c"], 0, "one label").key
    assert first.key != stages.retraining(SMALL, ["a", "b"], 1, "one label").key


def test_shuffling_keeps_the_values_of_every_query():
    scores = np.random.default_rng(0).normal(size=(50, 3))
    permuted = shuffled(scores, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(scores, axis=0))
    orders = np.argsort(permuted, axis=0)
    assert not (orders[:, 0] == orders[:, 1]).all()


@pytest.fixture
def written(tmp_path):
    """Results as a study writes them, with numbers of a generator."""
    rng = np.random.default_rng(0)
    protocol = dataclasses.replace(SMALL, pool_size=40, queries=5, halves=12, removal_queries=3)
    folder = tmp_path / "results"
    folder.mkdir()
    study = Study(protocol, Store(tmp_path / "store"), 1, Console(quiet=True), peer=True)
    (folder / "protocol.toml").write_text(study.protocol_text())
    names = [f"q{i}" for i in range(5)]
    truth = rng.normal(size=(12, 5))
    rows = [
        (half, seed, name, truth[half, q] + 0.3 * rng.normal())
        for half in range(12)
        for seed in (0, 1)
        for q, name in enumerate(names)
    ]
    columns = ["half", "seed", "query", "log_probability"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "outcomes.parquet")
    methods = ("identity", "ekfac", "ekfac+cg", "kronfluence", "shuffled", "ekfac, damping 1")
    parts = [
        pd.DataFrame(
            {"half": half, "query": names, "predicted": truth[half] + rng.normal(size=5)}
        ).assign(method=method)
        for method in methods
        for half in range(12)
    ]
    pd.concat(parts).to_parquet(folder / "predictions.parquet")
    classes = ["clean-hard"] * 20 + ["wrong-step"] * 12 + ["off-topic"] * 8
    scores = {method: rng.normal(size=40) for method in (*methods, "self ekfac")}
    ids = [f"p{i}" for i in range(40)]
    pd.DataFrame({"id": ids, "quality": classes, **scores}).to_parquet(folder / "scores.parquet")
    fallen = [
        (method, 0.1, number, 0, name, -1.0 - (method == "ekfac") - 0.1 * rng.random())
        for method in ("random", "identity", "ekfac")
        for number in range(3)
        for name in names[:3]
    ]
    columns = ["method", "share", "set", "seed", "query", "log_probability"]
    pd.DataFrame(fallen, columns=columns).to_parquet(folder / "removals.parquet")
    facts = {
        "correct_classes": ["clean-hard"],
        "seconds": dict.fromkeys(methods, 1.5),
        "chance": {"shuffles": 9, "mean": 0.0, "sd": 0.1, "farther": 3},
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def test_measured_numbers_agree_with_the_files(written):
    from scipy.stats import mannwhitneyu, spearmanr

    findings = measure(written)
    outcomes = pd.read_parquet(written / "outcomes.parquet")
    mean = outcomes.groupby(["half", "query"])["log_probability"].mean()
    predicted = pd.read_parquet(written / "predictions.parquet")
    own = predicted[predicted["method"] == "ekfac"].set_index(["half", "query"])["predicted"]
    expected = np.mean(
        [
            spearmanr(mean.xs(q, level="query"), own.xs(q, level="query")).statistic
            for q in sorted(outcomes["query"].unique())
        ]
    )
    assert findings.at(LDS, "ekfac").estimate == pytest.approx(expected, rel=1e-12)
    gap = findings.at(LDS, "identity").estimate - findings.at(LDS, "ekfac").estimate
    assert findings.at(LEAD, "identity").estimate == pytest.approx(gap, abs=1e-12)
    assert findings.variants == ["ekfac, damping 1"]
    assert findings.at(DROP, "ekfac", "0.1").estimate == pytest.approx(1.0, abs=0.1)
    assert findings.at(DROP, "identity", "0.1").estimate == pytest.approx(0.0, abs=0.1)
    scores = pd.read_parquet(written / "scores.parquet")
    wrong = scores.loc[scores["quality"] == "wrong-step", "ekfac"]
    right = scores.loc[scores["quality"] == "clean-hard", "ekfac"]
    area = mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
    assert findings.at(AUROC, "ekfac", "wrong-step").estimate == pytest.approx(area)
    claims = [text.split()[2] for text in findings.of(CLAIM)["case"]]
    assert claims == ["ekfac", "ekfac+cg", "ekfac", "shuffled"]
    assert findings.errors == {"off-topic": 8, "wrong-step": 12}
    assert findings.correct == 20


def test_a_missing_retraining_is_refused(written):
    table = pd.read_parquet(written / "outcomes.parquet")
    table[1:].to_parquet(written / "outcomes.parquet")
    with pytest.raises(ValueError, match="none missing"):
        measure(written)


def test_the_same_results_give_the_same_report(written, tmp_path):
    first = build(written, tmp_path / "one")
    second = build(written, tmp_path / "two")
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    page = (tmp_path / "one" / "influence.md").read_text()
    assert "alpha = 0.5" in page
    assert "ekfac, damping 1" in page
    cells = pd.read_csv(tmp_path / "one" / "influence.csv")
    assert set(cells["table"]) == {"lds", "lds minus ekfac", "noise", "claim", "drop", "auroc"}


def test_reporting_imports_no_torch():
    code = (
        "import sys, harness.studies.influence.report, harness.studies.__main__\n"
        "import harness.studies.intervals.simulate, harness.studies.intervals.report\n"
        "heavy = {'torch', 'transformers', 'vllm', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers and its dependencies
def test_the_scores_order_the_curvatures(tmp_path, monkeypatch):
    """Check (v): LDS of EK-FAC above GradDot's above that of shuffled scores, which is 0."""
    monkeypatch.setattr(builders, "VARIANTS", {})
    monkeypatch.setattr(builders, "CHOICES", {"kind": ("identity", "ekfac")})
    store = Store(tmp_path / "store")
    study = Study(SMALL, store, 2, Console(quiet=True), peer=False)
    study.run(tmp_path / "results")
    findings = measure(tmp_path / "results")
    ekfac, dot_products, null = (findings.at(LDS, m) for m in (ANCHOR, "identity", SHUFFLED))
    assert ekfac.estimate > dot_products.estimate
    assert dot_products.low > null.high
    assert null.low < 0 < null.high
    build(tmp_path / "results", tmp_path / "reports")
    # A retraining that went missing is made again, to the same bits; nothing else is.
    stage = study.halves()[0].stage
    before = (tmp_path / "results" / "outcomes.parquet").read_bytes()
    shutil.rmtree(store.folder(stage))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("meta.json")}
    Study(SMALL, store, 2, Console(quiet=True), peer=False).run(tmp_path / "results")
    assert (tmp_path / "results" / "outcomes.parquet").read_bytes() == before
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
