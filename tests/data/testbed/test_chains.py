from itertools import pairwise

import numpy as np
import pytest

from harness.data.testbed.chains import (
    Definition,
    Problem,
    canonical,
    compute,
    draw,
    parse,
    solution,
    split_of,
)

PROMPT = "c=3,y=c*2,e=y+9;e?"
RESPONSE = "c=3 y=3*2=6 e=6+9=5 #### 5"


def test_worked_example() -> None:
    problem = parse(PROMPT)
    assert problem == Problem(
        (Definition("c", "3"), Definition("y", "c", "*", "2"), Definition("e", "y", "+", "9")), "e"
    )
    assert problem.prompt == PROMPT
    assert (problem.hops, problem.answer) == (2, 5)
    assert solution(problem) == RESPONSE


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"),
    [(7, "+", 8, 5), (3, "-", 9, 4), (7, "*", 8, 6), (0, "*", 9, 0), (2, "-", 2, 0)],
)
def test_arithmetic_is_modulo_ten(left: int, operator: str, right: int, value: int) -> None:
    assert compute(left, operator, right) == value


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="'/'"):
        compute(1, "/", 2)


@pytest.mark.parametrize(
    ("response", "well_formed", "steps_ok", "answer_ok", "follows", "wrong"),
    [
        (RESPONSE, True, True, True, True, ()),
        ("c=3 y=3*2=7 e=7+9=6 #### 6", True, False, False, True, ("y=3*2=7",)),
        ("c=3 y=3*2=7 e=7+9=6 #### 5", True, False, True, False, ("y=3*2=7",)),
        ("c=3 y=3*2=6 e=6+9=5 #### 1", True, True, False, False, ()),
        # an operand that is not the traced value, though the arithmetic is right
        ("c=3 y=3*2=6 e=7+9=6 #### 6", True, False, False, True, ("e=7+9=6",)),
        # a wrong operator, a wrong given digit
        ("c=3 y=3+2=5 e=5+9=4 #### 4", True, False, False, True, ("y=3+2=5",)),
        ("c=4 y=4*2=8 e=8+9=7 #### 7", True, False, False, True, ("c=4",)),
        # a step left out, a step before what it needs, text, no answer mark, an unknown variable
        ("c=3 e=6+9=5 #### 5", False, False, True, True, ("e=6+9=5",)),
        ("c=3 e=6+9=5 y=3*2=6 #### 5", True, False, True, True, ("e=6+9=5",)),
        ("so c=3 y=3*2=6 e=6+9=5 #### 5", False, False, True, True, ()),
        ("c=3 y=3*2=6 e=6+9=5", False, False, False, False, ()),
        ("c=3 y=3*2=6 e=6+9=5 z=1 #### 5", False, False, True, True, ()),
        # restated values count as steps, and must be the traced ones
        ("c=3 y=3*2=6 e=6+9=5 y=6 e=5 #### 5", True, True, True, True, ()),
        ("c=3 y=3*2=6 e=6+9=5 y=7 e=5 #### 5", True, False, True, True, ("y=7",)),
    ],
)
def test_verdicts_by_hand(
    response: str,
    well_formed: bool,
    steps_ok: bool,
    answer_ok: bool,
    follows: bool,
    wrong: tuple[str, ...],
    verify,
) -> None:
    verdict = verify(PROMPT, response)
    assert verdict.well_formed is well_formed
    assert verdict.steps_ok is steps_ok
    assert verdict.answer_ok is answer_ok
    assert verdict.follows is follows
    assert verdict.wrong_steps == wrong


@pytest.mark.parametrize(
    ("prompt", "response", "fine"),
    [
        ("copy dcab?", "dcab #### dcab", True),
        ("reverse dcab?", "bacd #### bacd", True),
        ("sort dcab?", "abcd #### abcd", True),
        ("sort dcab?", "dcab #### dcab", False),
    ],
)
def test_off_topic_verdicts(prompt: str, response: str, fine: bool, verify) -> None:
    verdict = verify(prompt, response)
    assert (verdict.steps_ok, verdict.answer_ok) == (fine, fine)


def test_two_variables_and_distractors() -> None:
    prompt = "a=4,k=a+1,b=a-7,d=a*b,h=d+d;d?"  # k and h are not needed
    problem = parse(prompt)
    assert [d.name for d in problem.needed] == ["a", "b", "d"]
    assert problem.answer == 8  # 4-7=7, 4*7=28
    assert solution(problem) == "a=4 b=4-7=7 d=4*7=8 #### 8"


@pytest.mark.parametrize(
    "prompt", ["c=3,y=c*2;y", "c=3,y=c/2;y?", "c=3;q?", "c=3,c=4;c?", "hello?", "c=33;c?"]
)
def test_unreadable_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt"):
        parse(prompt)


@pytest.mark.parametrize("hops", [1, 3, 6])
@pytest.mark.parametrize("options", [{}, {"distractors": 2}, {"distractors": 1}])
def test_drawn_problems_take_exactly_the_hops(hops: int, options: dict[str, int], verify) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        problem = draw(rng, hops, require="*", **options)  # type: ignore[arg-type]
        assert problem.hops == hops
        assert len(problem.definitions) == hops + 1 + options.get("distractors", 0)
        assert any(d.operator == "*" for d in problem.needed)
        assert parse(problem.prompt) == problem
        verdict = verify(problem.prompt, solution(problem))
        assert verdict.steps_ok
        assert verdict.answer_ok
        assert verdict.follows


def test_first_operand_is_the_one_before_seven_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    previous = []
    for _ in range(400):
        text = draw(rng, 5).definitions
        previous += [b.left == a.name for a, b in pairwise(text[1:])]
    assert np.mean(previous) == pytest.approx(0.7, abs=0.04)


def test_too_many_hops_are_refused() -> None:
    with pytest.raises(ValueError, match="hops 10"):
        draw(np.random.default_rng(0), 10)


def test_canonical_form_forgets_names_and_distractors() -> None:
    assert canonical("c=3,m=c*2,e=m+9;e?") == "a=3,b=a*2,c=b+9;c?"
    assert canonical("k=3,a=k-4,b=k*2,m=b+9;m?") == "a=3,b=a*2,c=b+9;c?"
    assert canonical("c=3,m=c*2,e=m+8;e?") != canonical("c=3,m=c*2,e=m+9;e?")
    assert canonical("sort dcab?") == "sort dcab?"


def test_split_does_not_depend_on_names() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        problem = draw(rng, 4)
        renamed = problem.renamed(dict(zip("abcdefghkm", "mkhgfedcba", strict=True)))
        assert renamed.prompt != problem.prompt
        assert split_of(renamed.prompt) == split_of(problem.prompt)
