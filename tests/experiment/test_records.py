"""Records: append only, idempotent, whole after a kill."""

import json

import pytest

from harness.experiment import records


def entry(cell="a@0.5#0", **more):
    return {"cell": cell, "status": "done", "value": 1.5, **more}


def test_the_same_record_is_not_written_twice_in_a_row(tmp_path):
    assert records.append(tmp_path, entry())
    assert not records.append(tmp_path, entry())
    assert records.append(tmp_path, entry(value=2.0))
    assert records.append(tmp_path, entry())  # back to the first: newest must say so
    assert [r["value"] for r in records.read(tmp_path)] == [1.5, 2.0, 1.5]


def test_newest_record_of_each_cell_wins(tmp_path):
    for value, cell in [(1, "a"), (2, "b"), (3, "a")]:
        records.append(tmp_path, entry(cell, value=value))
    found = records.newest(records.read(tmp_path))
    assert {cell: r["value"] for cell, r in found.items()} == {"a": 3, "b": 2}


def test_a_line_cut_off_by_a_kill_is_ignored_and_then_removed(tmp_path):
    records.append(tmp_path, entry())
    path = tmp_path / records.RECORDS
    with path.open("a") as file:
        file.write('{"cell": "b@0.5')
    assert [r["cell"] for r in records.read(tmp_path)] == ["a@0.5#0"]
    records.append(tmp_path, entry("b@0.5#0"))
    lines = path.read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == ["a@0.5#0", "b@0.5#0"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / records.RECORDS).write_text('{"cell": "a"}\nnot json\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:2: not a record"):
        records.read(tmp_path)


def test_provenance_names_no_machine_and_no_path(tmp_path):
    import platform

    made = records.provenance(tmp_path, "cpu", {"name": "hf", "version": "1"})
    text = json.dumps(made)
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert made["commit"] is None
    assert made["packages"]["numpy"]


def test_write_atomic_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    records.write_atomic(path, b"one")
    records.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
