"""Every number of the tables beside the main one, against samples, scipy and values by hand."""

import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from harness.reporting import tables
from harness.reporting.results import load
from harness.reporting.tables.sheet import markdown
from harness.stats import summarise

GAIN = {"influence/combined": 0.25, "length": -0.4, "base": -0.2, "full": 0.05, "oracle": 0.3}
ROWS = ("base", "random", "random/again", "length", "influence/combined", "full", "oracle")
TASKS = ("chain_core", "chain_far")
SEEDS, ITEMS = 5, 50
DASH, MINUS, HALF = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"


def sheets_of(folder, arm="main"):
    arms = {results.arm: results for results in load(folder)}
    made = {
        name: tables.main(r, summarise(r.outcomes, seeds=r.seeds, rng=np.random.default_rng(0)))
        for name, r in arms.items()
    }
    return arms[arm], made[arm], tables.sheets(arms[arm], made[arm], made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_results):
    """Two fractions, two arms, an A/A row, differences that are clear."""
    path = tmp_path_factory.mktemp("tables") / "results" / "quick"
    shape = {"rows": ROWS, "tasks": TASKS, "fractions": (0.25, 0.5), "pool_size": 120}
    shape |= {"items": ITEMS, "seeds": range(SEEDS)}
    protocol = {"arm": [{"name": "random-errors"}], "query": {"dataset": "testbed:queries"}}
    write_results(path, gain=GAIN, protocol=protocol, **shape)
    return write_results(path, gain=GAIN, arm="random-errors", rng_seed=3, **shape)


@pytest.fixture(scope="module")
def made(folder):
    return sheets_of(folder)


def accuracies(folder, row, fraction, task=None, arm="main"):
    """Accuracy by seed from the samples alone: of a task, or the mean over tasks."""
    found = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if (entry["row"], entry["fraction"], entry["arm"]) == (row, fraction, arm):
            by_task = pd.read_parquet(folder / entry["samples"]).groupby("task")["correct"].mean()
            found[entry["seed"]] = by_task.mean() if task is None else by_task[task]
    return np.array([found[seed] for seed in sorted(found)])


def line_of(sheet, **keys):
    part = sheet.numbers
    for name, value in keys.items():
        part = part[part[name] == value]
    (line,) = part.to_dict("records")
    return line


def cells(text, row, table=0):
    """Cells of the `table`-th Markdown line that starts with `row`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [part.strip() for part in re.split(r"(?<!\\)\|", lines[table])[1:-1]]


@pytest.mark.parametrize("task", ["mean", "chain_far"])
def test_differences_against_samples_and_formulas(folder, made, task):
    _, _, sheets = made
    line = line_of(sheets["differences"], row="influence/combined", fraction=0.25, task=task)
    only = None if task == "mean" else task
    a = accuracies(folder, "influence/combined", 0.25, only)
    b = accuracies(folder, "random", 0.25, only)
    assert line["diff"] == pytest.approx((a - b).mean())
    sd = (a - b).std(ddof=1)
    assert line["sd_diff"] == pytest.approx(sd)
    u = stats.mannwhitneyu(a, b).statistic
    assert line["p_improvement"] == pytest.approx(u / (len(a) * len(b)))
    assert line["p_floor"] == 2 / 2**SEEDS
    flips = [abs(np.dot(signs, a - b)) for signs in itertools.product((1, -1), repeat=SEEDS)]
    assert line["p_sign_flip"] == np.mean(np.array(flips) >= abs((a - b).sum()) - 1e-12)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    for points in (1, 2, 3):
        needed = math.ceil((z * sd / (points / 100)) ** 2 + 2)
        assert line[f"seeds_{points}"] == needed


def test_what_could_be_detected_against_statsmodels(folder, made):
    _, _, sheets = made
    sides = []
    for row in ("influence/combined", "random"):
        parts = []
        for line in (folder / "records.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if (entry["row"], entry["fraction"], entry["arm"]) == (row, 0.25, "main"):
                samples = pd.read_parquet(folder / entry["samples"]).assign(seed=entry["seed"])
                parts.append(samples[samples["task"] == "chain_far"])
        sides.append(pd.concat(parts).set_index(["seed", "item"])["correct"].astype(float))
    paired = (sides[0] - sides[1]).rename("d").reset_index()
    squares = anova_lm(ols("d ~ C(seed) + C(item)", paired).fit())
    seeds, items, rest = (squares["mean_sq"] / len(paired)).loc[["C(seed)", "C(item)", "Residual"]]

    def half(level):
        """The half-width at a level: seeds whole, items without the residual's share."""
        t_seeds, t_items = stats.t.ppf(1 - level / 2, [SEEDS - 1, ITEMS - 1])
        return math.hypot(t_seeds * math.sqrt(seeds), t_items * math.sqrt(max(items - rest, 0)))

    keys = {"row": "influence/combined", "fraction": 0.25, "task": "chain_far"}
    line = line_of(sheets["differences"], **keys)
    assert line["diff_high"] - line["diff"] == pytest.approx(half(0.05))
    assert half(line["p"]) == pytest.approx(abs(line["diff"]))
    assert line["detectable"] == pytest.approx(half(0.05) + half(0.4))


