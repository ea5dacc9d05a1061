"""Which examples and items a page shows, against small cases worked by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.reporting import quotes
from harness.reporting.numbers import MINUS, NONE
from harness.reporting.page import explorer
from harness.reporting.results import load

IDS = ["a", "b", "c", "d"]


def selection(folder, name, kept, **scores):
    frame = pd.DataFrame({"id": IDS, "chosen": [i in kept for i in IDS], **scores})
    frame.to_parquet(folder / "selections" / f"{name}.parquet", index=False)
    return f"selections/{name}.parquet"


@pytest.fixture
def small(make_results):
    """Four examples, two selectors with two seeds each, and random.

    long keeps a, b and then a, c; short keeps a, d twice: shares 1, 1/2, 1/2, 0 and 1, 0, 0, 1.
    """
    folder = make_results(rows=("base", "random", "long", "short"), seeds=(0, 1), items=4)
    quality = ["clean", "clean", "wrong", "wrong"]
    pool = pd.DataFrame(
        {"id": IDS, "quality": quality, "response_tokens": 7, "steps": [1, 2, 3, 0]}
    )
    pool.to_parquet(folder / "pool.parquet", index=False)
    s = {"s_C": [0.5, 0.25, -1234.5, 2e-7], "s_I": [1.0, 0.0, 0.0, 0.0]}
    files = {
        ("long", 0): selection(folder, "l0", "ab", score=[4.0, 3.0, 2.0, 1.0]),
        ("long", 1): selection(folder, "l1", "ac", score=[4.0, 3.0, 2.0, 1.0]),
        ("short", 0): selection(folder, "s0", "ad", score=[2.0, 1.0, 1.0, 9.0], **s),
        ("short", 1): selection(folder, "s0", "ad", score=[2.0, 1.0, 1.0, 9.0], **s),
        ("random", 0): selection(folder, "r0", "cd"),
        ("random", 1): selection(folder, "r1", "cd"),
    }
    path = folder / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["selection"] = files.get((line["row"], line["seed"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"arms": {"main": {"correct_classes": ["clean"]}}}
    (folder / "facts.json").write_text(json.dumps(facts))
    return load(folder)[0]


def test_an_a_a_control_is_no_selector(make_results):
    rows = ("base", "random", "random/again", "length", "difficulty")
    (results,) = load(make_results(rows=rows, items=4))
    assert results.again == ("random/again",)
    found = quotes.choices(results)
    assert [chosen.row for chosen in found.judged] == ["length", "difficulty"]
    assert "those that the 2 selectors keep" in explorer.examples(results).about
    items = quotes.items(results)
    assert [items.rows[i] for i in items.judged] == ["random", "length", "difficulty"]


def test_orders_by_hand(small):
    found = quotes.choices(small)
    assert [chosen.row for chosen in found.judged] == ["long", "short"]
    assert found.share == pytest.approx([1, 0.25, 0.25, 0.5])
    orders = {name: [IDS[p] for p in order] for name, order in found.orders().items()}
    # b and c are equal in share; long puts b above c, and short ties them.
    assert orders["kept"] == ["a", "d", "b", "c"]
    assert orders["pruned"] == ["c", "b", "d", "a"]
    # Variances of the shares: 0, 1/16, 1/16, 1/4. Places of b: 3/4 and 3/8, of c: 1/2 and 3/8.
    assert orders["apart"] == ["d", "b", "c", "a"]


def test_best_and_worst_by_a_rows_own_score(small):
    shown = quotes.choices(small).lists()
    assert shown.own["best"] == {"long": (0, 1, 2, 3), "short": (3, 0, 1, 2)}
    assert shown.own["worst"] == {"long": (3, 2, 1, 0), "short": (1, 2, 0, 3)}
    assert shown.positions == (0, 1, 2, 3)
    assert quotes.shown_examples(small) == ("a", "b", "c", "d")


def test_what_is_said_of_an_example(small):
    data = explorer.examples(small).data
    a, b, c, d = data["entries"]
    assert a["facts"] == "7 tokens · 1 step · kept in 100% of choices"
    assert b["terms"][1:] == [["In part", "long (50%)"], ["Pruned by", "random, short"]]
    assert data["rows"] == ["random", "long", "short"]
    assert c["lines"][0] == ["2 of 2", NONE, NONE, ""]
    assert c["lines"][1] == ["1 of 2", "2", "3", ""]
    assert c["lines"][2] == ["0 of 2", "1", "3", f"s_C {MINUS}1,234, s_I 0"]
    assert b["lines"][2][2] == "3"  # equal scores share the better place
    assert d["terms"][0] == ["Influence", f"s_C 2e{MINUS}07, s_I 0 (short)"]
    assert [e["flagged"] for e in (a, b, c, d)] == [False, False, True, True]


def test_a_list_filtered_by_class_still_holds_that_classs_first():
    order = np.arange(40)
    kinds = tuple("rare" if i in (20, 25, 30, 35) else "many" for i in range(40))
    taken = quotes._ends(order, kinds)
    assert taken == (*range(quotes.TOP), 20, 25, 30)


def test_no_more_examples_than_the_limit(make_results):
    rows = ("base", "random", *(f"row/{i}" for i in range(30)))
    folder = make_results(rows=rows, pool_size=2000, items=4, seeds=(0,), tasks=("chain_core",))
    rng = np.random.default_rng(0)
    for path in (folder / "selections").iterdir():
        pd.read_parquet(path).assign(score=rng.random(2000)).to_parquet(path, index=False)
    results = load(folder)[0]
    shown = quotes.choices(results).lists()
    assert quotes.MOST_EXAMPLES / 2 < len(shown.positions) <= quotes.MOST_EXAMPLES


def fill(folder, table, asked=("x", "y", "z")):
    """Samples by hand: `table[row][seed]` says which items are right; all are of one task."""
    path = folder / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        right = table[line["row"]][line["seed"]]
        frame = pd.DataFrame({"task": "chain_core", "item": list(asked), "decode": np.int16(0)})
        frame["correct"] = [item in right for item in asked]
        frame["answer"] = ["1" if item in right else None for item in asked]
        frame["response"] = [f"{line['row']} {item} " + "." * 700 for item in asked]
        frame.to_parquet(folder / line["samples"], index=False)
    return load(folder)[0]


@pytest.fixture
def flipping(make_results):
    """x: won by length in both seeds; y: right everywhere; z: a matter of length's seeds."""
    rows = ("base", "random", "length")
    folder = make_results(rows=rows, seeds=(0, 1), tasks=("chain_core",), items=3)
    table = {"base": {0: "y"}, "random": {0: "y", 1: "yz"}, "length": {0: "xyz", 1: "xy"}}
    return fill(folder, table)


