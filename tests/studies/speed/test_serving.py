"""What the evaluation bench hands out and gathers, with make-believe answers in real processes."""

import json
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from harness.data import testbed
from harness.experiment.store import Store
from harness.running.job import EVALUATE
from harness.studies.speed import overhead, phases, serving
from harness.studies.speed.__main__ import main
from harness.studies.speed.checkpoints import perturbed, series
from harness.studies.speed.phases import clocked
from harness.studies.speed.serving import in_turns, killed

SECONDS = {"import": 0.0, "engine": 0.0, "decoding": 0.0, "grading": 0.0, "store": 0.0}
begun = 0


def pretend(job, report, forgetful=False):
    """Rows and token ids that depend on the checkpoint, and in time if `forgetful` on the process.

    In the middle, and where it is to be killed, a job says that it is answering and waits.
    """
    global begun
    begun += 1
    store = Store(Path(job.store))
    number = int(job.stages[0].parents["model"].label)
    wrong = forgetful and begun > 1
    for stage in job.stages:
        rows = {"item": ["a", "b"], "response": [f"{number}", "wrong" if wrong else stage.label]}

        def build(work, rows=rows):
            pd.DataFrame(rows).to_parquet(work / "samples.parquet", index=False)
            return {}

        if number == 1 and job.attempt == 0 and (Path(job.store) / "kill").exists():
            report("answers", 0, 8)
            time.sleep(0.3)
            report("answers", 3, 8)
            time.sleep(60)
        store.make(stage.kind, stage.key, stage.recipe, build)
    answers = [((1, 2), (number, 3)), ((1, 4), (number, 9 if wrong else 5))]
    return {"begun": time.monotonic(), "seconds": SECONDS, "answers": answers}


