"""pass@k and the majority answer, worked by hand and counted one by one."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from harness.stats.pass_at_k import COLUMNS, majority, summarise

VOTES = [
    # Two right against one and one: the right answer has most votes.
    ([("5", True), ("5", True), ("7", False), ("8", False)], 1.0),
    # Three wrong ones that agree.
    ([("5", True), ("7", False), ("7", False), ("7", False)], 0.0),
    # Two against two: a coin.
    ([("5", True), ("5", True), ("7", False), ("7", False)], 1 / 2),
    # Every answer once, one of them right.
    ([("5", True), ("6", False), ("7", False), ("8", False)], 1 / 4),
    # A tie between wrong answers only.
    ([("6", False), ("6", False), ("7", False), ("7", False)], 0.0),
    # Equal, differently spelt: wrong ones together outvote the right one...
    ([("5", True), ("x = Y", False), ("X  =  y", False), (" x = y ", False)], 0.0),
    ([("5", True), ("1,000", False), ("1000.0", False), ("8", False)], 0.0),
    # ...and right ones are one class whatever their text.
    ([("1/2", True), ("one half", True), ("7", False), ("8", False)], 1.0),
    # Who gave no answer does not vote.
    ([("5", True), (None, False), (None, False), (None, False)], 1.0),
    ([("7", False), (None, False), (None, False), (None, False)], 0.0),
    ([(None, False)] * 4, 0.0),
    # A text that is wrong here is not the right class, even when it reads the same.
    ([("5", True), ("5", False), ("5", False)], 0.0),
]


@pytest.mark.parametrize(("cast", "score"), VOTES)
def test_majority_by_hand(cast, score):
    answers, correct = zip(*cast, strict=True)
    assert majority([0] * len(cast), correct, answers) == pytest.approx([score])


def test_majority_of_many_items_in_any_order(tmp_path):
    lines = [(at, *vote) for at, (cast, _) in enumerate(VOTES) for vote in cast]
    np.random.default_rng(1).shuffle(lines)
    items, answers, correct = zip(*lines, strict=True)
    items, correct = [int(at) for at in items], [bool(c) for c in correct]
    expected = [score for _, score in VOTES]
    assert majority(items, correct, answers) == pytest.approx(expected)
    # As Parquet gives texts back.
    frame = pd.DataFrame({"answer": pd.Series(answers, dtype=object)})
    frame.to_parquet(tmp_path / "x.parquet")
    stored = pd.read_parquet(tmp_path / "x.parquet")["answer"]
    assert majority(items, correct, stored) == pytest.approx(expected)


def test_majority_against_a_count_of_votes():
    rng = np.random.default_rng(2)
    items = np.repeat(np.arange(300), 5)
    answers = rng.choice(["yes", "no", "maybe", None], size=items.size)
    correct = (answers == "yes") & (items % 3 > 0)
    answers[correct & (rng.random(items.size) < 0.5)] = "YES indeed"
    expected = []
    for item in range(300):
        mine = items == item
        cast = Counter(
            "right" if right else answer
            for answer, right in zip(answers[mine], correct[mine], strict=True)
            if right or answer is not None
        )
        top = [kind for kind, n in cast.items() if n == max(cast.values())]
        expected.append(("right" in top) / len(top) if top else 0.0)
    assert len(set(expected)) >= 4
    assert majority(items, correct, answers) == pytest.approx(expected)


def test_no_decodes_no_items():
    assert majority([], [], []).shape == (0,)


def outcomes(*cells):
    """(row, seed, task, item, [(answer, correct), ...], truncated) as long outcomes."""
    lines = [
        (row, 0.5, seed, task, item, decode, correct, answer, truncated)
        for row, seed, task, item, cast, truncated in cells
        for decode, (answer, correct) in enumerate(cast)
    ]
    names = ["row", "fraction", "seed", "task", "item", "decode", "correct", "answer", "truncated"]
    return pd.DataFrame(lines, columns=names).astype({"truncated": "boolean"})


BOTH = [("5", True), ("5", True)]
HALF = [("5", True), ("7", False)]
NONE = [("7", False), ("8", False)]


def test_summary_by_hand():
    found = summarise(
        outcomes(
            ("a", 0, "t", "x", BOTH, True), ("a", 0, "t", "y", HALF, False),
            ("a", 1, "t", "x", NONE, False), ("a", 1, "t", "y", HALF, pd.NA),
            ("a", 0, "u", "z", NONE, False), ("a", 0, "u", "w", NONE, False),
            ("a", 1, "u", "z", BOTH, False), ("a", 1, "u", "w", NONE, False),
        )
    ).set_index("task")  # fmt: skip
    assert list(found.columns) == ["row", "fraction", *COLUMNS]
    # Task t: items 1, 1, 0, 1 pass; votes 1, 1/2, 0, 1/2; 2 of 6 known responses were cut.
    assert list(found.loc["t", list(COLUMNS)]) == pytest.approx([3 / 4, 1 / 2, 2, 1 / 3])
    assert list(found.loc["u", list(COLUMNS)]) == pytest.approx([1 / 4, 1 / 4, 2, 0])
    # Tasks weigh the same; responses are counted together.
    assert list(found.loc["mean", list(COLUMNS)]) == pytest.approx([1 / 2, 3 / 8, 2, 1 / 7])


def test_a_seed_that_lacks_an_item_or_a_decode_does_not_count():
    whole = [("a", 0, "t", "x", BOTH, False), ("a", 0, "t", "y", HALF, False)]
    found = summarise(
        outcomes(
            *whole,
            ("a", 1, "t", "x", BOTH, True),
            ("a", 2, "t", "x", BOTH, True), ("a", 2, "t", "y", NONE[:1], True),
        )
    )  # fmt: skip
    alone = summarise(outcomes(*whole))
    pd.testing.assert_frame_equal(found, alone)
    assert found["majority"].iloc[0] == pytest.approx(3 / 4)


def test_one_decode_and_unknown_truncation_stay_empty():
    found = summarise(
        outcomes(
            ("a", 0, "t", "x", BOTH[:1], pd.NA), ("a", 0, "t", "y", NONE[:1], pd.NA),
            ("b", 0, "t", "x", HALF, pd.NA), ("b", 0, "t", "y", NONE, pd.NA),
        )
    )  # fmt: skip
    one, two = (found[(found["row"] == row) & (found["task"] == "t")].iloc[0] for row in "ab")
    assert one["decodes"] == 1
    assert (two["pass_at_k"], two["majority"], two["decodes"]) == (1 / 2, 1 / 4, 2)
    assert found["truncated"].isna().all()
    assert one[["pass_at_k", "majority"]].isna().all()


def test_no_mean_over_tasks_that_differ_in_decodes():
    found = summarise(
        outcomes(
            ("a", 0, "t", "x", BOTH, False), ("a", 0, "t", "y", HALF, False),
            ("a", 0, "u", "z", BOTH[:1], False), ("a", 0, "u", "w", NONE[:1], True),
        )
    ).set_index("task")  # fmt: skip
    assert found.loc["t", "pass_at_k"] == 1
    assert found.loc["mean", ["pass_at_k", "majority", "decodes"]].isna().all()
    assert found.loc["mean", "truncated"] == pytest.approx(1 / 6)