def test_families_are_corrected_as_statsmodels_does(made):
    _, _, sheets = made
    numbers = sheets["differences"].numbers
    primary = numbers[numbers["task"] == "mean"]
    single = numbers[numbers["task"] != "mean"]
    holm = multipletests(primary["p"], method="holm")[1]
    assert primary["p_holm"].to_numpy() == pytest.approx(holm)
    assert primary["p_bh"].isna().all()
    assert single["p_bh"].to_numpy() == pytest.approx(
        multipletests(single["p"], method="fdr_bh")[1]
    )
    assert len(primary) == 2 * 4 + 2
    assert "random" not in set(numbers["row"])
    assert "random/again" in set(numbers["row"])


def test_differences_are_written_for_a_reader(made):
    _, _, sheets = made
    text = markdown(sheets["differences"])
    line = line_of(sheets["differences"], row="oracle", fraction=0.5, task="mean")
    found = cells(text, "oracle", 1)
    assert found[1].startswith(f"+{100 * line['diff']:.1f} \\[")
    assert found[3] == f"{line['p_sign_flip']:.3f} (0.062)"
    assert found[5] == f"{line['p_improvement']:.2f}"
    assert found[8] == " / ".join(f"{line[f'seeds_{n}']:.0f}" for n in (1, 2, 3))
    assert text.count("### 25% of the pool kept") == 1
    assert "### chain\\_far: 50% of the pool kept" in text
    assert "Holm over 10 comparisons" in text
    # base and full are compared at the lower of two fractions, and shown there only.
    first, second = text.split("### 50% of the pool kept")[:2]
    assert "| base |" in first
    assert "| base |" not in second.split("## Single tasks")[0]


def test_strategies_against_the_samples(folder, made):
    _, table, sheets = made
    sheet = sheets["strategies"]
    line = line_of(sheet, row="length", fraction=0.25, task="chain_core")
    assert line["mean"] == pytest.approx(accuracies(folder, "length", 0.25, "chain_core").mean())
    assert line["half_width"] == pytest.approx((line["ci_high"] - line["ci_low"]) / 2)
    text = markdown(sheet)
    shown = cells(text, "length")
    assert shown[2].startswith(f"{100 * line['mean']:.1f} {HALF} {100 * line['half_width']:.1f}")
    again = next(row for row in text.splitlines() if row.startswith("|  | again |"))
    at = text.splitlines().index(again)
    assert text.splitlines()[at - 1].startswith("| random |  |")
    assert len(sheet.numbers) == len(table)


def test_bold_is_only_what_beats_the_reference_after_correction(made):
    _, table, sheets = made
    bold = {}
    for name in ("strategies", "transfer"):
        text = markdown(sheets[name]).split("## By arm")[0]
        bold[name] = re.findall(r"^\|.*\*\*.*$", text, flags=re.MULTILINE)
        assert not any(re.search(r"\*\*.*\*\*.*\*\*", row) for row in bold[name])
    better = table[(table["task"] == "mean") & (table["verdict"] == "better")]
    assert (better["adjusted_low"] > 0).all()
    assert len(better) == len(bold["strategies"]) == len(bold["transfer"]) > 0
    assert {"influence/combined", "oracle"} >= set(better["row"])
    worse = table[table["verdict"] == "worse"]
    assert "\N{DOWNWARDS ARROW}" in cells(markdown(sheets["transfer"]), "length")[3]
    assert ("length", "mean") in set(zip(worse["row"], worse["task"], strict=True))


