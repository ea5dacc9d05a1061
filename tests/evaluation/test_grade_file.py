"""`cotsieve grade` from the outside."""

import json

import pytest
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from harness.cli.app import app
from harness.evaluation.benchmarks import benchmark
from harness.evaluation.grade_file import grade_file

RIGHT = {"response": "3 * 6\n#### 18", "answer": "so #### 18", "model": "m"}
WRONG = {"response": "#### 17", "answer": "18"}


@pytest.fixture
def write(tmp_path):
    def make(*rows):
        path = tmp_path / "answers.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return make


def run(*arguments):
    return CliRunner().invoke(app, ["grade", *map(str, arguments)])


def test_json_has_accuracy_interval_and_a_verdict_for_every_row(write):
    path = write(
        RIGHT, {**WRONG, "id": "second"}, {**RIGHT, "answer": 18}, {**WRONG, "answer": 18.0}
    )
    found = run("--task", "gsm8k", path, "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert (summary["n"], summary["n_correct"], summary["accuracy"]) == (4, 2, 0.5)
    low, high = proportion_confint(2, 4, method="wilson")
    assert summary["ci_low"] == pytest.approx(low, abs=1e-12)
    assert summary["ci_high"] == pytest.approx(high, abs=1e-12)
    assert summary["rows"] == [
        {"id": 1, "correct": True, "extracted": "18", "rule": "####"},
        {"id": "second", "correct": False, "extracted": "17", "rule": "####"},
        {"id": 3, "correct": True, "extracted": "18", "rule": "####"},
        {"id": 4, "correct": False, "extracted": "17", "rule": "####"},
    ]


def test_verdicts_are_written_beside_the_rows_own_columns(write, tmp_path):
    path = write(RIGHT, WRONG)
    assert run("--task", "gsm8k", path).exit_code == 0
    rows = [
        json.loads(line) for line in (tmp_path / "answers.graded.jsonl").read_text().split("\n")[:2]
    ]
    assert rows[0] == {**RIGHT, "id": 1, "correct": True, "extracted": "18", "rule": "####"}
    assert rows[1]["correct"] is False


def test_malformed_rows_are_named_and_the_rest_is_graded(write):
    path = write(
        RIGHT,
        "{not json",
        WRONG,
        '["a"]',
        {"response": "5"},
        {**RIGHT, "response": 5},
        {**RIGHT, "answer": None},
        {**RIGHT, "answer": "none"},
        "",
        RIGHT,
    )
    found = run("--task", "gsm8k", path, "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert (summary["n"], summary["n_correct"]) == (3, 2)
    assert [row["id"] for row in summary["rows"]] == [1, 3, 10]
    assert [entry["row"] for entry in summary["malformed"]] == [2, 4, 5, 6, 7, 8]
    for number, reason in (
        (2, "not JSON"),
        (4, "a list; expected an object"),
        (5, "no 'answer'"),
        (6, "'response' is a int"),
        (7, "answer is a NoneType"),
        (8, "answer is 'none'; expected a number"),
    ):
        assert f"row {number} is left out: {reason}" in found.stderr


def test_a_file_without_a_row_to_grade_is_refused(write, tmp_path):
    for path, message in (
        (write("{", "[]"), "no row can be graded (row 1: not JSON"),
        (tmp_path / "none.jsonl", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            grade_file(path, benchmark("gsm8k"))
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="it is empty"):
        grade_file(write(), benchmark("gsm8k"))


def test_an_unknown_task_is_refused_with_those_there_are(write):
    with pytest.raises(ValueError, match="expected one of aime24, aime25"):
        benchmark("gsm9k")


def test_other_columns_and_words(write):
    path = write({"said": "\\boxed{\\frac{2}{4}}", "truth": ["\\frac{1}{2}"], "key": "k"})
    found = run("--task", "math500", path, "--response", "said", "--answer", "truth", "--id", "key")
    assert found.exit_code == 0, found.output
    assert "math500: 1 of 1 correct, 100.0%" in found.stdout
    assert "answers found by: boxed 1" in found.stdout
    assert f"has {benchmark('math500').sizes[0]}" in found.stdout
