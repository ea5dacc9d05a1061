"""Answers and rules worked by hand."""

import pytest

from harness.data.grading import extract


@pytest.mark.parametrize(
    ("response", "text", "rule"),
    [
        ("She has 9. #### 18", "18", "####"),
        ("#### 4 then #### 7", "7", "####"),
        ("#### $1,234.50 a day", "$1,234.50", "####"),
        ("sum\nA: 18", "18", "answer:"),
        ("sum\n**Final answer:** -3", "-3", "answer:"),
        ("A: 10 men", "10", "answer:"),
        ("The answer is 18 because 9 * 2 was 3", "18", "answer is"),
        ("So the answer is: 3 + 4 = 7 apples.", "7", "answer is"),
        ("The answer to the question is 5.", "5", "answer is"),
        ("The answer is 7. I hope that the answer is correct.", "7", "answer is"),
        ("2 of them. The answer is unknown", "2", "last number"),
        ("the answer is 3. So \\boxed{4}", "4", "boxed"),
        ("\\boxed{4}, so the answer is 5", "4", "boxed"),
        ("so \\boxed{18 dollars}", "18", "boxed"),
        ("so \\boxed{\\frac{36}{2}}", "\\frac{36}{2}", "boxed"),
        ("there are 3 cats and 4,500 dogs", "4,500", "last number"),
        ("from 3-5 to -7", "-7", "last number"),
        ("f(2)-5", "5", "last number"),
        ("no digits", None, "none"),
        ("", None, "none"),
        ("#### none at all", None, "####"),
    ],
)
def test_numbers(response, text, rule):
    found = extract(response, "number")
    assert (found.text, found.rule) == (text, rule)


@pytest.mark.parametrize(
    ("response", "text", "rule"),
    [
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}", "boxed"),
        ("\\boxed{1} and \\boxed{2", "1", "boxed"),
        ("\\boxed{\\boxed{5}}", "5", "boxed"),
        ("{ open \\boxed {x^{2}+1}", "x^{2}+1", "boxed"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "boxed"),
        ("} } \\fbox{3}", "3", "last number"),
        ("\\boxed{}", None, "boxed"),
        ("The answer is $\\sqrt{2}$. Done.", "\\sqrt{2}", "answer is"),
        ("The answer is \\(x+1\\)", "x+1", "answer is"),
        ("The final answer is x = 3. I hope it is correct.", "x = 3", "answer is"),
        ("The answer is 2.5. Done", "2.5", "answer is"),
        ("Answer: $(0, 3)$ or so", "(0, 3)", "answer:"),
    ],
)
def test_formulas(response, text, rule):
    found = extract(response, "math")
    assert (found.text, found.rule) == (text, rule)


@pytest.mark.parametrize(
    ("response", "text", "rule"),
    [
        ("The answer is (C).", "C", "answer is"),
        ("Answer: B", "B", "answer:"),
        ("\\boxed{\\text{D}}", "D", "boxed"),
        ("A or B? It must be B", "B", "last letter"),
        ("I'd say nothing", None, "none"),
        ("the answer is unclear", None, "none"),
    ],
)
def test_letters(response, text, rule):
    found = extract(response, "choice")
    assert (found.text, found.rule) == (text, rule)


HOSTILE = {
    "boxes that never end": "\\boxed{" * 15_000,
    "nested boxes": "\\boxed{" * 10_000 + "7" + "}" * 10_000,
    "braces": "{" * 50_000 + "}" * 50_000,
    "answers": "answer is " * 10_000,
    "answers to": "answer to " * 10_000,
    "lines of A:": "A:\n" * 30_000,
    "spaces before A:": " " * 100_000 + "A",
    "stars": "*" * 100_000,
    "digits": "9" * 100_000,
    "groups of digits": "1,234" * 20_000,
    "minus signs": "-" * 100_000,
    "decimal points": "." * 100_000,
    "dollars": "answer is " + "$" * 100_000,
    "backslashes": "\\" * 100_001,
    "letters": "A " * 50_000,
    "other scripts": "答案是四十二。" * 15_000,
    "marks": "####" * 25_000,
    "nulls": "\x00" * 100_000,
    "open formulas": "answer is \\(" + "\\(" * 50_000,
    "quantifier bait": "the final answer " * 6_000 + "is",
}


@pytest.mark.timeout(30)  # what grew faster than the response would take minutes
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["number", "math", "choice"])
def test_hostile_responses_take_no_time(name, kind):
    found = extract(HOSTILE[name], kind)
    assert found.text is None or found.text in HOSTILE[name]
