"""Reading, checking and tokenising rows; bad ones are reported by number, never lost."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.data.dataset import Report, items_from_file, read, render, tokenise
from harness.data.pool import IGNORED, Pool, collate
from harness.experiment.settings import PoolConfig


class Letters:
    """A tokenizer of one token per character, with a start and an end token."""

    eos_token_id = 1
    bos_token_id = 2
    chat_template = None

    def __call__(self, texts, add_special_tokens):
        start = [self.bos_token_id] if add_special_tokens else []
        return {"input_ids": [start + [ord(c) for c in text] for text in texts]}


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def pool_of(path, invalid="refuse", max_tokens=50, **columns):
    config = PoolConfig(dataset=str(path), template="{prompt}", **columns)
    rows, report = read(config, path)
    return tokenise(rows, config, Letters(), max_tokens, report, invalid), report


def test_tokens_and_labels_by_hand(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "ab?", "response": "c #### 7", "level": 3}])
    pool, report = pool_of(path)
    assert pool.ids == ("row-000001",)
    prompt = [2, *map(ord, "ab?")]
    response = [*map(ord, "c #### 7"), 1]
    assert pool.input_ids[0].tolist() == prompt + response
    assert pool.labels[0].tolist() == [IGNORED] * 4 + response
    assert pool.response_lengths.tolist() == [len(response)]
    assert pool.prompt_ids(0).tolist() == prompt
    assert pool.column("answer") == ("7",)
    assert pool.column("level") == (3,)
    assert report.kept == 1
    assert not report.problems


BAD = [
    {"prompt": "p1", "response": "r1", "id": "a"},
    {"prompt": "", "response": "r2", "id": "b"},
    {"prompt": "p3", "response": None, "id": "c"},
    {"prompt": "p4", "response": 4, "id": "d"},
    "{not json",
    {"prompt": "p6", "response": "r6", "id": "a"},
    {"prompt": "p" * 60, "response": "r7", "id": "g"},
    {"prompt": "p8", "response": "r" * 60, "id": "h"},
    {"prompt": "p9", "response": "  ", "id": "i"},
    {"prompt": "p10", "response": "r10"},
]


def test_every_bad_row_is_reported_by_number(tmp_path):
    path = write(tmp_path / "bad.jsonl", BAD)
    pool, report = pool_of(path, "drop", id="id")
    assert report.problems == {
        "not a JSON object": [5],
        "duplicate id": [1, 6],
        "empty or missing 'prompt'": [2],
        "empty or missing 'response'": [3, 9],
        "'response' is not text": [4],
        "empty or missing 'id'": [10],
        "prompt longer than 50 tokens": [7],
    }
    assert pool.ids == ("h",)
    assert pool.truncated == (True,)
    assert len(pool.input_ids[0]) == 50
    assert (report.rows, report.kept, report.truncated) == (10, 1, 1)
    assert "bad.jsonl: 9 of 10 rows cannot be used" in str(report)


def test_bad_rows_stop_the_run_by_default(tmp_path):
    path = write(tmp_path / "bad.jsonl", BAD)
    with pytest.raises(
        ValueError, match=r"(?s)'response' is not text: 1 \(row 4\).*invalid = \"drop\""
    ):
        pool_of(path, id="id")


def test_unknown_column_names_those_that_exist(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(ValueError, match="no column 'prompt'.*expected one of: question, answer"):
        pool_of(path)


def test_parquet_and_jsonl_give_the_same_pool(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    one, _ = pool_of(tmp_path / "a.parquet")
    two, _ = pool_of(write(tmp_path / "a.jsonl", rows))
    assert one.fingerprint == two.fingerprint


def test_a_pool_survives_saving(tmp_path):
    pool, _ = pool_of(write(tmp_path / "bad.jsonl", BAD), "drop", id="id")
    pool.save(tmp_path)
    again = Pool.load(tmp_path)
    assert again.fingerprint == pool.fingerprint
    assert again.columns == pool.columns
    assert again.truncated == pool.truncated


def test_fingerprint_sees_tokens_labels_and_ids():
    tokens = (np.array([1, 2], np.int32),)
    labels = (np.array([IGNORED, 2], np.int32),)
    pool = Pool(("a",), tokens, labels)
    assert pool.fingerprint != Pool(("b",), tokens, labels).fingerprint
    assert pool.fingerprint != Pool(("a",), tokens, tokens).fingerprint


def test_pool_refuses_wrong_sizes_and_repeated_ids():
    tokens = np.array([1], np.int32)
    with pytest.raises(ValueError, match="labels has 0 rows; expected 1"):
        Pool(("a",), (tokens,), ())
    with pytest.raises(ValueError, match=r"\['a'\] occur more than once"):
        Pool(("a", "a"), (tokens, tokens), (tokens, tokens))


def test_collate_pads_right():
    tokens = (np.array([5, 6, 7], np.int32), np.array([8], np.int32))
    labels = (np.array([IGNORED, 6, 7], np.int32), np.array([8], np.int32))
    batch = collate(Pool(("a", "b"), tokens, labels), [1, 0], pad_id=9)
    assert batch["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[8, IGNORED, IGNORED], [IGNORED, 6, 7]]


def test_template_must_hold_the_prompt():
    with pytest.raises(ValueError, match="expected 'chat' or a text with"):
        render(["a"], "Question:", Letters())
    assert render(["a{b}"], "Q: {prompt}\n", Letters()) == ["Q: a{b}\n"]


def test_task_items_from_a_file(tmp_path):
    rows = [{"q": "1+1?", "a": "Add them. #### 2"}, {"q": "2+2?", "a": "4"}]
    path = write(tmp_path / "t.jsonl", rows)
    found = items_from_file(
        path, {"prompt": "q", "answer": "a", "template": "{prompt}\n"}, Letters()
    )
    assert [item["answer"] for item in found] == ["2", "4"]
    assert (found[0]["question"], found[0]["prompt"]) == ("1+1?", "1+1?\n")
    write(path, [*rows, {"q": "", "a": "4"}])
    with pytest.raises(ValueError, match=r"empty or missing 'q': 1 \(row 3\)"):
        items_from_file(path, {"prompt": "q", "answer": "a"}, Letters())


@pytest.fixture
def hub_copy(tmp_path, monkeypatch):
    """A data set folder laid out as on the hub, read by the real loading code."""
    folder = tmp_path / "owner" / "chains"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", [{"prompt": "a?", "response": "b"}] * 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return "owner/chains"


def test_hub_data_set_through_the_real_loader(hub_copy):
    config = PoolConfig(dataset=hub_copy, revision="0123abc", template="{prompt}")
    rows, report = read(config, None)
    pool = tokenise(rows, config, Letters(), 50, report)
    assert len(pool) == 3
    assert report.source == "owner/chains@0123abc"


def real(variable):
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"{variable} is not set: no real data to read")
    return Path(folder)


def test_gsm8k_training_set_with_a_real_tokenizer():
    from transformers import AutoTokenizer

    path = real("COTSIEVE_REAL_DATA") / "gsm8k_train.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(real("COTSIEVE_REAL_TOKENIZER"))
    config = PoolConfig(dataset=str(path), prompt="question", response="answer")
    rows, report = read(config, path)
    pool = tokenise(rows, config, tokenizer, 1024, report)
    assert (report.rows, report.kept, report.problems) == (7473, 7473, {})
    for position in (0, 7472):
        text = tokenizer.decode(pool.input_ids[position][len(pool.prompt_ids(position)) : -1])
        assert text == rows[position]["answer"]
    assert all(answer is not None for answer in pool.column("answer"))
    short = Report("gsm8k", rows=len(rows))
    cut = tokenise(rows, config, tokenizer, 128, short, "drop")
    lost = short.problems["prompt longer than 128 tokens"]
    assert len(cut) + len(lost) == 7473
    assert short.truncated == sum(cut.truncated) > 0
