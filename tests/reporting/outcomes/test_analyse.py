"""The analysis of an outcomes table, against statsmodels, scipy and the suite's own summary."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness.reporting.outcomes import analyse, read
from harness.reporting.outcomes.render import as_dict
from harness.stats import Outcome, difference, estimate, holm, summarise

SHIFTS = {"random": 0.0, "good": 0.3, "equal": 0.0, "bad": -0.2}
TASKS = {"core": 30, "far": 45}


def analysed(path, reference=None):
    return as_dict(analyse(read(path), np.random.default_rng(0), reference))


def table_of(frame, method, task="core", seeds=None):
    one = frame[(frame["method"] == method) & (frame["task"] == task)]
    table = one.pivot_table("correct", "seed", "item").sort_index(axis=1)
    return (table if seeds is None else table.loc[seeds]).to_numpy(dtype=float)


def outcome_of(frame, method, tasks=TASKS, seeds=None):
    return Outcome.of({task: table_of(frame, method, task, seeds) for task in tasks})


def close(value):
    return pytest.approx(value, abs=1e-10)


def test_keys_are_those_promised(save, outcomes):
    found = analysed(save(outcomes(SHIFTS)))
    assert {"methods", "differences", "mde", "seeds_needed", "tasks", "notes"} <= set(found)
    for entry in found["methods"].values():
        assert set(entry) == {"mean", "ci_low", "ci_high", "sd_seeds", "n_seeds", "n_items"}
    for entry in found["differences"].values():
        assert set(entry) == {
            "diff", "ci_low", "ci_high", "p", "p_sign_flip", "p_floor", "p_holm",
            "p_improvement", "verdict",
        }  # fmt: skip
    assert list(found["methods"]) == list(SHIFTS)
    assert list(found["differences"]) == list(SHIFTS)[1:]
    assert set(found["seeds_needed"]) == {"1", "2", "3"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_numbers_are_those_of_the_statistics(save, outcomes):
    frame = outcomes(SHIFTS, tasks=TASKS, decodes=2)
    found = analysed(save(frame))
    reference = outcome_of(frame, "random")
    family = holm([difference(outcome_of(frame, name), reference) for name in list(SHIFTS)[1:]])
    for (name, entry), expected in zip(found["differences"].items(), family, strict=True):
        assert entry == {
            key: close(getattr(expected, key)) if key != "verdict" else expected.verdict
            for key in entry
        }
        own = estimate(outcome_of(frame, name))
        assert found["methods"][name] == {
            key: close(getattr(own, key)) for key in found["methods"][name]
        }
        assert found["details"][name]["adjusted_low"] == close(expected.adjusted_low)
    assert [entry["verdict"] for entry in found["differences"].values()] == [
        "better",
        "tie",
        "worse",
    ]


def test_tables_without_holes_agree_with_the_report_of_an_experiment(save, outcomes):
    """The suite's summary of rows, which builds its tables by another way."""
    frame = outcomes(SHIFTS, tasks=TASKS)
    found = analysed(save(frame))
    rows = summarise(frame.rename(columns={"method": "row"}).assign(fraction=0.5))
    lines = rows.set_index(["row", "task"])
    for name in list(SHIFTS)[1:]:
        line = lines.loc[name, "mean"]
        entry = found["differences"][name]
        assert (entry["diff"], entry["p"], entry["p_holm"]) == close(
            (line["diff"], line["p"], line["p_holm"])
        )
        assert entry["verdict"] == line["verdict"]
        for task in TASKS:
            single = found["tasks"][task]["differences"][name]
            line = lines.loc[name, task]
            assert (single["p"], single["p_bh"]) == close((line["p"], line["p_bh"]))
            assert single["verdict"] == line["verdict"]