def test_items_that_flip_by_hand(flipping):
    items = quotes.items(flipping)
    assert items.keys == (("chain_core", "x"), ("chain_core", "y"), ("chain_core", "z"))
    assert items.rows == ("base", "random", "length")
    assert items.right.tolist() == [[0, 1, 0], [0, 2, 1], [2, 2, 1]]
    assert items.asked.tolist() == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert np.isnan(items.between[0]).all()
    assert items.between[1:].tolist() == [[0, 0, 0.25], [0, 0, 0.25]]
    shown = items.lists()
    assert shown.orders == {"rows": (0,), "seeds": (2,)}
    assert shown.own["won"] == {"base": (), "length": (0,)}
    assert shown.own["lost"] == {"base": (2,), "length": ()}
    assert quotes.shown_questions(flipping) == (("chain_core", "x"), ("chain_core", "z"))


def test_what_is_said_of_an_item(flipping):
    frame = pd.DataFrame(
        {"task": ["chain_core"], "item": ["x"], "question": ["why?"], "answer": ["1"]}
    )
    quotes.kept_questions(frame, None).to_parquet(flipping.folder / quotes.QUESTIONS, index=False)
    data = explorer.answers(flipping, "length").data
    x, z = data["entries"]
    assert x["quotes"] == [["Question", {"text": "why?", "note": ""}]]
    assert x["terms"] == [["Right answer", "1"]]
    assert z["quotes"] == [["Question", None]]
    assert z["terms"] == [["Right answer", "not stored"]]
    assert data["heads"] == ["Row", "Right", "Seed 0", "Seed 1"]
    assert x["lines"] == [
        ["0 of 1", "\N{BALLOT X} none", NONE],
        ["0 of 2", "\N{BALLOT X} none", "\N{BALLOT X} none"],
        ["2 of 2", "\N{CHECK MARK} 1", "\N{CHECK MARK} 1"],
    ]
    number = x["texts"][2][1]
    assert data["texts"][number]["text"].startswith("length x ...")
    assert data["texts"][number]["note"] == "cut: the first 600 of 709 characters"
    # Both seeds gave the same text, which is held once.
    assert x["texts"][2][0] == number
    said = "length is right more often than random on 1 of 3 items, less often on 0"
    assert data["changes"]["length"] == said
    assert data["changes"]["random"] == ""


