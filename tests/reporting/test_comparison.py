"""`cotsieve compare`: two rows of a synthetic experiment, and the committed one."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom
from typer.testing import CliRunner

from harness.cli.app import app
from harness.reporting.comparison import compare, compared_at, find
from harness.reporting.comparison.render import as_dict, sentence, tables
from harness.reporting.results import load
from harness.stats import Outcome, difference, estimate, summarise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def comparison(make_results):
    def make(a, b, fraction=None, **settings):
        (results,) = load(make_results(**settings))
        return compare(results, a, b, fraction)

    return make


def outcome_of(results, row, fraction=0.5, seeds=(0, 1, 2)):
    frame = results.outcomes.query("row == @row and fraction == @fraction")
    tables = {
        task: frame[frame["task"] == task].pivot_table("correct", "seed", "item").loc[list(seeds)]
        for task in results.tasks
    }
    return Outcome.of({task: table.to_numpy(dtype=float) for task, table in tables.items()})


def records(folder):
    text = (folder / "records.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_numbers_are_those_of_the_statistics(comparison):
    found = comparison("influence/combined", "length")
    a, b = (outcome_of(found.results, row) for row in ("influence/combined", "length"))
    for name, line in {None: found.mean, **found.tasks}.items():
        sides = (a, b) if name is None else (a.only(name), b.only(name))
        expected = difference(*sides)
        for field in ("diff", "ci_low", "ci_high", "p", "p_sign_flip", "p_improvement"):
            assert getattr(line.difference, field) == pytest.approx(getattr(expected, field))
        assert line.a.ci_low == pytest.approx(estimate(sides[0]).ci_low)
        assert line.b.mean == pytest.approx(estimate(sides[1]).mean)
        assert line.difference.p_floor == 0.25
    assert found.family is None


def test_family_is_the_reports_and_its_sign_follows_the_question(comparison):
    found = comparison("length", "random", gain={"length": 0.3}, items=150)
    lines = summarise(found.results.outcomes, seeds=found.results.seeds)
    line = lines.query("row == 'length' and task == 'mean'").iloc[0]
    family = found.family
    assert (family.p_holm, family.low) == pytest.approx((line["p_holm"], line["adjusted_low"]))
    assert family.verdict == line["verdict"] == "better"
    assert family.size == 5
    turned = compare(found.results, "random", "length").family
    assert (turned.verdict, turned.low, turned.high) == ("worse", -family.high, -family.low)
    assert turned.p_holm == family.p_holm
    assert "length beats random by " in sentence(found)
    assert "random falls short of length by " in sentence(
        compare(found.results, "random", "length")
    )


def test_sentence_claims_what_the_numbers_allow(make_results):
    (results,) = load(make_results(gain={"oracle": 0.3, "length": 0.3}, items=150))
    seen = set()
    for a, b in itertools.permutations(results.rows, 2):
        found = compare(results, a, b)
        said, diff = sentence(found), found.mean.difference
        assert said.startswith(found.a.name)
        assert said.endswith("per cell.") or said.endswith("choosing cost about the same.")
        assert f"{abs(100 * diff.diff):.1f} points" in said
        planned = "random" in (a, b)
        assert ("protocol did not plan" in said) is not planned
        assert ("Holm p" in said) is planned
        if planned:
            verdict = found.family.verdict
            words = {"better": " beats ", "worse": " falls short of ", "tie": "a tie by the"}
            assert {name for name, text in words.items() if text in said} == {verdict}
            seen.add(verdict)
        else:
            decided = diff.p < 0.05 and not diff.ci_low <= 0 <= diff.ci_high
            assert ("no detectable difference" in said) is not decided
        if "above" in said or "below" in said:
            assert ("above" in said) is (diff.diff > 0)
    assert seen == {"better", "worse", "tie"}


def test_flips_by_hand(comparison):
    found = comparison("influence/combined", "length")
    a, b = (outcome_of(found.results, row) for row in ("influence/combined", "length"))
    change = {
        f"{task}-{i:04d}": round(float(value), 9)
        for task in found.results.tasks
        for i, value in enumerate((a.tables[task] - b.tables[task]).mean(axis=0))
    }
    flips = found.changes
    assert flips.gained == sum(value > 0 for value in change.values())
    assert flips.lost == sum(value < 0 for value in change.values())
    assert flips.gained + flips.lost + flips.same == len(change) == 80
    ranked = sorted(change, key=lambda item: -change[item])
    assert [one.item for one in flips.most_gained] == ranked[:5]
    assert [change[one.item] for one in flips.most_lost] == [
        change[item] for item in ranked[::-1][:5]
    ]
    for one in (*flips.most_gained, *flips.most_lost):
        assert one.a - one.b == pytest.approx(change[one.item], abs=1e-9)
    assert flips.gained_as_much == sum(value == change[ranked[0]] for value in change.values())


def test_costs_are_means_of_the_records(comparison):
    found = comparison("influence/combined", "random")
    cells = records(found.results.folder)
    for row, spent in (("influence/combined", found.a.costs), ("random", found.b.costs)):
        costs = [cell["costs"] for cell in cells if cell["row"] == row]
        for name in ("select_seconds", "train_seconds", "eval_seconds", "select_flops"):
            assert getattr(spent, name) == pytest.approx(np.mean([c[name] for c in costs]))
    assert found.a.costs.parts["reference"] == pytest.approx(14.1)
    assert "; choosing cost 24.6 s more per cell." in sentence(found)
    assert "s less per cell." in sentence(compare(found.results, "random", "influence/combined"))


def test_costs_that_old_records_lack_are_unknown(make_results):
    folder = make_results()
    cells = records(folder)
    for cell in cells:
        del cell["costs"]["select_flops"]
    (folder / "records.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    (results,) = load(folder)
    found = compare(results, "influence/combined", "random")
    assert math.isnan(found.a.costs.select_flops)
    assert as_dict(found)["costs"]["a"]["select_flops"] is None


def test_chosen_sets_and_scores(comparison):
    found = comparison("influence/combined", "random")
    folder = found.results.folder
    sets = {}
    for cell in records(folder):
        if cell["selection"]:
            table = pd.read_parquet(folder / cell["selection"])
            sets[cell["row"], cell["seed"]] = set(table["id"][table["chosen"]])
    overlaps = [
        len(x & y) / len(x | y)
        for x, y in ((sets["influence/combined", s], sets["random", s]) for s in range(3))
    ]
    assert found.overlap.between == pytest.approx(np.mean(overlaps))
    own = [sets["random", s] for s in range(3)]
    pairs = [len(x & y) / len(x | y) for x, y in itertools.combinations(own, 2)]
    assert found.overlap.b_seeds == pytest.approx(np.mean(pairs))
    # Two random halves of the 120: the mean over the sizes of their intersection.
    shared = np.arange(61)
    weights = hypergeom(120, 60, 60).pmf(shared)
    assert found.overlap.random == pytest.approx((weights * shared / (120 - shared)).sum())
    assert compare(found.results, "base", "random").overlap is None


def test_missing_and_failed_cells_are_named(make_results):
    failures = {"length@0.5#1": {"stage": "train", "message": "out of memory"}}
    (results,) = load(make_results(failures=failures))
    found = compare(results, "length", "random")
    assert "length@0.5#1: failed: out of memory" in found.notes
    assert any("left out of differences: 1" in note for note in found.notes)
    assert found.mean.difference.n_seeds == 2
    expected = difference(
        outcome_of(results, "length", seeds=(0, 2)), outcome_of(results, "random", seeds=(0, 2))
    )
    assert found.mean.difference.p == pytest.approx(expected.p)


def test_row_without_a_result_is_refused(make_results):
    failures = {f"length@0.5#{s}": {"stage": "train", "message": "no memory"} for s in range(3)}
    (results,) = load(make_results(failures=failures))
    with pytest.raises(
        ValueError, match=r"'length' has no finished cell \(length@0.5#0: failed: no"
    ):
        compare(results, "length", "random")


def test_names_of_rows(make_results):
    rows = ("base", "random", "influence/correct", "influence/combined", "perplexity/top")
    (results,) = load(make_results(rows=rows))
    with pytest.raises(
        ValueError, match="several rows; expected one of influence/correct, influen"
    ):
        find(results, "influence")
    assert find(results, "perplexity") == "perplexity/top"
    with pytest.raises(ValueError, match=r"no row 'radnom' \(did you mean 'random'\?\); expected"):
        find(results, "radnom")
    with pytest.raises(ValueError, match="expected two rows"):
        compare(results, "perplexity", "perplexity/top")


def test_fractions(make_results):
    (results,) = load(make_results(fractions=(0.25, 0.5, 0.75)))
    share, notes = compared_at(results, None, ("length", "random"))
    assert (share, notes) == (0.5, ["at 50% of the pool; --fraction has 0.25, 0.5, 0.75"])
    found = compare(results, "length", "random", 0.25)
    assert found.a.name == "length at 25%"
    expected = difference(*(outcome_of(results, row, 0.25) for row in ("length", "random")))
    assert found.mean.difference.p == pytest.approx(expected.p)
    assert found.family is not None
    # The protocol compares `full` with random at the middle fraction, and nowhere else.
    assert compare(results, "full", "random").family is not None
    assert compare(results, "full", "random", 0.25).family is None
    with pytest.raises(ValueError, match=r"--fraction 0.3; expected one of 0.25, 0.5, 0.75"):
        compare(results, "length", "random", 0.3)


def test_one_fixed_checkpoint_is_said(comparison):
    found = comparison("base", "full")
    assert "base: items only: one fixed checkpoint" in found.notes
    assert found.mean.difference.n_seeds == 3
    text = [str(part) for part in tables(found)]
    assert text[-1] == sentence(found)


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "80"})


def test_committed_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = run("quick", "influence/combined", "random", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    table = pd.read_csv("reports/quick/main.csv").set_index(["row", "task"])
    for name, line in {"mean": told["mean"], **told["tasks"]}.items():
        expected = table.loc["influence/combined", name]
        assert (line["diff"], line["p"]) == pytest.approx((expected["diff"], expected["p"]))
        assert line["a"]["mean"] == pytest.approx(expected["mean"])
        assert line["b"]["ci_low"] == pytest.approx(table.loc["random", name]["ci_low"])
    expected = table.loc["influence/combined", "mean"]
    assert told["family"]["p_holm"] == pytest.approx(expected["p_holm"])
    assert told["family"]["verdict"] == expected["verdict"]
    assert told["costs"]["a"]["select_seconds"] == pytest.approx(expected["select_seconds"])
    shown = run("quick", "influence/combined", "random")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == told["sentence"]
    tables = [
        line for line in shown.stdout.splitlines() if line.startswith(("mean over", "chain_"))
    ]
    assert len(tables) == 10
    assert max(map(len, tables)) <= 80
    every = run("quick", "influence", "random").stdout  # a selector: each of its rows
    assert shown.stdout in every
    rows = [f"influence/{strategy} " for strategy in ("correct", "incorrect", "combined")]
    assert [line for line in every.splitlines() if line.startswith(tuple(rows))]
    for ambiguous in (["influence", "random", "--json"], ["random", "influence"]):
        with pytest.raises(ValueError, match="fits several rows; expected one of influence/corr"):
            CliRunner().invoke(app, ["compare", "quick", *ambiguous], catch_exceptions=False)
    with pytest.raises(ValueError, match="--arm 'x'; expected one of main"):
        CliRunner().invoke(
            app, ["compare", "quick", "full", "base", "--arm", "x"], catch_exceptions=False
        )


def test_stats_and_compare_import_no_torch():
    code = (
        "import sys, harness.reporting.outcomes.render\n"
        "import harness.reporting.comparison.render, harness.cli.tools\n"
        "heavy = {'torch', 'transformers', 'vllm', 'lm_eval', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
