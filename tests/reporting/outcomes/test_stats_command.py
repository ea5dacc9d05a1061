"""`cotsieve stats` from the outside."""

import json

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.reporting.numbers import NONE


def run(*arguments):
    return CliRunner().invoke(app, ["stats", *map(str, arguments)], env={"COLUMNS": "80"})


def test_json_is_alone_on_standard_output(save, outcomes):
    found = run(save(outcomes({"random": 0.0, "b": 0.3})), "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert summary["reference"] == "random"
    assert summary["differences"]["b"]["verdict"] == "better"


def test_tables_fit_a_terminal_and_say_what_they_rest_on(save, outcomes):
    name = "influence/a-rather-long-name-of-a-method"
    frame = outcomes({"random": 0.0, name: 0.3, "c": 0.0}, tasks={"core": 30, "far": 20})
    found = run(save(frame[(frame["method"] != "c") | (frame["item"] != "far-1")]))
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    tables = [line for line in lines if not line.startswith("- ")]
    assert max(map(len, tables)) <= 80
    assert not any("…" in line for line in lines)
    for part in ("Accuracy: the mean over 2 tasks", "Difference to random", "far (exploratory)"):
        assert any(line.startswith(part) for line in tables)
    (line,) = [line for line in tables if line.startswith("c*") and line.split()[-1] == "tie"][:1]
    assert len(line.split()) == 10
    assert "* on part of the results only; see the notes" in tables
    said = found.stdout
    for part in ("Holm over 2 comparisons", "1 of 20 items of far missing (far-1)", "80% power"):
        assert part in said


def test_one_seed_shows_no_numbers_that_need_several(save, outcomes):
    found = run(save(outcomes({"random": 0.0, "b": 0.3}, seeds=1)))
    line = next(line for line in found.stdout.splitlines() if line.startswith("b") and "+" in line)
    assert line.split()[-4:-2] == [NONE, NONE]
    assert "items only: seed variance unknown" in found.stdout


def test_errors_reach_the_caller(save, outcomes):
    found = run(save("method,item,correct\na,x,0.5\n"))
    assert isinstance(found.exception, ValueError)
    with pytest.raises(ValueError, match="no method 'z'"):
        CliRunner().invoke(
            app,
            ["stats", str(save(outcomes({"a": 0.0}))), "--reference", "z"],
            catch_exceptions=False,
        )
