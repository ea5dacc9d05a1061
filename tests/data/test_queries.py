"""The query set's answers: rules for several decodes, files, and what counts as a flip."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.queries import Answers, Queries
from harness.selection import toy

# Right decodes of four: none, one, two (a tie), three, four.
RIGHT = np.array([[k < count for k in range(4)] for count in range(5)])


def answers(right):
    """Decode k of query v says "vk"; its tokens are v and k."""
    right = np.asarray(right, dtype=bool)
    rows, columns = right.shape
    texts = tuple(tuple(f"{v}{k}" for k in range(columns)) for v in range(rows))
    tokens = tuple(tuple(np.array([v, k], np.int32) for k in range(columns)) for v in range(rows))
    return Answers(texts, tokens, right)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("majority", [0, 0, 0, 1, 1]), ("any", [0, 1, 1, 1, 1]), ("all", [0, 0, 0, 0, 1])],
)
def test_rules_by_hand(rule, expected):
    assert answers(RIGHT).correct(rule).tolist() == [bool(v) for v in expected]
    single = answers([[True], [False]])
    assert single.correct(rule).tolist() == [True, False]


def test_majority_of_three_needs_two():
    three = answers([[True, True, False], [True, False, False]])
    assert three.correct("majority").tolist() == [True, False]


def test_flips_follow_the_rule():
    pool = toy.make_queries().pool.take(range(3))
    before = answers([[True, False, False], [True, True, False], [False, False, False]])
    after = answers([[True, True, False], [True, False, False], [True, False, False]])
    queries = Queries(pool, before, after)
    assert (queries.C.tolist(), queries.I.tolist()) == ([0], [1])
    some = Queries(pool, before, after, "any")
    assert (some.C.tolist(), some.I.tolist()) == ([2], [])


@pytest.mark.parametrize("decodes", [1, 3])
def test_saved_and_read(tmp_path, decodes):
    made = answers([[k == v for k in range(decodes)] for v in range(2)])
    made.save(tmp_path, ["a", "b"])
    again = Answers.load(tmp_path)
    assert again.texts == made.texts
    np.testing.assert_array_equal(again.right, made.right)
    for ours, other in zip(again.tokens, made.tokens, strict=True):
        assert [t.tolist() for t in ours] == [t.tolist() for t in other]


def test_one_decode_is_stored_as_it_always_was(tmp_path):
    made = answers([[True], [False]])
    made.save(tmp_path, ["a", "b"])
    table = {
        "id": pa.array(["a", "b"]),
        "response": pa.array(["00", "10"]),
        "ids": pa.array([[0, 0], [1, 0]], pa.list_(pa.int32())),
        "correct": pa.array([True, False], pa.bool_()),
    }
    pq.write_table(pa.table(table), tmp_path / "old.parquet", compression="zstd")
    assert (tmp_path / "old.parquet").read_bytes() == (tmp_path / "answers.parquet").read_bytes()


def test_refuses():
    with pytest.raises(ValueError, match="rule is 'most'; expected one of majority, any, all"):
        answers([[True]]).correct("most")
    with pytest.raises(ValueError, match="answers: texts are not 1 x 2"):
        Answers((("a",),), ((np.zeros(1, np.int32),),), np.ones((1, 2), bool))
    pool = toy.make_queries().pool
    with pytest.raises(ValueError, match="answers before are for 1 queries; expected 8"):
        Queries(pool, answers([[True]]), answers([[True]]))
