"""Figures show the numbers that the files of an experiment give, worked out here once more."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager, ft2font
from scipy import stats

from harness.reporting import figures, tables
from harness.reporting.figures.scores import running_median
from harness.reporting.figures.style import LEAN, LETTERS, WHOLE, context, families
from harness.reporting.results import load
from harness.stats import summarise

ROWS = ("base", "random", "length", "perplexity/top", "influence/combined", "full", "oracle")


@pytest.fixture
def drawn(make_results, tmp_path):
    def draw(name, change=None, **settings):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        folder = make_results(**({"rows": ROWS} | settings))
        if change is not None:
            change(folder)
        (results,) = load(folder)
        table = tables.main(results, summarise(results.outcomes, seeds=results.seeds))
        with context():
            figure = figures.FIGURES[name](results, table)
        return figure, results, table

    return draw


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def rewrite(folder, change):
    """Every record anew, as `change` leaves it."""
    found = records(folder)
    for record in found:
        change(record)
    text = "".join(json.dumps(record) + "\n" for record in found)
    (folder / "records.jsonl").write_text(text)


def seed_means(results):
    """(row, fraction, seed): accuracy, mean over items, then over tasks, from the samples."""
    found = {}
    for record in records(results.folder):
        samples = pd.read_parquet(results.folder / record["samples"])
        key = (record["row"], record["fraction"], record["seed"])
        found[key] = samples.groupby("task")["correct"].mean().mean()
    return found


def chosen(results, row, fraction, seed):
    (record,) = (
        record
        for record in records(results.folder)
        if (record["row"], record["fraction"], record["seed"]) == (row, fraction, seed)
    )
    return pd.read_parquet(results.folder / record["selection"])


def marks(axis):
    return [line for line in axis.lines if line.get_marker() not in ("None", "", "|")]


def numbers(axis, named=None):
    """What a shaded table says, by row and column; rows are named at `named` or the axis itself."""
    labels = [text.get_text() for text in (named or axis).get_yticklabels()]
    rows = dict(zip((named or axis).get_yticks(), labels, strict=True))
    columns = [text.get_text() for text in axis.get_xticklabels()] or labels
    return {
        (rows[text.get_position()[1]], columns[int(text.get_position()[0])]): text.get_text()
        for text in axis.texts
        if text.get_text() not in labels
    }


def test_seeds_are_paired_and_stand_in_order(drawn):
    figure, results, _ = drawn("seeds", fractions=(0.25, 0.5, 0.75))
    means = seed_means(results)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "random" not in names
    for axis, fraction in zip(figure.axes, (0.25, 0.5, 0.75), strict=True):
        counts = {t.get_position()[1]: t.get_text() for t in axis.texts if "/" in t.get_text()}
        for line, row, y in zip(marks(axis), names, axis.get_yticks(), strict=True):
            own = {"base": 0.0, "full": 1.0}.get(row, fraction)
            other = 0.5 if row in ("base", "full") else fraction
            gaps = [
                means[row, own, 0 if row == "base" else seed] - means["random", other, seed]
                for seed in (0, 1, 2)
            ]
            assert line.get_xdata() == pytest.approx(100 * np.array(gaps))
            assert list(line.get_ydata()) == sorted(line.get_ydata())
            assert counts[y] == f"{sum(gap > 0 for gap in gaps)}/3"


def test_seeds_show_only_pairs(drawn):
    error = {"stage": "train", "message": "nan"}
    figure, results, _ = drawn("seeds", failures={"length@0.5#1": error, "random@0.5#0": error})
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    (at,) = (i for i, name in enumerate(names) if name.startswith("length"))
    (gap,) = marks(figure.axes[0])[at].get_xdata()
    means = seed_means_of(results, "length", 2) - seed_means_of(results, "random", 2)
    assert gap == pytest.approx(100 * means)


def seed_means_of(results, row, seed):
    done = results.outcomes[(results.outcomes["row"] == row) & (results.outcomes["seed"] == seed)]
    return done.groupby("task")["correct"].mean().mean()


def test_one_seed_says_nothing_seed_by_seed(drawn):
    assert drawn("seeds", seeds=(0,))[0] is None


def test_overlap_counts_what_two_sets_share(drawn):
    def same_choice(folder):  # length chooses the same whatever the seed
        found = {}

        def change(record):
            if record["row"] == "length":
                record["selection"] = found.setdefault("length", record["selection"])

        rewrite(folder, change)

    figure, results, _ = drawn("overlap", same_choice, fractions=(0.25, 0.5, 0.75))
    (axis,) = figure.axes
    rows = ["random", "length", "perplexity/top", "influence/combined", "oracle"]
    sets = {
        (row, seed): set(frame.loc[frame["chosen"], "id"])
        for row, seed in itertools.product(rows, (0, 1, 2))
        for frame in [chosen(results, row, 0.5, seed)]
    }
    expected = {}
    for i, row in enumerate(rows):
        for other in rows[: i + 1]:
            seeds = [(s, s) for s in range(3)] if row != other else [(0, 1), (0, 2), (1, 2)]
            each = [(sets[row, a], sets[other, b]) for a, b in seeds]
            mean = np.mean([len(a & b) / len(a | b) for a, b in each])
            expected[row, other] = f"{mean:.2f}".removeprefix("0")
    del expected["length", "length"]
    assert numbers(axis) == expected
    said = axis.get_title(loc="left")
    assert "50% kept" in said
    assert "random sets: 0.33" in said


def test_overlap_goes_by_id_and_refuses_other_ids(drawn):
    def shuffle(folder):
        for record in records(folder):
            if record["row"] == "oracle":
                frame = pd.read_parquet(folder / record["selection"])
                frame.sample(frac=1, random_state=1).to_parquet(folder / record["selection"])

    figure, _, _ = drawn("overlap", fractions=(0.5,), rng_seed=5)
    expected = numbers(figure.axes[0])
    figure, _, _ = drawn("overlap", shuffle, fractions=(0.5,), rng_seed=5)
    assert numbers(figure.axes[0]) == expected

    def rename(folder):
        (path,) = [folder / r["selection"] for r in records(folder) if r["cell"] == "length@0.5#1"]
        pd.read_parquet(path).assign(id=lambda frame: "x" + frame["id"]).to_parquet(path)

    with pytest.raises(ValueError, match="row 'length' chose among other ids"):
        drawn("overlap", rename, fractions=(0.5,))


def test_detection_against_pandas_and_mann_and_whitney(drawn):
    figure, results, _ = drawn("detection", pool_size=240)
    quality = results.pool.set_index("id")["quality"]
    correct = set(results.facts["correct_classes"])
    errors = sorted(set(quality) - correct)
    shares, areas = (numbers(axis, figure.axes[0]) for axis in figure.axes)
    for row in ("random", "length", "influence/combined", "oracle"):
        frames = [chosen(results, row, 0.5, seed).set_index("id") for seed in (0, 1, 2)]
        for name in [*errors, "all errors", "correct"]:
            inside = {"all errors": set(errors), "correct": correct}.get(name, {name})
            members = quality.index[quality.isin(inside)]
            gone = np.mean([1 - frame.loc[members, "chosen"].mean() for frame in frames])
            assert shares[row, name] == f"{100 * gone:.0f}"
            if name == "correct":
                continue
            column = {"length": "score", "influence/combined": "s_C"}.get(row)
            if column is None:
                assert areas[row, name] == "\N{EN DASH}"
                continue
            right = quality.index[quality.isin(correct)]
            area = np.mean(
                [
                    stats.mannwhitneyu(frame.loc[right, column], frame.loc[members, column])[0]
                    / (len(right) * len(members))
                    for frame in frames
                ]
            )
            assert areas[row, name] == f"{area:.2f}".removeprefix("0")
    assert "random: 50" in figure.axes[0].get_title()


def test_repaired_errors_are_none(make_results):
    pool = {"dataset": "testbed:chain", "errors": "systematic"}
    arm = {"name": "random-errors", "pool": {"errors": "none"}}
    make_results(rows=ROWS, seeds=(0, 1), protocol={"pool": pool, "arm": [arm]})
    arms = load(make_results(rows=ROWS, seeds=(0, 1), arm="random-errors", rng_seed=3))
    assert [results.repaired for results in arms] == [False, True]
    for results, drawn in zip(arms, (True, False), strict=True):
        table = tables.main(results, summarise(results.outcomes, seeds=results.seeds))
        with context():
            assert (figures.FIGURES["detection"](results, table) is not None) == drawn


def test_detection_needs_known_classes(drawn):
    def forget(folder):
        facts = json.loads((folder / "facts.json").read_text())
        for arm in facts["arms"].values():
            del arm["correct_classes"]
        (folder / "facts.json").write_text(json.dumps(facts))

    assert drawn("detection", forget)[0] is None


def test_score_length_shows_every_example_and_its_rank_correlation(drawn):
    figure, results, _ = drawn("score-length")
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [
        "length",
        "perplexity/top",
        "influence/combined: s_C",
    ]
    for axis, row, column in zip(figure.axes, ROWS[2:5], ("score", "score", "s_C"), strict=True):
        frame = chosen(results, row, 0.5, 0).merge(results.pool, on="id")
        length = stats.spearmanr(frame[column], frame["response_tokens"]).statistic
        steps = stats.spearmanr(frame[column], frame["steps"]).statistic
        said = axis.get_title().split("\n")[1].replace("\N{MINUS SIGN}", "-")
        assert said == f"\N{GREEK SMALL LETTER RHO} length {length:.2f}, steps {steps:.2f}"
        dots = {line.get_markerfacecolor() != "none": line for line in marks(axis)}
        for kept, line in dots.items():
            part = frame[frame["chosen"] == kept]
            place = 100 * stats.rankdata(frame[column])[part.index] / len(frame)
            assert line.get_ydata() == pytest.approx(place)
            assert np.abs(line.get_xdata() - part["response_tokens"]).max() <= 0.35


def test_running_median_by_hand():
    x = np.repeat([1.0, 2.0, 5.0], [6, 4, 2])
    at, median = running_median(x, np.arange(12.0))
    assert list(at) == [1.0, 2.0, 5.0]
    assert list(median) == [2.5, 7.5, 10.5]


def test_compute_is_selection_and_training_in_runs_of_full(drawn):
    figure, results, table = drawn("compute", fractions=(0.25, 0.5))
    primary = table[table["task"] == "mean"].set_index(["row", "fraction"])["mean"]
    spent = {}
    for record in records(results.folder):
        costs = record["costs"]
        key = (record["row"], record["fraction"])
        spent.setdefault(key, []).append(costs["select_flops"] + costs["train_flops"])
    titles = [axis.get_title() for axis in figure.axes]
    assert sorted(titles) == ["influence/combined", "length", "oracle", "perplexity/top"]
    for axis, row in zip(figure.axes, titles, strict=True):
        own = marks(axis)[-2:]
        for line, fraction in zip(own, (0.25, 0.5), strict=True):
            runs = np.mean(spent[row, fraction]) / np.mean(spent["full", 1.0])
            assert line.get_xdata() == pytest.approx([runs])
            assert line.get_ydata() == pytest.approx([100 * primary[row, fraction]])
        dear = row == "influence/combined"
        assert (own[0].get_xdata()[0] > 2) == dear


def test_compute_is_left_out_where_training_was_not_counted(drawn):
    def forget(folder):
        rewrite(folder, lambda record: record["costs"].pop("train_flops"))

    assert drawn("compute", forget)[0] is None


def test_legend_of_costs_names_every_part_that_is_seen(drawn):
    def cheap(folder):
        def change(record):
            if record["row"] == "perplexity/top":
                record["costs"] |= {"select_seconds": 0.3, "select_parts": {"losses": 0.3}}
            if record["row"] == "length":
                record["costs"] |= {"select_seconds": 0.01, "select_parts": {"tokens": 0.01}}

        rewrite(folder, change)

    figure, _, _ = drawn("cost", cheap)
    named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert "losses" in named  # 0.3 of 24.6 seconds
    assert "tokens" not in named


def test_the_lean_font_has_the_letters_and_widths_of_the_whole_one():
    assert families() == [LEAN, WHOLE]
    found = {}
    for name in families():
        font = ft2font.FT2Font(font_manager.findfont(name, fallback_to_default=False))
        letters = {code for part in LETTERS for code in part} & set(font.get_charmap())
        found[name] = {code: font.load_char(code).linearHoriAdvance for code in letters}
    assert found[LEAN] == found[WHOLE]
    assert len(found[LEAN]) > 400