def test_a_better_verdict_whose_adjusted_interval_holds_zero_is_not_bold(made):
    results, table, _ = made
    table = table.assign(adjusted_low=-0.01)
    sheets = tables.sheets(results, table)
    assert "**" not in markdown(sheets["strategies"])
    assert "**" not in markdown(sheets["transfer"])


def test_transfer_by_task_and_by_arm_against_the_samples(folder, made):
    _, _, sheets = made
    text = markdown(sheets["transfer"])
    for arm in ("main", "random-errors"):
        for task in ("mean", *TASKS):
            line = line_of(sheets["transfer"], arm=arm, row="oracle", fraction=0.5, task=task)
            only = None if task == "mean" else task
            pair = [accuracies(folder, row, 0.5, only, arm) for row in ("oracle", "random")]
            assert line["diff"] == pytest.approx((pair[0] - pair[1]).mean())
    by_arm = text.split("## By arm")[1]
    diffs = [
        line_of(sheets["transfer"], arm=arm, row="oracle", fraction=0.25, task="mean")["diff"]
        for arm in ("main", "random-errors")
    ]
    shown = [part.strip("*").split()[0] for part in cells(by_arm, "oracle")[1:]]
    assert shown == [f"{100 * diff:+.1f}".replace("-", MINUS) for diff in diffs]
    above = [
        line_of(sheets["transfer"], arm="main", row="length", fraction=0.25, task=task)["diff"] > 0
        for task in TASKS
    ]
    assert cells(text, "length")[-1] == f"{sum(above)} of 2"
    assert "testbed:queries, which is none of these tasks" in text
    # Only the main arm sets arms side by side; base and full stand where they are compared.
    _, _, other = sheets_of(folder, "random-errors")
    assert "By arm" not in markdown(other["transfer"])
    assert by_arm.count("| full |") == 1


def with_costs(folder, change):
    path = folder / "records.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_cost_worked_by_hand(make_results):
    folder = make_results(seeds=(0, 1), items=10)

    def change(entry):
        entry["costs"] |= {"select_flops": 0.0, "train_flops": 4e12 + 1e12 * entry["seed"]}
        entry["costs"] |= {"train_seconds": 10.0, "eval_seconds": 3.0, "select_seconds": 0.5}
        entry["train"]["steps"] = 80
        if entry["row"] == "influence/combined":
            entry["costs"] |= {"select_flops": 9e12, "select_seconds": 25.0}

    with_costs(folder, change)
    _, table, sheets = sheets_of(folder)
    line = line_of(sheets["cost"], row="influence/combined")
    # random trains with 4 and 5 TFLOP, 4.5 in the mean: choosing is worth two of its runs.
    assert line["select_runs"] == pytest.approx(2.0)
    assert line["select_steps"] == pytest.approx(160.0)
    assert line["select_runs_by_seconds"] == pytest.approx(2.5)
    assert line["total_flops"] == pytest.approx(13.5e12)
    assert line["total_seconds"] == pytest.approx(38.0)
    primary = table[(table["row"] == "influence/combined") & (table["task"] == "mean")].iloc[0]
    assert (line["diff"], line["diff_low"]) == (primary["diff"], primary["diff_low"])
    text = markdown(sheets["cost"])
    shown = cells(text, "influence/combined")
    assert shown[1:5] == ["25.0 / 10.0 / 3.0", "9.00 / 4.50 / 13.5", "2.00 / 2.50", "160"]
    assert cells(text, "random")[5] == "reference"
    assert "older than" not in text


def test_cost_of_older_records_is_told_in_seconds(make_results):
    folder = make_results(seeds=(0, 1), items=10)
    with_costs(folder, lambda entry: entry["costs"].pop("train_flops"))
    _, _, sheets = sheets_of(folder)
    numbers = sheets["cost"].numbers
    assert numbers[["train_flops", "total_flops", "select_runs", "select_steps"]].isna().all().all()
    text = markdown(sheets["cost"])
    assert "| TFLOP: select | Runs: by seconds |" in text
    assert "older than the count of operations" in text
    line = line_of(sheets["cost"], row="influence/combined")
    # The parts of influence, and 8.15 s for a training: 8.1 and 8.2 of the two seeds.
    assert line["select_runs_by_seconds"] == pytest.approx((14.1 + 6.2 + 1.4 + 2.9 + 0.05) / 8.15)


