from collections import Counter

import numpy as np
import pytest

from harness.data.testbed.chains import canonical, is_off_topic, parse
from harness.data.testbed.sets import (
    CORRECT,
    QUALITY,
    SHARES,
    WRONG_TABLES,
    Errors,
    PoolSpec,
    Row,
    anti_oracle_order,
    class_counts,
    make_pool,
    oracle_order,
)

SIZE = 300


@pytest.fixture(scope="module", params=["systematic", "random"])
def errors(request: pytest.FixtureRequest) -> Errors:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rows(errors: Errors) -> list[Row]:
    return make_pool(PoolSpec(SIZE, errors, seed=3))


def of(rows: list[Row], quality: str) -> list[Row]:
    return [row for row in rows if row["quality"] == quality]


def test_shares_are_those_of_the_specification() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert class_counts(1000) == {
        "clean-hard": 300,
        "clean-easy": 150,
        "near-duplicate": 100,
        "wrong-step": 150,
        "unfaithful": 50,
        "wrong-answer": 100,
        "verbose": 50,
        "off-topic": 100,
    }


@pytest.mark.parametrize("size", [8, 33, 101, 999])
def test_counts_add_up(size: int) -> None:
    counts = class_counts(size)
    assert sum(counts.values()) == size
    assert all(abs(counts[name] - SHARES[name] * size) < 1 for name in QUALITY)


def test_rows_have_stable_ids_and_unique_prompts(rows: list[Row]) -> None:
    assert [row["id"] for row in rows] == [f"p{i:04d}" for i in range(SIZE)]
    assert len({row["prompt"] for row in rows}) == SIZE
    assert set(rows[0]) == {"id", "prompt", "response", "answer", "steps", "quality"}
    assert Counter(row["quality"] for row in rows) == class_counts(SIZE)


def test_same_spec_same_pool_other_seed_other_pool(rows: list[Row], errors: Errors) -> None:
    assert make_pool(PoolSpec(SIZE, errors, seed=3)) == rows
    other = make_pool(PoolSpec(SIZE, errors, seed=4))
    assert {row["prompt"] for row in other} != {row["prompt"] for row in rows}
    assert [row["quality"] for row in other] != [row["quality"] for row in rows]


def test_position_does_not_tell_the_class(rows: list[Row]) -> None:
    middle = {name: np.mean([row["quality"] == name for row in rows[:150]]) for name in QUALITY}
    assert all(abs(middle[name] - SHARES[name]) < 0.08 for name in QUALITY)


@pytest.mark.parametrize("quality", sorted(CORRECT))
def test_correct_classes_pass_the_verifier(rows: list[Row], quality: str, verify) -> None:
    for row in of(rows, quality):
        verdict = verify(row["prompt"], row["response"])
        assert verdict.steps_ok
        assert verdict.answer_ok
        assert verdict.follows
        assert row["answer"] == str(parse(row["prompt"]).answer)


def test_hard_examples_are_like_the_target(rows: list[Row]) -> None:
    hard = of(rows, "clean-hard")
    assert {row["steps"] for row in hard} == {3, 4, 5}
    assert all("*" in row["prompt"] for row in hard)


def test_easy_examples_take_one_step_mostly_without_product(rows: list[Row]) -> None:
    easy = of(rows, "clean-easy")
    assert all(row["steps"] == parse(row["prompt"]).hops == 1 for row in easy)
    assert np.mean(["*" in row["prompt"] for row in easy]) < 0.5


def test_near_duplicates_are_renamed_copies_of_few_seeds(rows: list[Row]) -> None:
    forms = Counter(canonical(row["prompt"]) for row in of(rows, "near-duplicate"))
    assert len(forms) == 5
    assert set(forms.values()) == {6}
    others = {canonical(r["prompt"]) for r in rows if r["quality"] != "near-duplicate"}
    assert not others & set(forms)


def test_wrong_steps_are_propagated_to_a_wrong_answer(rows: list[Row], verify) -> None:
    for row in of(rows, "wrong-step"):
        verdict = verify(row["prompt"], row["response"])
        assert verdict.well_formed
        assert len(verdict.wrong_steps) == 1
        assert "*" in verdict.wrong_steps[0]
        assert verdict.follows
        assert not verdict.answer_ok