def test_a_response_that_the_token_limit_cut_says_so(flipping):
    for cell in flipping.done:
        path = flipping.folder / cell.record["samples"]
        pd.read_parquet(path).assign(truncated=cell.row == "length").to_parquet(path, index=False)
    data = explorer.answers(load(flipping.folder)[0], "length").data
    x = data["entries"][0]
    notes = [data["texts"][numbers[0]]["note"] for numbers in x["texts"]]
    assert [note.endswith("; cut at the token limit") for note in notes] == [False, False, True]


def test_items_that_a_row_was_not_asked_are_no_flips(make_results):
    rows = ("base", "random", "length")
    folder = make_results(rows=rows, seeds=(0,), tasks=("chain_core",), items=3)
    results = fill(folder, {row: {0: "x"} for row in rows})
    outcomes = results.outcomes
    gone = (outcomes["row"] == "length") & (outcomes["item"] == "x")
    object.__setattr__(results, "outcomes", outcomes[~gone])
    items = quotes.items(results)
    assert items.asked.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1]]
    assert items.change(2).tolist() == [0, 0, 0]
    assert items.lists().positions == ()
    assert explorer.answers(results, "length") is None


def test_no_more_responses_than_the_limit(make_results, monkeypatch):
    monkeypatch.setattr(explorer, "RESPONSES", 200)
    results = load(make_results(items=60))[0]
    data = explorer.answers(results, "length").data
    held = sum(
        number is not None
        for item in data["entries"]
        for numbers in item["texts"]
        for number in numbers
    )
    assert 100 < held <= 200


def test_texts_of_other_data_sets_are_kept_as_far_as_they_are_shown():
    pool = pd.DataFrame({"id": ["a", "b"], "prompt": ["p" * 3000, "q"], "response": ["r", "s"]})
    whole, part = quotes.kept_examples(pool, None), quotes.kept_examples(pool, ["a"])
    assert list(whole["prompt"].str.len()) == [3000, 1]
    assert part.to_dict("records") == [
        {
            "id": "a",
            "prompt": "p" * 2000,
            "response": "r",
            "prompt_length": 3000,
            "response_length": 1,
        }
    ]
    asked = pd.DataFrame(
        {
            "task": ["gsm8k", "gsm8k", "gpqa_diamond"],
            "item": ["1", "2", "1"],
            "question": "how many?",
            "answer": "3",
        }
    )
    kept = quotes.kept_questions(asked, [("gsm8k", "2"), ("gpqa_diamond", "1")])
    assert kept[["task", "item"]].to_numpy().tolist() == [["gsm8k", "2"]]
    assert set(quotes.kept_questions(asked, None)["task"]) == {"gsm8k"}


def test_a_row_that_lacks_a_seed_keeps_the_others_in_their_columns(make_results):
    rows = ("base", "random", "length")
    error = {"stage": "train", "message": "nan"}
    folder = make_results(
        rows=rows, seeds=(0, 1), tasks=("chain_core",), items=3,
        failures={"length@0.5#0": error},
    )  # fmt: skip
    data = explorer.answers(load(folder)[0], "length").data
    assert data["columns"] == [0, 1]
    assert data["seeds"]["length"] == [1]
    for entry in data["entries"]:
        assert entry["lines"][2][1] == NONE
        assert entry["lines"][2][2] != NONE
        assert entry["texts"][2][0] is None
