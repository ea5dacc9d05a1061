"""Verdicts by hand, by construction, and against published ones."""

import json
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data.grading import Comparer, Grader
from harness.data.grading.equivalence import LONGEST

MODELS = {
    "6b_finetuning": 286,
    "6b_verification": 515,
    "175b_finetuning": 458,
    "175b_verification": 742,
}


@pytest.fixture(scope="module")
def math():
    with Grader("math") as grader:
        yield grader


@pytest.fixture(scope="module")
def number():
    with Grader("number") as grader:
        yield grader


def real(name):
    folder = os.environ.get("COTSIEVE_REAL_DATA")
    if folder is None:
        pytest.skip("COTSIEVE_REAL_DATA is not set; it names a folder with published benchmarks")
    lines = (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("\\frac{1}{2}", "1/2"),
        ("0.5", "\\frac12"),
        ("\\dfrac{14}{3}", "\\frac{14}{3}"),
        ("x^2+2x+1", "(x+1)^2"),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("[0, 1)", "\\left[0,1\\right)"),
        ("(-\\infty, -5)", "(-\\infty,-5)"),
        ("\\{2, 1\\}", "\\{1,2\\}"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("55", "55^\\circ"),
        ("\\$18.90", "18.9"),
        ("\\text{Evelyn}", "evelyn"),
        ("50\\%", "50"),
        ("1,234", "1234"),
        ("3.3 \\times 10^{12}", "3.3e12"),
        ("2.55e-10", "2.55 \\cdot 10^{-10}"),
        ("3e8", "300000000"),
        ("2, 3", "3,2"),
        ("5 \\text{ cm}", "5"),
        ("x = 5", "5"),
        ("2.550e-10", "\\frac{255}{10^{12}}"),
        (
            "\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}",
            "\\begin{pmatrix} \\frac15 \\\\ -\\frac{18}{5} \\end{pmatrix}",
        ),
    ],
)
def test_equal_forms(math, given_, wanted):
    found = math.grade(f"Therefore \\boxed{{{given_}}}.", wanted)
    assert (found.correct, found.extracted, found.rule) == (True, given_, "boxed")


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("\\frac{1}{3}", "1/2"),
        ("x^2+1", "(x+1)^2"),
        ("(3, 2)", "(2, 3)"),
        ("[0, 1]", "[0, 1)"),
        ("\\{1, 2\\}", "\\{1, 2, 3\\}"),
        ("\\sqrt{2}", "1.41"),
        ("\\text{Evelyn}", "\\text{Carla}"),
        ("-5", "5"),
        ("3e8", "3e9"),
        ("2.88e-19", "1.325e-27"),
        ("10^{-9}", "0"),
        ("", "5"),
        ("__import__('os').getpid()", "5"),
    ],
)
def test_unequal_forms(math, given_, wanted):
    assert not math.grade(f"Therefore \\boxed{{{given_}}}.", wanted).correct


@pytest.mark.parametrize("model", MODELS)
def test_the_publishers_verdicts_on_four_models(number, model):
    """GSM8K's own verdicts on real solutions, row by row."""
    rows = real("gsm8k_model_solutions")
    found = [number.grade(row[model]["solution"], row["ground_truth"]).correct for row in rows]
    assert found == [row[model]["is_correct"] for row in rows]
    assert (len(rows), sum(found)) == (1319, MODELS[model])


def references(name):
    """Responses that are right by construction, and their answers."""
    pairs = []
    for row in real(name):
        answer = row["final_answer"][0] if name == "olympiadbench" else row["answer"]
        if name in ("gsm8k_test", "math500"):
            response = row["answer"] if name == "gsm8k_test" else row["solution"]
        else:
            response = f"So the result is \\boxed{{{answer}}}."
        pairs.append((response, str(answer)))
    return pairs


KINDS = {
    "gsm8k_test": "number",
    "math500": "math",
    "amc23": "number",
    "aime24": "number",
    "olympiadbench": "math",
    "minerva": "math",
}


COINCIDENCES = {"math500": {22}}  # 5 against x=5


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_references_are_right_and_those_of_the_next_row_are_wrong(name):
    pairs = references(name)
    with Grader(KINDS[name]) as grader:
        own = [grader.grade(response, answer) for response, answer in pairs]
        bare = [grader.reference(answer) for _, answer in pairs]
        turned = [
            grader.grade(response, bare[(i + 1) % len(bare)])
            for i, (response, _) in enumerate(pairs)
        ]
    wrong = [(i, pairs[i][1], v) for i, v in enumerate(own) if not v.correct]
    assert wrong == []
    same = COINCIDENCES.get(name, set()) | {
        i for i in range(len(bare)) if grader_free_equal(bare[i], bare[(i + 1) % len(bare)])
    }
    assert {i for i, v in enumerate(turned) if v.correct} == same


def grader_free_equal(left, right):
    """True coincidences of neighbouring answers: the same text, or the same decimal number."""
    try:
        return float(left.replace(",", "")) == float(right.replace(",", ""))
    except ValueError:
        return left == right