def test_a_cost_that_some_cells_lack_is_unknown(make_results):
    folder = make_results(seeds=(0, 1), items=10)
    with_costs(folder, lambda e: e["costs"].update(train_flops=None if e["seed"] else 5e12))
    _, _, sheets = sheets_of(folder)
    numbers = sheets["cost"].numbers.set_index("row")["train_flops"]
    assert math.isnan(numbers["random"])
    assert numbers["base"] == 5e12


NOISE = {
    "accuracy": 0.5, "sd": 0.0125, "sd_low": 0.0083, "sd_high": 0.0254, "low": 0.48, "high": 0.52,
    "n_items": 300, "n_decodes": 4, "verdicts_changed": 12, "texts_changed": 40,
    "binomial_sd": 0.0144, "accuracies": [0.48, 0.52],
}  # fmt: skip


def test_noise_of_the_cells_of_an_arm(make_results):
    small = {"rows": ("random", "full"), "seeds": (0, 1), "items": 10}
    folder = make_results(protocol={"arm": [{"name": "other"}]}, **small)
    make_results(arm="other", **small)
    with_costs(folder, lambda e: e.update(cell=e["arm"].replace("main", "") + e["cell"]))
    still = NOISE | dict.fromkeys(("sd", "verdicts_changed", "texts_changed"), 0)
    still |= dict.fromkeys(("sd_low", "sd_high", "binomial_sd"))
    entry = {
        "repetitions": 8, "engine": {"name": "vllm", "version": "1", "device": "cpu"},
        "decoding": {"decodes": 4, "temperature": 0.6}, "mixed": {"processor": ["a", "b"]},
        "tasks": {"chain_core": NOISE, "chain_far": still}, "mean": NOISE,
    }  # fmt: skip
    cells_ = {"full@1#0": entry, "gone@1#0": entry}
    (folder / "noise.json").write_text(json.dumps({"schema": 1, "cells": cells_}))
    _, _, sheets = sheets_of(folder)
    text = markdown(sheets["noise"])
    assert cells(text, "chain\\_core")[1:] == [
        "50.0", "1.25 \\[0.83, 2.54\\]", "1.44", "48.0 to 52.0", "12 of 300", "40",
    ]  # fmt: skip
    assert cells(text, "chain\\_far")[2:4] == ["0.00", DASH]
    assert "8 repetitions, 4 decodes per item at temperature 0.6, vllm 1 on cpu" in text
    assert "repetitions differ in processor (a and b)" in text
    assert list(sheets["noise"].numbers["cell"].unique()) == ["full@1#0"]
    line = line_of(sheets["noise"], task="chain_core")
    assert (line["sd"], line["repetitions"], line["texts_changed"]) == (0.0125, 8, 40)
    assert "noise" not in sheets_of(folder, "other")[2]