forgetful = partial(pretend, forgetful=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model of the bench that costs no training."""
    pytest.importorskip("torch")  # here: worker processes import this module too
    folder = tmp_path_factory.mktemp("base")
    spec = testbed.BaseSpec(layers=1, hidden=32, heads=1, steps=2, batch=4)
    log = testbed.train_base(spec, folder, lambda iterable, *_: iterable)
    return folder, spec, log


@pytest.fixture
def three(base, tmp_path, monkeypatch):
    monkeypatch.setitem(testbed.BASES, "toy", base[1])
    return series(Store(tmp_path / "kept"), tmp_path, "toy", 3, items=5, threads=1)


def test_a_perturbed_checkpoint_is_the_same_for_a_seed(base, tmp_path):
    import torch
    from safetensors.torch import load_file

    source = base[0]
    folders = [perturbed(source, tmp_path / name, int(name[0])) for name in ("1", "1 again", "2")]
    one, again, two = (load_file(folder / "model.safetensors") for folder in folders)
    known = load_file(source / "model.safetensors")
    assert all(torch.equal(one[name], again[name]) for name in known)
    matrices = [name for name, tensor in known.items() if tensor.dim() == 2]
    assert len(matrices) > 5
    for name in matrices:
        assert not torch.equal(one[name], two[name])
        spread = (one[name] - known[name]).std() / known[name].std()
        assert 0.01 < float(spread) < 0.03
    assert (folders[0] / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_stages_are_those_of_a_run(three, tmp_path):
    from harness.experiment import config
    from harness.running import plan

    assert len(three.cells) == len({cell.key for cell in three.cells}) == 12
    store = three.store(tmp_path / "store")
    job = three.job(2, store)
    assert (job.role, job.label) == (EVALUATE, "evaluate 2")
    for task, cell in zip(testbed.TASKS, job.stages, strict=True):
        items = store.folder("items", cell.parents["items"].key) / "items.jsonl"
        rows = [json.loads(line) for line in items.read_text().splitlines()]
        assert [row["id"] for row in rows] == [f"{task}-{n:04d}" for n in range(5)]
    # An experiment with the same settings has the same stages, but for the model.
    quick = Path(__file__).parents[3] / "experiments" / "quick.toml"
    text = quick.read_text().replace("items = 300", "items = 5").replace("testbed:small", "PATH")
    model = job.stages[0].parents["model"].where["path"]
    file = tmp_path / "same.toml"
    file.write_text(text.replace("PATH", model))
    cells = plan.make(config.load(file), file).cells
    cell = next(cell for cell in cells if cell.row.row == "base")
    for own in job.stages:
        theirs = cell.samples[own.inputs["task"]]
        assert dict(own.inputs) == dict(theirs.inputs)
        assert dict(own.parents["items"].inputs) == dict(theirs.parents["items"].inputs)
        assert own.parents["model"].key == theirs.parents["model"].key


def with_target(monkeypatch, target):
    monkeypatch.setattr(serving, "_target", lambda: target)


def test_both_sides_are_compared_row_by_row(three, monkeypatch):
    with_target(monkeypatch, pretend)
    found, samples = in_turns(three)
    assert found["rows"] == 24
    assert (found["different_rows"], found["different_ids"]) == (0, 0)
    assert found["distinct_checkpoints"] == 3
    assert [len(found[side]) for side in ("kept", "fresh")] == [3, 3]
    assert [frame["response"][0] for frame in samples] == [n for n in "012" for _ in range(4)]


def test_a_process_that_answers_otherwise_later_is_found_out(three, monkeypatch):
    with_target(monkeypatch, forgetful)
    found, _ = in_turns(three)
    # Of the second and third checkpoint: one row of each task, and one answer's ids.
    assert (found["different_rows"], found["different_ids"]) == (8, 2)


def test_a_killed_process_costs_the_checkpoint_in_hand(three, monkeypatch):
    with_target(monkeypatch, pretend)
    make = type(three).store

    def marked(self, root):
        store = make(self, root)
        (root / "kill").touch()
        return store

    monkeypatch.setattr(type(three), "store", marked)
    known = [
        pd.DataFrame({"item": ["a", "b"], "response": [cell.parents["model"].label, cell.label]})
        for cell in three.cells
    ]
    for position in (0, 5):  # finished before the kill, and done twice
        known[position] = known[position].assign(response="other")
    found = killed(three, known)
    del found["seconds"]
    assert found == {
        "deaths": 1,
        "cells": 12,
        "finished_before": 4,
        "lost": 0,
        "finished_after": 12,
        "done_twice": 4,
        "tasks": 4,
        "different_rows": 2,
        "different_rows_done_twice": 2,
    }


def test_a_clock_adds_up_and_is_taken_away(monkeypatch):
    class Adder:
        def add(self, number):
            if number < 0:
                raise ValueError(number)
            return number + 1

    ticks = iter(range(100))
    monkeypatch.setattr(phases.time, "monotonic", lambda: next(ticks))
    real, seconds, seen = Adder.add, {}, []
    with clocked(Adder, "add", seconds, seen.append):
        assert Adder().add(1) == 2
        assert Adder().add(4) == 5
        with pytest.raises(ValueError, match="-1"):
            Adder().add(-1)
    assert (seconds, seen) == ({"add": 3}, [2, 5])
    assert Adder.add is real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["overhead"], "--data is None; expected GSM8K's test set"),
        (["overhead", "--data", "/nowhere"], "--data is '/nowhere'; expected"),
        (["evaluate", "--checkpoints", "2"], "--checkpoints is 2; expected at least 3"),
    ],
)
def test_bad_input_is_named(arguments, message, monkeypatch, capsys):
    monkeypatch.delenv("COTSIEVE_REAL_DATA", raising=False)
    monkeypatch.setattr(serving, "vllm_build", lambda: "vllm")
    monkeypatch.setattr(overhead, "vllm_build", lambda: "vllm")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_is_needed_for_real_text_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("COTSIEVE_REAL_TOKENIZER", raising=False)
    monkeypatch.setattr(overhead, "vllm_build", lambda: "vllm")
    data = tmp_path / "gsm8k_test.jsonl"
    data.write_text("{}\n")
    assert main(["overhead", "--data", str(data)]) == 2
    told = capsys.readouterr().err
    assert "--tokenizer is None; expected a folder with tokenizer.json" in told
    assert "the testbed's own knows only its chains" in told


@pytest.mark.parametrize("module", [overhead, serving])
def test_without_vllm_there_is_nothing_to_measure(module, monkeypatch, capsys):
    monkeypatch.setattr(module, "vllm_build", lambda: None)
    assert main(["overhead" if module is overhead else "evaluate"]) == 2
    assert "no vLLM build is installed" in capsys.readouterr().err


def test_influence_is_what_is_measured_by_default(monkeypatch):
    asked = []
    monkeypatch.setattr("harness.studies.speed.__main__.influence", lambda a: asked.append(a) or {})
    monkeypatch.setattr("harness.studies.speed.__main__.markdown", lambda report: "")
    assert main([]) == 0
    assert (asked[0].what, asked[0].repeats, asked[0].threads) == ("influence", 3, 2)