def test_unfaithful_traces_are_wrong_and_state_the_right_answer(rows: list[Row], verify) -> None:
    for row in of(rows, "unfaithful"):
        verdict = verify(row["prompt"], row["response"])
        assert len(verdict.wrong_steps) == 1
        assert verdict.answer_ok
        assert not verdict.follows


def test_flipped_answers_follow_right_steps(rows: list[Row], verify) -> None:
    for row in of(rows, "wrong-answer"):
        verdict = verify(row["prompt"], row["response"])
        assert verdict.steps_ok
        assert not verdict.answer_ok
        assert not verdict.follows


def test_verbose_examples_work_out_distractors_and_restate(rows: list[Row]) -> None:
    for row in of(rows, "verbose"):
        problem = parse(row["prompt"])
        words = row["response"].split(" #### ")[0].split(" ")
        assert len(problem.definitions) > len(problem.needed)
        assert len(words) == len(problem.definitions) + len(problem.needed)


def test_off_topic_examples_are_string_exercises(rows: list[Row], verify) -> None:
    for row in of(rows, "off-topic"):
        assert is_off_topic(row["prompt"])
        assert verify(row["prompt"], row["response"]).answer_ok
        assert row["steps"] == 0


def test_systematic_errors_are_always_the_same_wrong_fact(verify) -> None:
    facts: dict[tuple[int, int], set[int]] = {}
    for row in make_pool(PoolSpec(SIZE, "systematic", seed=5)):
        if row["quality"] in ("wrong-step", "unfaithful"):
            (step,) = verify(row["prompt"], row["response"]).wrong_steps
            left, right, value = int(step[2]), int(step[4]), int(step[6])
            assert right in WRONG_TABLES
            facts.setdefault((left, right), set()).add(value)
        elif row["quality"] == "wrong-answer":
            assert int(row["answer"]) == (parse(row["prompt"]).answer + 1) % 10
    assert len(facts) == 10
    assert all(values == {(a * b + 1) % 10} for (a, b), values in facts.items())


def test_random_errors_vary(verify) -> None:
    shifts = Counter()
    for row in make_pool(PoolSpec(1000, "random", seed=5)):
        if row["quality"] in ("wrong-step", "unfaithful"):
            (step,) = verify(row["prompt"], row["response"]).wrong_steps
            shifts[(int(step[6]) - int(step[2]) * int(step[4])) % 10] += 1
    assert set(shifts) == set(range(1, 10))
    assert max(shifts.values()) < 0.25 * sum(shifts.values())


def test_clean_pool_has_no_wrong_response(verify) -> None:
    for row in make_pool(PoolSpec(SIZE, "none", seed=3)):
        verdict = verify(row["prompt"], row["response"])
        assert verdict.steps_ok
        assert verdict.answer_ok


@pytest.mark.parametrize(
    "spec",
    [PoolSpec(7), PoolSpec(100, "some")],  # type: ignore[arg-type]
)
def test_impossible_pools_are_refused(spec: PoolSpec) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_pool(spec)


def test_oracle_puts_correct_examples_first() -> None:
    quality = [name for name in QUALITY for _ in range(4)]
    order = oracle_order(quality, np.random.default_rng(0))
    assert sorted(order) == list(range(len(quality)))
    ranked = [quality[i] for i in order]
    assert set(ranked[:16]) == CORRECT
    assert ranked[:4] == ["clean-hard"] * 4
    assert ranked[-4:] == ["wrong-step"] * 4
    assert list(order[:4]) != sorted(order[:4]) or list(order[4:8]) != sorted(order[4:8])
    assert list(oracle_order(quality, np.random.default_rng(0))) == list(order)
    assert list(anti_oracle_order(quality, np.random.default_rng(0))) == list(order[::-1])


def test_oracle_refuses_unknown_classes() -> None:
    with pytest.raises(ValueError, match="'good'"):
        oracle_order(["good"], np.random.default_rng(0))