def selected(folder, row, fraction=0.5):
    """Sets of chosen ids by seed, and the table of the first seed."""
    found, first = {}, None
    for line in (folder / "records.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if (entry["row"], entry["fraction"], entry["arm"]) == (row, fraction, "main"):
            table = pd.read_parquet(folder / entry["selection"])
            first = table if first is None else first
            found[entry["seed"]] = set(table.loc[table["chosen"], "id"])
    return found, first


def test_selections_against_sets_and_scipy(folder, made):
    _, _, sheets = made
    sheet = sheets["selections"]
    sets, first = selected(folder, "influence/combined")
    rival, _ = selected(folder, "random")
    line = line_of(sheet, row="influence/combined", fraction=0.5)
    assert line["jaccard_reference"] == pytest.approx(
        np.mean([len(sets[s] & rival[s]) / len(sets[s] | rival[s]) for s in sets])
    )
    assert line["jaccard_seeds"] == 1.0
    own = line_of(sheet, row="random", fraction=0.5)
    pairs = list(itertools.combinations(rival.values(), 2))
    assert own["jaccard_seeds"] == pytest.approx(
        np.mean([len(a & b) / len(a | b) for a, b in pairs])
    )
    # 60 of 120: two random sets share about 30 of 90.
    shared = np.arange(61)
    weights = stats.hypergeom(120, 60, 60).pmf(shared)
    exact = (weights * shared / (120 - shared)).sum()
    assert own["jaccard_seeds_random"] == pytest.approx(exact)
    assert math.isnan(own["jaccard_reference"])
    pool = pd.read_parquet(folder / "pool.parquet").merge(first, on="id")
    assert line["score"] == "s_C"
    for name in ("response_tokens", "steps"):
        rho = stats.spearmanr(pool["s_C"], pool[name]).statistic
        assert line[f"spearman_{name}"] == pytest.approx(rho)
    assert math.isnan(own["spearman_steps"])
    assert set(sheet.numbers["row"]) == set(ROWS) - {"base", "full"}


def test_planted_classes_against_a_count(folder, made):
    _, _, sheets = made
    pool = pd.read_parquet(folder / "pool.parquet")
    sets, _ = selected(folder, "random", 0.25)
    line = line_of(sheets["selections"], row="random", fraction=0.25)
    for name, part in pool.groupby("quality"):
        kept = np.mean([part["id"].isin(chosen).mean() for chosen in sets.values()])
        assert line[f"kept_{name}"] == pytest.approx(kept)
    correct = {"clean-hard", "clean-easy", "near-duplicate", "verbose"}
    wrong = pool[~pool["quality"].isin(correct)]
    pruned = np.mean([1 - wrong["id"].isin(chosen).mean() for chosen in sets.values()])
    assert line["errors_pruned"] == pytest.approx(pruned)
    text = markdown(sheets["selections"])
    assert cells(text, "random", 2)[-1] == f"{100 * pruned:.1f}"
    assert "Errors are off-topic, unfaithful, wrong-answer and wrong-step" in text


def test_a_pool_without_planted_classes_has_no_share_of_them(make_results):
    folder = make_results(seeds=(0,), items=10)
    pool = pd.read_parquet(folder / "pool.parquet").assign(quality=None, steps=None)
    pool.to_parquet(folder / "pool.parquet", index=False)
    _, _, sheets = sheets_of(folder)
    text = markdown(sheets["selections"])
    assert "planted" not in text
    assert not [name for name in sheets["selections"].numbers if name.startswith("kept_")]
    # One seed has no stability; steps are unknown.
    line = line_of(sheets["selections"], row="influence/combined")
    assert math.isnan(line["jaccard_seeds"])
    assert math.isnan(line["spearman_steps"])
    assert cells(text, "influence/combined")[1] == DASH


def test_what_the_records_cannot_fill_is_left_out(make_results):
    folder = make_results(rows=("random",), tasks=("chain_core",), seeds=(0,), items=10)
    for path in (folder / "selections").iterdir():
        path.unlink()
    with_costs(folder, lambda entry: entry.update(selection=None))
    assert set(sheets_of(folder)[2]) == {"main", "strategies", "cost"}


def test_failed_rows_stay_in_every_table(make_results):
    error = {"stage": "train", "message": "nan"}
    failures = {f"length@0.5#{seed}": error for seed in range(2)}
    _, _, sheets = sheets_of(make_results(seeds=(0, 1), items=10, failures=failures))
    for name in ("differences", "strategies", "transfer", "cost"):
        row = next(r for r in markdown(sheets[name]).splitlines() if r.startswith("| length |"))
        assert "failed" in row, name


def test_the_csv_holds_ten_digits_and_quotes_names(make_results):
    name = 'a,"b"'
    _, _, sheets = sheets_of(make_results(rows=("random", name), seeds=(0, 1), items=10))
    text = tables.written(sheets["differences"])["differences.csv"]
    assert text.startswith("row,fraction,task,n_pairs,n_items,diff,")
    assert '"a,""b""",0.5,mean,2,' in text
    numbers = re.findall(r"\d\.(\d+)", text)
    assert max(map(len, numbers)) <= 13  # ten significant ones behind leading zeros