def test_corrections_and_flips_agree_with_independent_ones(save, outcomes):
    frame = outcomes(SHIFTS, tasks=TASKS, seeds=5)
    found = analysed(save(frame))
    p = [entry["p"] for entry in found["differences"].values()]
    adjusted = [entry["p_holm"] for entry in found["differences"].values()]
    assert adjusted == close(multipletests(p, method="holm")[1])
    grid = [e for part in found["tasks"].values() for e in part["differences"].values()]
    expected = multipletests([entry["p"] for entry in grid], method="fdr_bh")[1]
    assert [entry["p_bh"] for entry in grid] == close(expected)
    for name, entry in found["differences"].items():
        gaps = outcome_of(frame, name).seed_means - outcome_of(frame, "random").seed_means
        sums = [abs(np.dot(s, gaps)) for s in itertools.product((-1, 1), repeat=5)]
        assert entry["p_sign_flip"] == close(np.mean(np.array(sums) >= abs(gaps.sum()) - 1e-12))
        assert entry["p_floor"] == 2 / 2**5
        sides = [outcome_of(frame, side).seed_means for side in (name, "random")]
        assert entry["p_improvement"] == close(scipy_stats.mannwhitneyu(*sides).statistic / 25)


def test_power_by_hand(save, outcomes):
    frame = outcomes({"random": 0.0, "other": 0.05}, seeds=6)
    found = analysed(save(frame))
    gaps = table_of(frame, "other") - table_of(frame, "random")
    sd = gaps.mean(axis=1).std(ddof=1)
    for points, needed in found["seeds_needed"].items():
        z = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
        assert needed == math.ceil((z * sd / (int(points) / 100)) ** 2 + 2)
    seeds = gaps.mean(axis=1).var(ddof=1) / len(gaps)
    n = gaps.shape[1]
    residual = gaps - gaps.mean(axis=1, keepdims=True) - gaps.mean(axis=0) + gaps.mean()
    rest = (residual**2).sum() / ((len(gaps) - 1) * (n - 1)) / gaps.size
    items = max(gaps.mean(axis=0).var(ddof=1) / n - rest, 0.0)
    t_r, t_i = (scipy_stats.t.ppf([0.975, 0.8], df) for df in (len(gaps) - 1, n - 1))
    assert found["mde"] == close(np.sqrt(t_r**2 * seeds + t_i**2 * items).sum())


@pytest.mark.parametrize("n_items", [30, 250])
def test_one_seed_is_items_only(save, outcomes, n_items):
    frame = outcomes({"random": 0.0, "b": 0.2}, seeds=1, tasks={"core": n_items})
    found = analysed(save(frame.drop(columns=["seed", "task", "decode"])))
    one, right = found["methods"]["b"], table_of(frame, "b")[0]
    if n_items < 200:
        expected = proportion_confint(right.sum(), n_items, method="wilson")
    else:
        expected = scipy_stats.ttest_1samp(right, 0).confidence_interval()
    assert (one["ci_low"], one["ci_high"]) == close(tuple(expected))
    assert (one["sd_seeds"], one["n_seeds"]) == (None, 1)
    entry = found["differences"]["b"]
    assert (entry["p_sign_flip"], entry["p_floor"]) == (None, None)
    assert found["seeds_needed"] == {"1": None, "2": None, "3": None}
    said = "\n".join(found["notes"])
    assert "items only: seed variance unknown" in said
    for name in ("sd_seeds", "p_sign_flip", "p_floor", "seeds_needed"):
        assert any(name in note and "null" in note for note in found["notes"])
    assert "p: exact McNemar" in said
    assert entry["p"] == close(exact_mcnemar(right, table_of(frame, "random")[0]))


def exact_mcnemar(a, b):
    table = [[np.sum(a * b), np.sum(a * (1 - b))], [np.sum((1 - a) * b), np.sum((1 - a) * (1 - b))]]
    return mcnemar(table, exact=True).pvalue


