import json

import pytest

from harness import influence
from harness.data.pool import IGNORED
from harness.selection.toy import EOS, tokenizer

ROWS = [
    {"question": "1+1=?", "solution": "2", "name": "a"},
    {"question": "2+2=?", "solution": "it is 4", "name": "b"},
]
COLUMNS = {"prompt": "question", "response": "solution", "id": "name"}


def test_rows_by_hand():
    pool = influence.examples(ROWS, tokenizer(), template="{prompt} ", **COLUMNS)
    assert pool.ids == ("a", "b")
    assert len(pool.input_ids[0]) == 8  # "1+1=? " and "2" and the end of text
    assert pool.labels[0].tolist() == [IGNORED] * 6 + pool.input_ids[0][6:].tolist()
    assert pool.input_ids[0][-1] == EOS


def test_files_give_what_rows_give(tmp_path):
    import pandas as pd

    wanted = influence.examples(ROWS, tokenizer(), template="{prompt}", **COLUMNS)
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pd.DataFrame(ROWS).to_parquet(table)
    for path in (lines, str(table)):
        found = influence.examples(path, tokenizer(), template="{prompt}", **COLUMNS)
        assert found.fingerprint == wanted.fingerprint


def test_bad_rows_are_named(tmp_path):
    broken = [*ROWS, {"question": "3+3=?", "solution": " ", "name": "c"}, "text", ROWS[0]]
    with pytest.raises(ValueError, match="rows: 4 of 5 rows cannot be used") as caught:
        influence.examples(broken, tokenizer(), template="{prompt}", **COLUMNS)
    for said in (
        "empty or missing 'solution': 1 (row 3)",
        "not a mapping: 1 (row 4)",
        "duplicate id: 2 (row 1, 5)",
    ):
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="no column 'answer' .*expected one of: question, sol"):
        influence.examples(ROWS, tokenizer(), prompt="question", response="answer")
    with pytest.raises(ValueError, match="no rows; expected at least one"):
        influence.examples([], tokenizer())
    with pytest.raises(ValueError, match=r"rows\.txt: expected a file ending in \.jsonl or"):
        influence.examples("rows.txt", tokenizer())
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: no such file; expected"):
        influence.examples(tmp_path / "gone.jsonl", tokenizer())
    with pytest.raises(ValueError, match="max_tokens is 1; expected at least 2"):
        influence.examples(ROWS, tokenizer(), max_tokens=1)