@st.composite
def equal_numbers(draw):
    """Two ways of writing one rational number."""
    numerator = draw(st.integers(-10_000, 10_000))
    denominator = draw(st.integers(1, 400))
    value = Fraction(numerator, denominator)
    return tuple(draw(st.sampled_from(forms(value))) for _ in range(2))


def forms(value):
    sign = "-" if value < 0 else ""
    top, bottom = abs(value.numerator), value.denominator
    found = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"{sign}\\dfrac{{{3 * top}}}{{{3 * bottom}}}",
        f"{sign}{top}/{bottom}",
    ]
    if bottom == 1:
        found += [f"{sign}{top}", f"{sign}{top:,}", f"{sign}{top}.0", f"{sign}\\${top}"]
    return found


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(equal_numbers())
def test_numbers_are_equal_however_they_are_written(math, pair):
    given_, wanted = pair
    assert math.grade(f"\\boxed{{{given_}}}", wanted).correct


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.fractions(-500, 500, max_denominator=60),
    st.fractions(-500, 500, max_denominator=60),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_different_numbers_are_never_equal(math, left, right, first, second):
    found = math.grade(f"\\boxed{{{forms(left)[first]}}}", forms(right)[second])
    assert found.correct == (left == right)


def test_polynomials_equal_their_products(math):
    """Expanded by hand-made convolution; a changed coefficient is noticed."""
    rng = random.Random(0)
    for _ in range(40):
        a, b, c, d = (rng.randint(1, 9) for _ in range(4))
        product = f"({a}x+{b})({c}x+{d})"
        expanded = f"{a * c}x^2+{a * d + b * c}x+{b * d}"
        assert math.grade(f"\\boxed{{{expanded}}}", product).correct
        changed = f"{a * c}x^2+{a * d + b * c + 1}x+{b * d}"
        assert not math.grade(f"\\boxed{{{changed}}}", product).correct


BOMBS = {
    "tower": "9^{9^{9^{9}}}",
    "tower of tens": "10^{10^{10}}",
    "factorial": "999999999!",
    "nested factorials": "9!!!!!!!!",
    "root tower": "\\sqrt{" * 60 + "2" + "}" * 60,
    "nested fractions": "\\frac{1}{" * 80 + "2" + "}" * 80,
    "huge exponent": "2^{99999999999999}",
    "decimal exponent": "1e999999999",
    "sum": "\\sum_{n=1}^{10^{9}} \\frac{1}{n^{n}}",
    "integral": "\\int_0^1 e^{x^{x^{x}}} dx",
    "binomial": "\\binom{10^{9}}{5 \\cdot 10^{8}}",
    "product of sums": "(x+1)^{999}",
    "braces": "{" * 400 + "1" + "}" * 400,
    "code": "__import__('os').system('sleep 9')",
    "other scripts": "四十二",
    "matrix": "\\begin{pmatrix}" + "1 & " * 200 + "1\\end{pmatrix}",
    "nothing": "",
    "white space": " \t \\, ",
    "long": "1+" * 50_000 + "1",
    "control": "\\x00\\end{document}\\input{/etc/passwd}",
}


@pytest.mark.slow
@pytest.mark.timeout(120)  # two processes to start, and 5 s
@pytest.mark.parametrize("name", BOMBS)
def test_hostile_answers_end_within_the_limit(name):
    with Grader("math") as grader:
        assert grader.grade("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}").correct  # the process is up
        found = grader.grade(f"\\boxed{{{BOMBS[name]}}}", "\\frac{1}{7}")
        assert not found.correct
        assert grader.grade("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}").correct  # and up again


def test_a_comparison_out_of_time_is_said_and_counts_as_wrong():
    with Grader("math", Comparer(seconds=0.05)) as grader:
        found = grader.grade("\\boxed{\\int_0^1 e^{x^{x^{x}}} dx}", "\\sqrt{2}")
    assert (found.correct, found.rule) == (False, "boxed, timeout")


def test_a_process_that_dies_is_replaced():
    with Comparer() as comparer:
        assert comparer.equal("\\frac{2}{4}", "\\frac{1}{2}")
        comparer._process.kill()
        comparer._process.wait()
        assert comparer.equal("\\frac{2}{4}", "\\frac{1}{2}")


def test_texts_longer_than_any_answer_are_not_compared():
    comparer = Comparer()
    assert comparer.equal("x" * (LONGEST + 1), "y") is False
    assert comparer._process is None


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("number", "no number", "expected a number"),
        ("number", "", "expected a number"),
        ("choice", "42", "expected a letter"),
        ("math", "   ", "expected an answer"),
    ],
)
def test_a_reference_without_an_answer_is_refused(kind, answer, message):
    with Grader(kind) as grader, pytest.raises(ValueError, match=message):
        grader.grade("#### 5", answer)


def test_a_number_may_be_a_formula(number):
    assert number.grade("so \\boxed{\\frac{36}{2}}", "18").correct
    assert not number.grade("so \\boxed{\\frac{36}{3}}", "18").correct
    assert number.grade("so \\boxed{18 dollars}", "#### 18").correct


def test_choices_are_graded_by_letter():
    with Grader("choice") as grader:
        assert grader.grade("The answer is (C).", "C").correct
        assert not grader.grade("The answer is (C).", "A").correct
        assert grader.grade("Not A. Answer: B", "(B)").correct
