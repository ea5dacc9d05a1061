"""Items survive every character that is not a line end of their file, wherever they are read."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.data.dataset import items_from_file, read
from harness.data.items import ITEMS_FILE, numbered_lines, read_items, write_items
from harness.experiment.settings import DataConfig

ODD = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven\reight\r\nnine\nten"
ITEMS = [
    {"id": f"i{n}", "question": f"{n} {ODD}", "prompt": f"{n} {ODD}?", "answer": f"{n}"}
    for n in range(3)
]


@pytest.fixture
def path(tmp_path):
    """The items as the harness writes them: characters beyond ASCII as they are."""
    write_items(tmp_path / ITEMS_FILE, ITEMS)
    assert "\u2028" in (tmp_path / ITEMS_FILE).read_text(encoding="utf-8")
    return tmp_path / ITEMS_FILE


def test_what_is_written_is_read(path) -> None:
    assert read_items(path) == ITEMS
    assert path.read_bytes().count(b"\n") == len(ITEMS)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_ends_of_the_file_separate_lines(tmp_path, end) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(item, ensure_ascii=False) for item in ITEMS]
    path.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    numbers, texts = zip(*numbered_lines(path), strict=True)
    assert numbers == (1, 2, 3)
    assert [json.loads(text) for text in texts] == ITEMS


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (['{"id": "a", "prompt": "b"}'], r"line 1: \['answer'\] missing or not text"),
        (['{"id": "a", "prompt": "b", "answer": "c"}'] * 2, "line 2: id 'a' again"),
        ([], "no items; expected at least one line"),
    ],
)
def test_bad_items_are_refused(tmp_path, lines, problem) -> None:
    path = tmp_path / ITEMS_FILE
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        read_items(path)


def test_a_users_file_as_a_task(path) -> None:
    columns = {"id": "id", "prompt": "prompt", "answer": "answer", "template": "{prompt}"}
    items = items_from_file(path, columns, None)
    assert [item["prompt"] for item in items] == [item["prompt"] for item in ITEMS]


def test_a_users_file_as_a_data_set(path) -> None:
    config = DataConfig(dataset=str(path), prompt="prompt", response="answer")
    rows, report = read(config, path)
    assert rows == ITEMS
    assert not report.problems


def test_a_parquet_file_as_a_data_set(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame(ITEMS).to_parquet(path)
    rows, _ = read(DataConfig(dataset=str(path), prompt="prompt", response="answer"), path)
    assert rows == ITEMS


def test_lm_evals_documents(path) -> None:
    pytest.importorskip("datasets")
    from harness.evaluation.lm_eval_bridge import documents

    documents_ = documents({"mine": {"path": str(path), "kind": "plain"}}, "mine")["test"]
    assert [row["prompt"] for row in documents_] == [item["prompt"] for item in ITEMS]


def test_the_longest_prompt_of_an_engine(path) -> None:
    from harness.running.answer_builders import _longest_prompt

    longest = max(len(item["prompt"].encode()) for item in ITEMS)
    assert _longest_prompt(path) == longest + 8


def test_questions_of_the_overlap_check_and_of_the_report(path) -> None:
    from harness.cli.quotes import _questions
    from harness.running.overlap import _items

    stage = SimpleNamespace(recipe=None)
    artefact = SimpleNamespace(folder=path.parent)
    store = SimpleNamespace(get=lambda stage: artefact, load=lambda stage: artefact)
    assert _items(stage, store) == [(item["id"], item["question"]) for item in ITEMS]
    samples = SimpleNamespace(parents={"items": stage})
    shown = {("mine", item["id"]) for item in ITEMS}
    frame = _questions("mine", samples, store, shown)
    assert frame is not None
    assert list(frame["question"]) == [item["question"] for item in ITEMS]


def test_graded_responses(tmp_path) -> None:
    from harness.evaluation.benchmarks import benchmark
    from harness.evaluation.grade_file import grade_file

    path = tmp_path / "responses.jsonl"
    rows = [{"response": f"{ODD} #### {n}", "answer": f"{n}"} for n in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    graded = grade_file(path, benchmark("gsm8k"))
    assert [row["response"] for row in graded.rows] == [row["response"] for row in rows]
    assert graded.summary()["n_correct"] == 3
