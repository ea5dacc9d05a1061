"""Reading a results folder."""

import json

import pytest

from harness.reporting.results import arms, load


def append(folder, record):
    with (folder / "records.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_every_planned_cell_is_there_once_in_protocol_order(make_results):
    (results,) = load(make_results())
    names = [cell.name for cell in results.cells]
    assert names[:2] == ["base@0#0", "random@0.5#0"]
    assert len(names) == len(set(names)) == 1 + 5 * 3
    assert {cell.status for cell in results.cells} == {"done"}
    assert len(results.outcomes) == 16 * 2 * 40


def test_newest_record_of_a_cell_wins(make_results):
    folder = make_results(failures={"length@0.5#1": {"stage": "train", "message": "x"}})
    good = next(r for r in records(folder) if r["cell"] == "length@0.5#0")
    append(folder, good | {"cell": "length@0.5#1", "seed": 1})
    (results,) = load(folder)
    again = {cell.name: cell.status for cell in results.cells}
    assert again["length@0.5#1"] == "done"
    append(folder, good | {"status": "failed", "error": {"stage": "train", "message": "y"}})
    (results,) = load(folder)
    assert {c.name: c.status for c in results.cells}["length@0.5#0"] == "failed"


def test_rows_outside_the_protocol_do_not_count(make_results):
    folder = make_results()
    good = next(r for r in records(folder) if r["cell"] == "length@0.5#0")
    append(folder, good | {"cell": "gone@0.5#0", "row": "gone"})
    append(folder, good | {"cell": "length@0.5#9", "seed": 9})
    (results,) = load(folder)
    assert "gone" not in set(results.outcomes["row"])
    assert set(results.outcomes["seed"]) == {0, 1, 2}


def test_cells_that_never_ran_are_missing(make_results):
    folder = make_results()
    kept = [r for r in records(folder) if r["cell"] != "oracle@0.5#2"]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (results,) = load(folder)
    assert [c.name for c in results.cells if c.status == "missing"] == ["oracle@0.5#2"]


def test_order_of_records_does_not_matter(make_results):
    folder = make_results()
    (before,) = load(folder)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(reversed(lines)))
    (after,) = load(folder)
    assert after.outcomes.equals(before.outcomes)


def test_arms_are_read_apart(make_results):
    arm = {"arm": [{"name": "random-errors", "fractions": [0.25]}]}
    make_results(fractions=(0.25, 0.5), protocol=arm)
    folder = make_results(fractions=(0.25,), arm="random-errors", rng_seed=3)
    main, other = load(folder)
    assert (main.arm, main.fractions) == ("main", (0.25, 0.5))
    assert (other.arm, other.fractions) == ("random-errors", (0.25,))
    assert main.pool is not None
    assert not main.pool.equals(other.pool)
    assert set(other.outcomes["fraction"]) == {0.0, 0.25, 1.0}
    assert arms(folder) == {arm.arm: len(arm.cells) for arm in (main, other)}
    assert main.arms == other.arms == ("main", "random-errors")


def test_broken_files_are_named(make_results):
    folder = make_results()
    with (folder / "records.jsonl").open("a") as lines:
        lines.write('{"cell": "half a li\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:17: .*expected one JSON object"):
        load(folder)


def test_samples_without_a_task_are_refused(make_results):
    folder = make_results(protocol={"tasks": ["chain_core", "chain_far", "gsm8k"]})
    with pytest.raises(
        ValueError, match=r"samples/main-00000\.parquet: no samples for \['gsm8k'\]"
    ):
        load(folder)


def test_protocol_without_a_key_is_refused(make_results):
    folder = make_results()
    text = (folder / "protocol.toml").read_text().replace('"seeds" =', '"sedes" =')
    (folder / "protocol.toml").write_text(text)
    with pytest.raises(ValueError, match=r"protocol\.toml: keys \['seeds'\] are missing"):
        load(folder)


def test_selections_are_read_once_and_shared_by_seeds_with_one_choice(make_results):
    folder = make_results()
    lines = records(folder)
    first = next(r for r in lines if r["cell"] == "length@0.5#0")["selection"]
    for record in lines:
        if record["row"] == "length":
            record["selection"] = first
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    (results,) = load(folder)
    found = results.selections("length", 0.5)
    assert list(found) == [0, 1, 2]
    assert found[0] is found[1] is found[2] is results.selection("length", 0.5)
    assert found[0]["chosen"].sum() == 60
    apart = results.selections("random", 0.5)
    assert apart[0] is not apart[1]
    assert results.selections("base", 0.0) == {}
