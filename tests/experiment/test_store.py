"""The store: keys, atomicity, locks, and what a killed process leaves behind."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.experiment.settings import TrainingRecipe
from harness.experiment.stage import Recipe, Stage, with_ancestors
from harness.experiment.store import META, Store, canonical, digest, tree_digest


@dataclass(frozen=True)
class Keyed:
    kind: str
    key: str
    manifest: dict = field(default_factory=dict)


POOL, LONG = Keyed("pool", "k"), Keyed("pool", "k" * 64, {"n": 1})


def write(text):
    def build(work: Path):
        (work / "out.txt").write_text(text)
        return {"length": len(text)}

    return build


def test_canonical_json_by_hand():
    assert canonical({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'
    assert digest("x") == hashlib.sha256(b'"x"').hexdigest()


def test_make_builds_once_and_keeps_facts_and_hashes(tmp_path):
    store = Store(tmp_path)
    made = store.make(LONG, write("hello"), lambda: {"commit": "c"})
    again = store.make(LONG, write("other"))
    assert made.folder == again.folder
    assert (again.folder / "out.txt").read_text() == "hello"
    assert again.info == {"length": 5}
    assert again.outputs == {"out.txt": hashlib.sha256(b"hello").hexdigest()}
    assert again.meta["provenance"] == {"commit": "c"}
    assert again.meta["inputs"] == {"n": 1}


def test_a_failed_build_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def broken(work):
        (work / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.make(POOL, broken)
    assert not store.has(POOL)
    assert [p.name for p in (tmp_path / "pool").iterdir()] == []


def test_a_folder_without_meta_is_no_artefact_and_is_replaced(tmp_path):
    store = Store(tmp_path)
    half = store.folder(POOL)
    half.mkdir(parents=True)
    (half / "out.txt").write_text("torn")
    assert store.get(POOL) is None
    store.make(POOL, write("whole"))
    assert (half / "out.txt").read_text() == "whole"


def _build_slowly(root, started):
    def slow(work):
        (work / "out.txt").write_text(str(os.getpid()))
        started.set()
        time.sleep(60)
        return {}

    Store(Path(root)).make(POOL, slow)


def test_kill_in_the_middle_of_a_build_then_build_again(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_build_slowly, args=(str(tmp_path), started))
    process.start()
    assert started.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = Store(tmp_path)
    assert not store.has(POOL)
    store.make(POOL, write("after"))
    folder = store.folder(POOL)
    assert (folder / "out.txt").read_text() == "after"
    assert [p for p in folder.parent.iterdir() if p != folder] == []


def _build_counted(root, tally):
    def build(work):
        with open(tally, "a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return {}

    Store(Path(root)).make(POOL, build)


def test_two_processes_build_one_artefact_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    tally = tmp_path / "tally"
    args = (str(tmp_path / "store"), str(tally))
    processes = [context.Process(target=_build_counted, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert tally.read_text() == "built\n"


def test_tree_digest_depends_on_names_and_bytes_not_on_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(b"abc")
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    (tmp_path / "two" / "w.bin").write_bytes(b"abd")
    assert tree_digest(tmp_path / "one") != tree_digest(tmp_path / "two")


@dataclass(frozen=True)
class Base(Recipe):
    kind = "base"
    seed: int
    note: str | None = None


@dataclass(frozen=True)
class Checkpoint(Recipe):
    kind = "checkpoint"
    version = 4
    train: TrainingRecipe
    base: Base


TRAIN = TrainingRecipe(learning_rate=0.1, epochs=1)


def test_stage_keys_follow_content_and_not_labels_or_paths():
    base = Stage(Base(0), "base model")
    same = Stage(Base(0), "another label", path=Path("/elsewhere"))
    other = Stage(Base(1), "base model")
    assert base.key == same.key != other.key
    child = Stage(Checkpoint(TRAIN, Base(2)), "c", {"model": base})
    assert child.key != Stage(Checkpoint(TRAIN, Base(2)), "c", {"model": other}).key
    # Nested settings are plain data, without what is None.
    expected = {
        "kind": "checkpoint",
        "version": 4,
        "inputs": {
            "train": TRAIN.model_dump(mode="json", exclude_none=True),
            "base": {"seed": 2},
        },
        "parents": {"model": base.key},
    }
    assert child.key == digest(expected)


def test_ancestors_come_first_and_each_once():
    base = Stage(Base(0), "b")
    left, right = (Stage(Base(n), f"{n}", {"model": base}) for n in (1, 2))
    end = Stage(Base(3), "e", {"left": left, "right": right})
    assert [s.label for s in with_ancestors([end]).values()] == ["b", "1", "2", "e"]
    assert [s.label for s in end.ancestry()] == ["b", "1", "2", "e"]


def test_meta_is_written_last(tmp_path):
    store = Store(tmp_path)

    def build(work):
        assert not (work / META).exists()
        return {}

    made = store.make(POOL, build)
    assert json.loads((made.folder / META).read_text())["stage"] == "pool"
