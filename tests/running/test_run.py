"""The scheduler with make-believe training: records, failures, deaths, resuming, `--only`."""

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.quotes import write_texts
from harness.evaluation.settings import Limits
from harness.experiment import config, records
from harness.experiment.store import LOG as LOG_FILE
from harness.experiment.store import Store
from harness.reporting import quotes
from harness.running import plan, schedule
from harness.running import run as running
from harness.running.display import View
from harness.running.workers import Workers
from harness.training.divergence import TrainingDiverged
from tests import pretend as pretending

TOML = pretending.TOML + '[[selector]]\nname = "length"\n'


def pretend(job, report):
    """A worker's target: cheap stages are real, models are not."""
    store = Store(Path(job.store))
    for stage in job.stages:
        if os.environ.get("PRETEND_STOP") == stage.label:
            if "PRETEND_ATTEMPTS" in os.environ:
                with open(os.environ["PRETEND_ATTEMPTS"], "a") as file:
                    file.write(f"{job.attempt} ")
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("PRETEND_HANG") == stage.label:
            folder = store.failure_folder(job.stages[0])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG_FILE).write_text("\n".join(f"line {n}" for n in range(50)))
            time.sleep(600)
        if os.environ.get("PRETEND_DIVERGE") == stage.label:
            raise TrainingDiverged(3, "loss is nan")
        pretending.build(stage, store, job)
    return {}


@pytest.fixture
def world(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(schedule, "run_job", pretend)
    path = tmp_path / "pretend.toml"
    path.write_text(TOML)

    class World:
        results = tmp_path / "results"
        store = Store(tmp_path / "store")

        def run(self, text=TOML, **options):
            path.write_text(text)
            made = plan.make(config.load(path), path)
            options = {"workers": 1, "start": in_process, **options}
            summary = running.Run(made, self.store, self.results, **options).execute(View())
            write_texts(made, self.store, self.results)
            return summary

        def newest(self):
            return records.newest(records.read(self.results))

    return World()


def test_a_run_records_every_cell_once_and_a_second_run_does_nothing(world):
    first = world.run()
    assert (first.cells, first.stored, first.failed) == (11, 0, {})
    lines = records.read(world.results)
    assert len(lines) == 11
    entry = world.newest()["length@0.5#1"]
    assert entry["status"] == "done"
    assert entry["n_examples"] == 20
    samples = pd.read_parquet(world.results / entry["samples"])
    means = samples.groupby("task")["correct"].mean()
    assert entry["accuracy"] == pytest.approx(means.to_dict())
    chosen = pd.read_parquet(world.results / entry["selection"])
    assert chosen["chosen"].sum() == 20
    kept, dropped = chosen[chosen["chosen"]], chosen[~chosen["chosen"]]
    assert kept["score"].min() >= dropped["score"].max()
    second = world.run()
    assert (second.jobs, second.stored) == (0, 11)
    assert records.read(world.results) == lines


def test_a_diverging_cell_fails_alone_with_its_step(world, monkeypatch):
    monkeypatch.setenv("PRETEND_DIVERGE", "checkpoint of length@0.5#1")
    summary = world.run()
    assert list(summary.failed) == ["length@0.5#1"]
    entry = world.newest()["length@0.5#1"]
    assert entry["status"] == "failed"
    assert entry["error"]["step"] == 3
    assert entry["error"]["stage"] == "checkpoint"
    assert sum(e["status"] == "done" for e in world.newest().values()) == 10
    monkeypatch.delenv("PRETEND_DIVERGE")
    assert world.run().failed == {}
    assert world.newest()["length@0.5#1"]["status"] == "done"


def test_a_worker_that_dies_twice_fails_its_cell_only(world, monkeypatch):
    monkeypatch.setenv("PRETEND_STOP", "checkpoint of random@0.5#0")
    summary = world.run(start=Workers)
    assert list(summary.failed) == ["random@0.5#0"]
    assert "died" in world.newest()["random@0.5#0"]["error"]["message"]


def test_an_evaluation_that_hangs_is_tried_again_and_fails_with_its_log(world, monkeypatch):
    monkeypatch.setenv("PRETEND_HANG", "chain_core of length@0.5#0")
    summary = world.run(limits=Limits(seconds=3.0), start=Workers)
    assert list(summary.failed) == ["length@0.5#0"]
    error = world.newest()["length@0.5#0"]["error"]
    assert error["message"].startswith("no end after the time limit of 6 s")  # of its two tasks
    assert error["log"].splitlines() == [f"line {n}" for n in range(30, 50)]
    assert sum(e["status"] == "done" for e in world.newest().values()) == 10
    monkeypatch.delenv("PRETEND_HANG")
    again = world.run()
    assert (again.failed, again.stored) == ({}, 10)


def test_a_job_that_died_is_begun_with_fewer_sequences(world, monkeypatch, tmp_path):
    path = tmp_path / "attempts"
    monkeypatch.setenv("PRETEND_ATTEMPTS", str(path))
    monkeypatch.setenv("PRETEND_STOP", "chain_far of random@0.5#1")
    summary = world.run(start=Workers)
    assert list(summary.failed) == ["random@0.5#1"]
    assert path.read_text().split() == ["0", "1"]


def test_records_are_the_same_after_they_were_lost(world):
    world.run()
    lines = sorted(map(str, records.read(world.results)))
    (world.results / records.RECORDS).unlink()
    assert world.run().jobs == 0
    assert sorted(map(str, records.read(world.results))) == lines


def test_only_runs_what_was_asked_for(world):
    summary = world.run(only="selector=length")
    assert summary.cells == 2
    assert set(world.newest()) == {"length@0.5#0", "length@0.5#1"}
    with pytest.raises(ValueError, match="expected selector=NAME or row=NAME"):
        world.run(only="length")


def test_another_recipe_appends_and_the_old_lines_stay(world):
    world.run()
    world.run(TOML.replace("steps = 2", "steps = 4"))
    lines = records.read(world.results)
    assert len(lines) == 22
    assert lines[0]["protocol"] != lines[-1]["protocol"]
    keys = [line["key"] for line in lines if line["row"] == "base"]
    assert keys[0] == keys[1]  # the base is not trained: evaluated once, recorded twice


def test_texts_of_the_testbed_are_kept_in_full(world):
    summary = world.run()
    assert summary.failed == {}
    pool = pd.read_parquet(next(world.store.root.glob("pool/*/pool.parquet")))
    kept = quotes.read_examples(world.results, "main")
    assert list(kept) == list(pool["id"])
    for name, prompt, response in pool[["id", "prompt", "response"]].itertuples(index=False):
        assert [text.kept for text in kept[name]] == [prompt, response]
        assert not any(text.cut for text in kept[name])
    questions = quotes.read_questions(world.results)
    assert len(questions) == 40
    stored = [
        json.loads(line)
        for path in world.store.root.glob("items/*/items.jsonl")
        for line in path.read_text().splitlines()
    ]
    for row in stored:
        task = row["id"].rpartition("-")[0]
        assert [t.kept for t in questions[task, row["id"]]] == [row["prompt"], row["answer"]]
    before = (world.results / quotes.QUESTIONS).read_bytes()
    (world.results / quotes.QUESTIONS).unlink()
    world.run()
    assert (world.results / quotes.QUESTIONS).read_bytes() == before


def test_the_disjointness_of_the_testbed_is_proved_in_every_run(world):
    world.run()
    facts = json.loads((world.results / "facts.json").read_text())
    assert facts["disjoint"] == [{"pool": 40, "queries": 0, "chain_far": 20, "chain_core": 20}]
    assert facts["arms"]["main"]["pool"]["rows"] == 40
