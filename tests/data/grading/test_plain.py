"""Answers found in responses and compared; expected values by hand, or by GSM8K's publishers."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from harness.data.grading import Grader, normalise
from harness.data.grading import extract as extract_kind


def extract(response: str) -> str | None:
    return extract_kind(response, "plain").text


def is_correct(response: str, answer: str) -> bool:
    return Grader("plain").grade(response, answer).correct


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("c=3 y=3*2=6 e=6+9=5 #### 5", "5"),
        ("first #### 4 then #### 7", "7"),
        ("#### 1,234\nand more 9", "1,234"),
        ("#### ", None),
        ("so \\boxed{12} is it, not 13", "12"),
        ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{3} but then \\boxed{4", "3"),
        ("#### 8 although \\boxed{9}", "8 although \\boxed{9}"),
        ("there are 3 cats and 4,500 dogs.", "4,500"),
        ("from 3-5 to -7", "-7"),
        ("about 3-5", "5"),
        ("it is .5", ".5"),
        ("no number", None),
        ("", None),
    ],
)
def test_extract(response: str, answer: str | None) -> None:
    assert extract(response) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", Fraction(5)),
        ("5.0", Fraction(5)),
        ("05", Fraction(5)),
        ("+5", Fraction(5)),
        ("-5", Fraction(-5)),
        ("\u22125", Fraction(-5)),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$3", Fraction(-3)),
        ("18%", Fraction(18)),
        ("7.", Fraction(7)),
        (".25", Fraction(1, 4)),
        ("1/4", Fraction(1, 4)),
        ("1/0", "1/0"),
        ("\\text{Monday}", "monday"),
        ("1,2", "1,2"),
        ("__import__('os')", "__import__('os')"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_normalise(text: str, value: Fraction | str) -> None:
    assert normalise(text) == value


@pytest.mark.parametrize(
    ("response", "answer", "correct"),
    [
        ("#### 5", "5.0", True),
        ("#### 5", "6", False),
        ("5", "5", True),
        ("5 6", "5", False),
        ("#### 5 6", "5", False),
        ("", "", False),
        ("#### cba", "cba", True),
        ("#### 1000000", "1,000,000", True),
    ],
)
def test_is_correct(response: str, answer: str, correct: bool) -> None:
    assert is_correct(response, answer) is correct


def _real(name: str) -> list[dict]:
    folder = os.environ.get("COTSIEVE_REAL_DATA")
    if folder is None:
        pytest.skip("COTSIEVE_REAL_DATA is not set; expected a folder with the GSM8K files")
    lines = (Path(folder) / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_gsm8k_references_grade_as_their_own_answers() -> None:
    texts = [row["answer"] for row in _real("gsm8k_train.jsonl")]
    answers = [extract(text) for text in texts]
    assert all(is_correct(t, a) for t, a in zip(texts, answers, strict=True))
    others = answers[1:] + answers[:1]
    wrong = [is_correct(t, a) for t, a in zip(texts, others, strict=True)]
    assert sum(wrong) / len(wrong) < 0.02  # neighbours that happen to have the same answer


def test_grades_agree_with_the_publishers_of_gsm8k() -> None:
    rows = _real("gsm8k_model_solutions.jsonl")
    models = [name for name, value in rows[0].items() if isinstance(value, dict)]
    for row in rows:
        answer = extract(row["ground_truth"])
        for model in models:
            given = row[model]
            assert is_correct(given["solution"], answer) == given["is_correct"], given["solution"]