def test_four_models_on_gsm8k(save):
    """Published solutions of GSM8K's test set by four models, with the publisher's verdicts."""
    folder = os.environ.get("COTSIEVE_REAL_DATA")
    if folder is None:
        pytest.skip("COTSIEVE_REAL_DATA is not set; it names a folder with published benchmarks")
    text = (Path(folder) / "gsm8k_model_solutions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    models = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    right = {name: np.array([row[name]["is_correct"] for row in rows], float) for name in models}
    frame = pd.DataFrame(
        [
            {"method": name, "item": i, "correct": bool(value)}
            for name in models
            for i, value in enumerate(right[name])
        ]
    )
    found = analysed(save(frame, "gsm8k.jsonl"))
    assert [int(values.sum()) for values in right.values()] == [286, 515, 458, 742]
    reference = models[0]
    assert found["reference"] == reference
    assert "the first method, because none is called 'random'" in found["notes"][0]
    assert "all: items only: seed variance unknown (t over items)" in found["notes"]
    p = []
    for name in models:
        entry = found["methods"][name]
        ends = scipy_stats.ttest_1samp(right[name], 0).confidence_interval()
        assert (entry["mean"], entry["n_items"]) == (close(right[name].mean()), 1319)
        assert (entry["ci_low"], entry["ci_high"]) == close((ends.low, ends.high))
        if name != reference:
            p.append(exact_mcnemar(right[name], right[reference]))
            entry = found["differences"][name]
            assert entry["p"] == pytest.approx(p[-1], rel=1e-10)
            assert entry["verdict"] == "better"
    holms = [entry["p_holm"] for entry in found["differences"].values()]
    assert holms == pytest.approx(multipletests(p, method="holm")[1], rel=1e-10)
    # Two models that are near each other.
    found = analysed(save(frame, "gsm8k.parquet"), reference="6b_verification")
    entry = found["differences"]["175b_finetuning"]
    pair = (right["175b_finetuning"], right["6b_verification"])
    assert entry["p"] == pytest.approx(exact_mcnemar(*pair), rel=1e-10)
    assert entry["diff"] == close((458 - 515) / 1319)


def test_clusters_are_used_and_said(save, outcomes):
    frame = outcomes({"random": 0.0, "b": 0.1}, tasks={"core": 60})
    frame["cluster"] = "p" + (frame["item"].str.split("-").str[1].astype(int) // 6).astype(str)
    path = save(frame)
    found = analysed(path)
    labels = frame.drop_duplicates("item").sort_values("item")["cluster"].tolist()
    sides = [
        Outcome.of({"core": table_of(frame, name)}, clusters={"core": labels})
        for name in ("b", "random")
    ]
    expected = difference(*sides)
    assert found["differences"]["b"]["p"] == close(expected.p)
    assert found["differences"]["b"]["ci_low"] == close(expected.ci_low)
    assert any("items in 10 clusters" in note for note in found["notes"])
    assert any("cluster-robust" in note for note in found["notes"])
    # A problem that appears in two tasks.
    again = pd.concat([frame, frame.assign(task="far", item=frame["item"] + "x")])
    found = analysed(save(again, "two.csv"))
    assert found["differences"]["b"]["ci_low"] == close(expected.ci_low)


def test_one_method_and_constant_results(save, outcomes):
    frame = outcomes({"only": 0.0})
    found = analysed(save(frame))
    assert (found["differences"], found["mde"]) == ({}, None)
    assert any("one method only" in note for note in found["notes"])
    same = pd.concat([frame.assign(method=name, correct=1) for name in ("random", "b")])
    found = analysed(save(same))
    entry = found["differences"]["b"]
    assert (entry["diff"], entry["p"], entry["verdict"]) == (0.0, 1.0, "tie")
    assert found["mde"] is None
    assert any("mde is null" in note for note in found["notes"])
    assert found["methods"]["b"]["ci_low"] < 1.0
    assert json.dumps(found, allow_nan=False)


def test_more_than_twenty_seeds_are_sampled_and_repeat(save, outcomes):
    path = save(outcomes({"random": 0.0, "b": 0.02}, seeds=22))
    found = analysed(path)
    assert found == analysed(path)
    assert 0.0 < found["differences"]["b"]["p_sign_flip"] < 1.0
