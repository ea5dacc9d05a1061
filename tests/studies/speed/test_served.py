"""Equality of answers, sums and tables of the evaluation and overhead benches; nothing timed."""

import copy
import json

import pandas as pd
import pytest

from harness.studies.speed import overhead, served
from harness.studies.speed.served import PHASES, different, markdown, problems, summary

MACHINE = {
    "processor": "Abacus",
    "cores": 2,
    "torch": "2",
    "vllm": "3",
    "lm_eval": "4",
}


def samples(**changes):
    columns = {
        "item": ["a", "b", "c"],
        "correct": [True, False, False],
        "answer": pd.array(["1", None, "3"], dtype="string"),
        "tokens": pd.array([4, 5, 6], dtype="int32"),
    }
    return pd.DataFrame(columns | changes)


def test_equal_rows_are_equal_with_nulls_and_all():
    assert different(samples(), samples()) == 0
    answer = pd.array(["1", pd.NA, "3"], dtype="str")
    assert different(samples(), samples(answer=answer)) == 0  # as another version reads it


@pytest.mark.parametrize(
    ("column", "values", "rows"),
    [
        ("tokens", [4, 5, 7], 1),
        ("correct", [False, True, False], 2),
        ("answer", ["1", "", "3"], 1),
        ("item", ["b", "a", "c"], 2),
    ],
)
def test_rows_that_differ_are_counted(column, values, rows):
    assert different(samples(), samples(**{column: values})) == rows
    assert different(samples(**{column: values}), samples()) == rows


def test_missing_rows_differ_and_missing_columns_are_refused():
    assert different(samples(), samples()[:1]) == 2
    with pytest.raises(ValueError, match="expected"):
        different(samples(), samples().drop(columns="tokens"))


def seconds(**known):
    return {phase: 0.0 for phase in PHASES} | {name.rstrip("_"): v for name, v in known.items()}


def repetition(decoding):
    return {
        "kept": [seconds(import_=8.0, engine=1.0), seconds(engine=0.5, decoding=decoding)],
        "fresh": [seconds(import_=8.0, decoding=1.0, end=3.0), seconds(import_=9.0, decoding=2.0)],
        "processor_s": {"kept": 5.0, "fresh": 15.0},
        "load": [1.0, 2.5],
        "rows": 24,
        "different_rows": 0,
        "different_ids": 0,
        "distinct_checkpoints": 2,
    }


def served_report():
    repetitions = [repetition(0.5), repetition(2.5), repetition(1.5)]
    return {
        "machine": MACHINE,
        "threads": 1,
        "repeats": 3,
        "checkpoints": 2,
        "items": 3,
        "tasks": ["p", "q", "r", "s"],
        "base": "tiny",
        "parameters": 85824,
        "repetitions": repetitions,
        "summary": summary(repetitions),
        "killed": {
            "deaths": 1,
            "cells": 8,
            "finished_before": 4,
            "lost": 0,
            "finished_after": 8,
            "done_twice": 4,
            "tasks": 4,
            "different_rows": 0,
            "different_rows_done_twice": 1,
        },
    }


def test_medians_and_ratios_by_hand():
    found = served_report()["summary"]
    # Kept 10, 12 and 11 seconds; fresh 23 in every repetition.
    assert found["kept"]["total_s"] == 11.0
    assert found["fresh"]["total_s"] == 23.0
    assert found["ratios"] == [23 / 10, 23 / 12, 23 / 11]
    assert found["ratio"] == 23 / 11
    assert found["ratio_processor"] == 3.0
    assert found["kept"]["phases"]["import"] == 8.0
    assert found["fresh"]["phases"]["import"] == 17.0
    assert found["kept"]["later_checkpoint_s"] == 2.0
    assert found["kept"]["later_phases"]["decoding"] == 1.5
    assert found["fresh"]["later_checkpoint_s"] == 11.0


def test_a_sound_report_has_no_problems_and_a_table():
    report = served_report()
    assert problems(report) == []
    text = markdown(json.loads(json.dumps(report)))
    assert "| one process that stays | 11.00 | 5.50 | 2.00 | 0.00 | 8.00 | 1.50 | 1.50 |" in text
    assert "fresh processes take 2.09 times as long (by repetition 2.30, 1.92, 2.09;" in text
    assert "load 1.0 to 2.5" in text
    assert "72 rows compared in all columns and by token ids: 0 differ" in text
    assert "4 of 8 cells were finished, 0 of them lost" in text


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ("run", "different_rows", 3, "repetition 1: 3 rows differ between"),
        ("run", "different_ids", 2, "repetition 1: 2 ids differ between"),
        ("run", "distinct_checkpoints", 1, "1 of 2 checkpoints answer otherwise"),
        ("killed", "deaths", 0, "0 deaths after 4 finished cells"),
        ("killed", "finished_before", 0, "1 deaths after 0 finished cells"),
        ("killed", "lost", 1, "1 finished cells are lost or changed and 8 of 8 finished"),
        ("killed", "finished_after", 7, "0 finished cells are lost or changed and 7 of 8"),
        ("killed", "done_twice", 8, "8 cells done twice; expected one checkpoint's at most"),
        ("killed", "different_rows", 2, "2 rows differ in the pass with a kill"),
    ],
)
def test_what_must_not_be_is_told(where, name, value, message):
    report = copy.deepcopy(served_report())
    (report["killed"] if where == "killed" else report["repetitions"][1])[name] = value
    [told] = problems(report)
    assert message in told
    markdown(report)


def overhead_report():
    runs = []
    for bare, ours in ((10.0, 11.0), (12.0, 12.0), (11.0, 13.2)):
        parts = dict.fromkeys(overhead.PARTS, 0.1) | {"generate": ours - 0.5}
        sides = {"bare_s": bare, "ours_s": ours, "parts": parts}
        runs.append({**sides, "load": [1.0, 3.0], "short": 0, "different": 0})
    return {
        "machine": MACHINE,
        "threads": 1,
        "repeats": 3,
        "prompts": 1000,
        "prompt_tokens": 80000,
        "tokens": 64,
        "model": {**overhead.MODEL, "kind": "Llama, random weights", "parameters": 1234567},
        "engine_start_s": 4.0,
        "repetitions": runs,
        "summary": overhead.summary(runs),
    }


def test_overhead_by_hand():
    report = overhead_report()
    found = report["summary"]
    assert (found["bare_s"], found["ours_s"]) == (11.0, 12.0)
    assert found["overhead"] == pytest.approx(1 / 11)
    assert found["overheads"] == pytest.approx([0.1, 0.0, 0.2])
    assert found["parts"]["generate"] == 11.5
    assert overhead.problems(report) == []
    text = overhead.markdown(json.loads(json.dumps(report)))
    assert "| bare `LLM.generate` on token ids | 11.00 |" in text
    assert "overhead 9.1% (by repetition 10.0%, 0.0%, 20.0%; target at most 15%), 1.00 ms" in text


def test_overhead_is_of_equal_answers_of_equal_length():
    report = overhead_report()
    report["repetitions"][2] |= {"short": 5, "different": 7}
    assert overhead.problems(report) == [
        "repetition 2: 5 answers are not 64 tokens long; expected every one to be",
        "repetition 2: 7 answers differ between sides",
    ]


def test_every_phase_and_part_has_a_name():
    assert set(served.MEANING) == set(PHASES)
    assert set(overhead.MEANING) == set(overhead.PARTS)
