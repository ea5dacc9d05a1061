"""Benchmarks as items: counts, prompts, references, choices, and the errors of wrong files."""

import json
import os
from pathlib import Path

import pytest

from harness.data.grading import KINDS, Grader
from harness.evaluation.benchmarks import (
    BENCHMARKS,
    LETTERS,
    benchmark,
    find_file,
    make_items,
    task_digest,
    titles,
)
from harness.experiment.settings import AnswerKind

REAL = os.environ.get("COTSIEVE_REAL_DATA")
PRESENT = ("gsm8k", "math500", "amc23", "aime24", "olympiadbench", "minerva")


def test_every_benchmark_is_pinned_and_complete() -> None:
    assert set(BENCHMARKS) == {*PRESENT, "aime25", "gpqa_diamond"}
    for name in BENCHMARKS:
        task = benchmark(name)
        assert len(task.revision) == 40
        assert set(task.revision) <= set("0123456789abcdef")
        assert task.kind in KINDS
        assert task.max_tokens >= 2048
        assert "\\boxed{}" in task.instruction
        assert titles()[name] == task.title
    with pytest.raises(ValueError, match="task 'gsm9k' is no benchmark; expected one of aime24"):
        benchmark("gsm9k")


def test_digests_of_task_files_are_frozen() -> None:
    """They are part of every key of samples: a change makes all stored answers worthless."""
    digests = {name: task_digest(name)[:12] for name in ("local", "chain_core", "gsm8k", "minerva")}
    assert digests == {
        "local": "31a5385ebeeb",
        "chain_core": "92e2fb2f6788",
        "gsm8k": "671f405e42a0",
        "minerva": "64719befb3fa",
    }
    assert task_digest("of_my_own") == task_digest("local")


def test_kinds_of_experiment_files_are_those_of_graders() -> None:
    assert set(AnswerKind.__args__) == set(KINDS)


@pytest.mark.skipif(REAL is None, reason="COTSIEVE_REAL_DATA is not set")
@pytest.mark.parametrize("name", PRESENT)
def test_published_files_give_every_item(name) -> None:
    task = benchmark(name)
    path = find_file(task, Path(REAL))
    rows = make_items(task, path)
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(raw) in task.sizes
    assert len({row["id"] for row in rows}) == len(rows)
    grader = Grader(task.kind)
    for row, own in zip(rows, raw, strict=True):
        question = own.get("problem") or own["question"]
        assert row["question"] == question.strip()
        assert row["prompt"].startswith(question.strip())
        assert row["prompt"].endswith(task.instruction)
        assert grader.reference(row["answer"])
    grader.close()


def test_hub_items_are_asked_for_at_their_commit(monkeypatch) -> None:
    import datasets

    asked = {}

    def load_dataset(name, config=None, **options):
        asked.update(options, name=name, config=config)
        rows = [{"problem": f"Problem {n}?", "solution": f"\\boxed{{{n}}}"} for n in range(30)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = benchmark("aime24")
    rows = make_items(task, None)
    assert asked == {
        "name": task.hub, "config": None, "revision": task.revision, "split": "test",
    }  # fmt: skip
    assert rows[7]["prompt"] == f"Problem 7?\n\n{task.instruction}"
    assert Grader(task.kind).reference(rows[7]["answer"]) == "7"


def test_without_the_hub_the_way_round_is_named(monkeypatch) -> None:
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RuntimeError, match=r"openai/gsm8k at 740312add88f .*offline.* --task-data"):
        make_items(benchmark("gsm8k"), None)


def gpqa(folder: Path, count: int = 198) -> Path:
    import pandas as pd

    rows = [
        {
            "Question": f"Which is {n}?",
            "Correct Answer": f"right {n}",
            **{f"Incorrect Answer {k}": f"wrong {n}.{k}" for k in (1, 2, 3)},
        }
        for n in range(count)
    ]
    path = folder / "gpqa_diamond.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_choices_are_shuffled_by_their_question_and_the_letter_follows(tmp_path) -> None:
    task = benchmark("gpqa_diamond")
    rows = make_items(task, gpqa(tmp_path))
    for number, row in enumerate(rows):
        lines = row["question"].splitlines()
        assert lines[0] == f"Which is {number}?"
        offered = dict(line.split(") ", 1) for line in lines[2:])
        assert list(offered) == list(LETTERS[:4])
        assert offered[row["answer"]] == f"right {number}"
        assert len(set(offered.values())) == 4
    letters = [row["answer"] for row in rows]
    assert all(30 < letters.count(letter) < 70 for letter in "ABCD")
    assert make_items(task, tmp_path / "gpqa_diamond.csv") == rows


def test_part_of_a_benchmark_is_refused(tmp_path) -> None:
    path = gpqa(tmp_path, 20)
    with pytest.raises(ValueError, match=r"gpqa_diamond.csv: 20 items; expected the 198 of GPQA"):
        make_items(benchmark("gpqa_diamond"), path)


def test_missing_files_and_fields_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected one of gsm8k.jsonl, .*gsm8k_test.jsonl"):
        find_file(benchmark("gsm8k"), tmp_path)
    path = tmp_path / "amc23.jsonl"
    rows = [{"question": f"q{n}", "answer": n if n != 5 else ""} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"item 6 has none of \['answer'\]"):
        make_items(benchmark("amc23"), path)
    path.write_text("{}\nnonsense\n")
    with pytest.raises(ValueError, match="not a JSON object: 1"):
        make_items(benchmark("amc23"), path)
