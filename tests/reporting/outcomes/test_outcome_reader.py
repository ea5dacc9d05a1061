"""Tables as they come: formats, holes, repetitions, and values that cannot be used."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from harness.reporting.outcomes import analyse, read
from harness.reporting.outcomes.render import as_dict
from harness.stats import Outcome, difference

SHIFTS = {"random": 0.0, "b": 0.15, "c": -0.1}


def analysed(path, reference=None):
    return as_dict(analyse(read(path), np.random.default_rng(0), reference))


def table_of(frame, method, seeds, items, task="core"):
    one = frame[(frame["method"] == method) & (frame["task"] == task)]
    table = one.pivot_table("correct", "seed", "item")
    return table.loc[seeds, items].to_numpy(dtype=float)


def said(found, *words):
    return [note for note in found["notes"] if all(word in note for word in words)]


def test_formats_orders_and_types_give_the_same(save, outcomes):
    frame = outcomes(SHIFTS, tasks={"core": 12, "far": 15}, decodes=2)
    expected = analysed(save(frame, "a.csv"))
    mixed = frame.sample(frac=1.0, random_state=np.random.default_rng(0))
    mixed = pd.concat([mixed[mixed["method"] == name] for name in SHIFTS])
    mixed = pd.concat([mixed[mixed["task"] == task] for task in ("core", "far")])
    mixed["correct"] = mixed["correct"].astype(bool)
    for table, name in (
        (mixed, "b.parquet"),
        (mixed.astype({"method": "category", "correct": float}), "c.parquet"),
        (mixed, "d.jsonl"),
        (mixed.assign(seed=mixed["seed"].astype(float), note=["x"] * len(mixed)), "e.csv"),
        (frame.set_index("method"), "f.parquet"),
        (mixed.assign(correct=np.where(mixed["correct"], " True", "FALSE")), "g.csv"),
    ):
        found = analysed(save(table, name))
        assert found.pop("source").endswith(name)
        assert found == {key: value for key, value in expected.items() if key != "source"}


def test_json_lines_may_differ_in_types(save):
    rows = [{"method": "a", "item": i, "correct": (True, 0)[i % 2], "extra": [1]} for i in range(6)]
    rows += [{"method": "b", "item": str(i), "correct": 1} for i in range(6)]
    found = analysed(save("\n".join(map(json.dumps, rows)), "mixed.jsonl"))
    assert found["methods"]["a"]["n_items"] == 6
    assert found["differences"]["b"]["diff"] == pytest.approx(0.5)
    rows = [{"method": "a", "item": f"2024-01-0{i}", "correct": True} for i in range(1, 4)]
    text = "\n".join(map(json.dumps, rows))
    assert read(save(text, "dates.jsonl")).grid.items[0] == "2024-01-01"


def test_missing_items_and_seeds_are_left_out_on_both_sides_and_named(save, outcomes):
    frame = outcomes(SHIFTS, seeds=5, tasks={"core": 20})
    gone = (frame["method"] == "b") & (
        frame["item"].isin(["core-3", "core-7"]) | (frame["seed"] == 4)
    )
    found = analysed(save(frame[~gone]))
    items = sorted(set(frame["item"]) - {"core-3", "core-7"})
    sides = [Outcome.of(table_of(frame, name, range(4), items)) for name in ("b", "random")]
    expected = difference(*sides)
    entry = found["differences"]["b"]
    assert (entry["diff"], entry["p"]) == pytest.approx((expected.diff, expected.p), abs=1e-10)
    assert found["details"]["b"]["n_seeds"] == 4
    assert found["left_out"] == {"b": {"seeds": ["4"], "items": {"core": 2}}}
    assert found["missing"] == {"b": {"seeds": ["4"], "items": {"core": 2}}}
    assert said(found, "b: seed 4 missing")
    assert said(found, "b: 2 of 20 items of core missing (core-3, core-7)")
    assert said(found, "b against random: on 4 common seeds and 18 common items", "2 items of core")
    # The others are compared on everything.
    assert found["details"]["c"]["n_items"] == 20
    assert found["methods"]["random"]["n_seeds"] == 5


def test_single_holes_cost_as_few_results_as_possible(save, outcomes):
    frame = outcomes(SHIFTS, seeds=5, tasks={"core": 20})
    few = (frame["method"] == "b") & (frame["seed"] == 2) & frame["item"].isin(["core-0", "core-9"])
    found = analysed(save(frame[~few]))
    assert (found["methods"]["b"]["n_seeds"], found["methods"]["b"]["n_items"]) == (5, 18)
    assert found["missing"]["b"] == {"cells": 2}
    assert said(found, "b: 2 single results missing (2 of seed 2)")
    assert said(found, "b: its own mean is over the 5 seeds and 18 items that are complete")
    most = (frame["method"] == "b") & (frame["seed"] == 2) & (frame["item"] > "core-12")
    found = analysed(save(frame[~most]))
    assert (found["methods"]["b"]["n_seeds"], found["methods"]["b"]["n_items"]) == (4, 20)
    assert found["left_out"]["b"] == {"seeds": ["2"], "items": {}}


def test_best_complete_table_is_found(save, outcomes):
    """Whatever is missing, no set of seeds taken by completeness keeps more results."""
    rng = np.random.default_rng(5)
    frame = outcomes({"a": 0.0}, seeds=4, tasks={"core": 12})
    for _ in range(20):
        kept = frame[rng.random(len(frame)) < rng.choice([0.6, 0.9, 0.97])]
        present = kept.pivot_table("correct", "seed", "item", aggfunc="size").notna()
        found = analysed(save(kept))["methods"]["a"]
        order = present.sum(axis=1).sort_values(ascending=False, kind="stable").index
        sizes = [k * int(present.loc[order[:k]].all().sum()) for k in range(1, len(order) + 1)]
        assert found["n_seeds"] * found["n_items"] == max(sizes)


def test_a_task_that_a_method_lacks_is_said(save, outcomes):
    frame = outcomes(SHIFTS, tasks={"core": 12, "far": 15})
    found = analysed(save(frame[(frame["method"] != "b") | (frame["task"] == "core")]))
    assert "b" not in found["tasks"]["far"]["differences"]
    assert found["methods"]["b"]["n_items"] == 12
    assert said(found, "b: no result in far: its mean and its difference are over the other tasks")
    assert found["left_out"]["b"]["items"] == {"far": 15}


def test_repeated_rows_count_once_and_are_named(save, outcomes):
    frame = outcomes(SHIFTS, tasks={"core": 12})
    expected = analysed(save(frame))
    found = analysed(save(pd.concat([frame, frame.iloc[[50, 51, 0]]])))
    assert found["differences"] == expected["differences"]
    assert found["missing"] == {"random": {"duplicates": 1}, "b": {"duplicates": 2}}
    n = len(frame)
    assert said(found, f"b: 2 rows repeated, each counted once (first: row {n + 1} repeats row 51)")
    assert said(found, f"random: 1 row repeated, each counted once (first: row {n + 3} repeats")
    other = frame.iloc[[50]].assign(correct=1 - frame["correct"].iloc[50])
    with pytest.raises(ValueError, match=rf"row {n + 1}, column 'correct' is .* but row 51 has"):
        read(save(pd.concat([frame, other])))


def test_results_with_too_few_decodes_are_left_out(save, outcomes):
    frame = outcomes(SHIFTS, seeds=3, tasks={"core": 12}, decodes=4)
    short = (frame["method"] == "b") & (frame["item"] == "core-5") & (frame["seed"] == 1)
    found = analysed(save(frame[~(short & (frame["decode"] == 3))]))
    assert found["missing"]["b"] == {"decodes": 1, "cells": 1}
    assert said(found, "b: 1 result left out: fewer decodes than its other results have")
    assert found["details"]["b"]["n_items"] == 11
    # Methods may differ in decodes.
    found = analysed(save(frame[(frame["method"] != "b") | (frame["decode"] < 2)]))
    assert found["missing"] == {}


def test_a_method_without_seeds_is_one_fixed_checkpoint(save, outcomes):
    frame = outcomes(SHIFTS, tasks={"core": 12}).astype({"seed": object})
    base = frame[(frame["method"] == "c") & (frame["seed"] == 0)].assign(method="base", seed=None)
    for name in ("a.csv", "a.jsonl"):
        found = analysed(save(pd.concat([frame, base]), name))
        items = sorted(set(frame["item"]))
        trained = Outcome.of(table_of(frame, "random", range(4), items))
        fixed = Outcome.of(table_of(frame, "c", [0], items), fixed=True)
        expected = difference(fixed, trained)
        entry = found["differences"]["base"]
        assert (entry["diff"], entry["p"]) == pytest.approx((expected.diff, expected.p), abs=1e-10)
        assert found["methods"]["base"]["n_seeds"] == 1
        assert said(found, "base: no seed: one fixed checkpoint, compared with every seed")
        assert found["missing"] == {}
    part = frame.copy()
    part.loc[3, "seed"] = None
    with pytest.raises(ValueError, match="row 4, column 'seed' is empty; .* every row of 'random'"):
        read(save(part))


def test_reference_is_random_or_the_first_or_the_one_named(save, outcomes):
    frame = outcomes({"b": 0.0, "random": 0.1, "c": 0.2}, tasks={"core": 12})
    assert analysed(save(frame))["reference"] == "random"
    found = analysed(save(frame), "c")
    assert (found["reference"], list(found["differences"])) == ("c", ["b", "random"])
    assert not said(found, "reference:")
    found = analysed(save(frame[frame["method"] != "random"]))
    assert found["reference"] == "b"
    assert said(found, "reference: b, the first method")
    with pytest.raises(ValueError, match="no method 'd'; expected one of b, random, c"):
        analysed(save(frame), "d")


def test_nothing_in_common_is_refused(save, outcomes):
    frame = outcomes(SHIFTS, tasks={"core": 12})
    other = frame["method"] == "b"
    with pytest.raises(ValueError, match="no seed in common: 'b' has seeds 10, 11, 12, 13; 'rando"):
        analysed(save(frame.assign(seed=frame["seed"] + 10 * other)))
    apart = frame.assign(item=np.where(other, "x" + frame["item"], frame["item"]))
    with pytest.raises(ValueError, match="no item in common: 'b' has xcore-0, xcore-1, xcore-10, "):
        analysed(save(apart))
    near = apart.assign(item=apart["item"].replace({"xcore-1": "core-1"}))
    with pytest.raises(
        ValueError, match=r"task 'core': 'b' and 'random' have 1 item\(s\) in common; expected"
    ):
        analysed(save(near))
    with pytest.raises(
        ValueError, match=r"task 'core': 'random' has 1 item\(s\); expected at least 2"
    ):
        analysed(save(frame[(frame["item"] == "core-1") & (frame["method"] == "random")]))


GOOD = "method,seed,item,correct\na,0,x,1\na,0,y,0\n"
BAD = [
    ("method,item,correct\na,x,1\na,y,0.5\n", "row 2, column 'correct' is '0.5'; expected 0 or 1"),
    ("method,item,correct\na,x,1\na,y,\n", "row 2, column 'correct' is empty"),
    ("method,item,correct\n,x,1\na,y,1\n", "row 1, column 'method' is empty; expected a value"),
    ("method,item,correct\na,,1\na,,1\n", "column 'item' is empty (1 more such rows)"),
    ("method,correct\na,1\n", "has no column 'item'; expected method, item, correct"),
    ("method,item,correct\n", "has no rows"),
    ("", "is empty; expected a header"),
    ("method,item,correct\na,x,1,5\n", "cannot be read"),
    ("method,item,correct\na,x,1\na,y,1,9,9\n", "cannot be read"),
    (GOOD.replace("seed", "task").replace("a,0,y", "a,,y"), "row 2, column 'task' is empty"),
    (
        "method,item,correct,cluster\na,x,1,p\na,y,1,q\nb,x,0,q\nb,y,0,q\n",
        "item 'x' is in",
    ),
    ("method,item,correct,cluster\na,x,1,p\na,y,1,p\n", "all items in the cluster 'p'"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_csv_is_named(save, text, message):
    path = save(text)
    with pytest.raises(ValueError, match="expected") as caught:
        analysed(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_bad_values_of_other_formats_are_named(save, tmp_path):
    line = '{"method": "a", "item": "x", "correct": true}\n'
    for text, message in (
        (line + '{"method": "a", "item": "y", "correct": 0.5}\n', "row 2, column 'correct' is 0.5"),
        (line + "\n{oops\n", "row 3 is not JSON"),
        (line + "[1]\n", "row 2 is '[1]'; expected an object"),
        (line + '{"method": "a", "item": [1], "correct": 1}\n', "row 2, column 'item' is [1]"),
        (line + '{"method": "a", "item": "y"}\n', "row 2, column 'correct' is empty"),
        (line + '{"method": "a", "item": "y", "correct": "yes"}\n', "'correct' is 'yes'"),
        ("", "has no column 'method'"),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            read(save(text, "bad.jsonl"))
        assert message in str(caught.value)
    frame = pd.DataFrame({"method": ["a", "a"], "item": [1, 2], "correct": [1.0, np.nan]})
    with pytest.raises(ValueError, match="row 2, column 'correct' is empty"):
        read(save(frame, "bad.parquet"))
    with pytest.raises(ValueError, match="row 1, column 'correct' is 2; expected 0 or 1"):
        read(save(frame.assign(correct=[2, 1]), "bad.parquet"))
    (tmp_path / "no.parquet").write_bytes(b"PAR0")
    with pytest.raises(ValueError, match="expected a Parquet file"):
        read(tmp_path / "no.parquet")
    (tmp_path / "latin.csv").write_bytes("method,item,correct\né,x,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="expected CSV in UTF-8"):
        read(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match=r"ends in '.txt'; expected .parquet"):
        read(save("x", "a.txt"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "none.csv")


def test_names_stay_what_they_are(save):
    lines = ["method,seed,item,correct"]
    lines += [
        f"{name},{seed},{item},1"
        for name, seed, item in itertools.product(("NA", "null"), ("01", "1"), ("001", "1", "nan"))
    ]
    table = read(save("\n".join(lines)))
    assert (tuple(table.methods), table.grid.seeds) == (("NA", "null"), ("01", "1"))
    assert set(table.grid.items) == {"001", "1", "nan"}
