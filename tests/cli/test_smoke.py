"""The smoke experiment as a user runs it: real training, a real engine, killed and continued."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from harness.experiment import config
from harness.experiment import records as record

ROOT = Path(__file__).parents[2]
COLUMNS = (
    "row,fraction,task,mean,ci_low,ci_high,sd_seeds,n_seeds,n_items,diff,diff_low,diff_high,p,"
    "p_sign_flip,p_holm,verdict,select_seconds,train_seconds,eval_seconds,pass_at_k,"
    "majority,decodes,truncated"
).split(",")
TIMES = ["select_seconds", "train_seconds", "eval_seconds"]


def heed_interrupts():
    """What a shell starts in the background ignores SIGINT, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Place:
    """A working folder with its own store, in which the command is run."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT / "experiments", folder / "experiments")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COTSIEVE_STORE": str(folder / "store"),
            "COLUMNS": "200",
        }

    def start(self, *arguments):
        command = [sys.executable, "-m", "harness.cli.app", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_interrupts,
        )

    def call(self, *arguments, code=0):
        process = self.start(*arguments)
        output = process.communicate()[0]
        assert process.returncode == code, output
        return output

    def made(self):
        return len(list((self.folder / "store").glob("[a-z]*/*/meta.json")))

    def table(self):
        return pd.read_csv(self.folder / "reports/smoke/main.csv")

    def records(self):
        return record.newest(record.read(self.folder / "results/smoke"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("smoke"))
    place.output = place.call("run", "smoke")
    return place


def test_every_row_of_the_experiment_is_in_the_table(smoke):
    table = smoke.table()
    assert list(table.columns) == COLUMNS
    experiment = config.load(ROOT / "experiments/smoke.toml")
    assert set(table["row"]) == {row.row for row in experiment.rows()}
    tasks = [*experiment.evaluate.tasks, "mean"]
    assert len(table) == len(experiment.rows()) * len(tasks)
    assert set(table["task"]) == set(tasks)
    assert table["mean"].between(0, 1).all()
    inside = (table["ci_low"] <= table["mean"]) & (table["mean"] <= table["ci_high"])
    assert inside.all()


def test_the_table_is_the_mean_of_the_stored_samples(smoke):
    """An independent way from samples to the table's first number."""
    table = smoke.table().set_index(["row", "task"])
    for row in ("random", "influence/combined", "base"):
        records = [r for r in smoke.records().values() if r["row"] == row]
        frames = [pd.read_parquet(smoke.folder / "results/smoke" / r["samples"]) for r in records]
        samples = pd.concat(frames)
        means = samples.groupby("task")["correct"].mean()
        for task, mean in means.items():
            assert table.loc[(row, task), "mean"] == pytest.approx(mean, abs=1e-6)
        assert table.loc[(row, "mean"), "mean"] == pytest.approx(means.mean(), abs=1e-6)


def test_the_report_has_its_files(smoke):
    folder = smoke.folder / "reports/smoke"
    names = {path.name for path in folder.iterdir()}
    figures = {
        f"{n}.{e}"
        for n in ("accuracy", "forest", "fractions", "cost")
        for e in ("svg", "png", "pdf")
    }
    assert {"main.csv", "main.md", "main.tex", "index.html"} | figures <= names
    assert any(name.endswith("scatter.svg") for name in names)


def test_a_second_run_finds_everything_stored(smoke):
    before = smoke.made()
    table = (smoke.folder / "reports/smoke/main.csv").read_bytes()
    output = smoke.call("run", "smoke")
    assert "nothing to run" in output
    assert smoke.made() == before
    assert (smoke.folder / "reports/smoke/main.csv").read_bytes() == table


def test_a_subset_comes_out_ready_to_train_on(smoke):
    smoke.call("subset", "smoke", "influence/combined", "--fraction", "0.5", "--out", "s.jsonl")
    frame = pd.read_json(smoke.folder / "s.jsonl", lines=True)
    assert len(frame) == 60
    assert {"id", "rank", "prompt", "response", "score", "s_C", "s_I"} <= set(frame.columns)
    assert "quality" not in frame
    assert frame["score"].is_monotonic_decreasing


def test_bad_input_ends_with_code_2_and_one_clear_line(smoke):
    output = smoke.call("run", "smok", code=2)
    known = ", ".join(sorted(path.stem for path in (ROOT / "experiments").glob("*.toml")))
    assert output.strip() == f"error: experiment 'smok' does not exist; expected one of: {known}"
    output = smoke.call(
        "subset", "smoke", "random", "--fraction", "0.4", "--out", "s.jsonl", code=2
    )
    assert "expected fraction and seed among [(0.5, 0), (0.5, 1)]" in output
    assert "Traceback" not in output


def test_explain_shows_the_chain_of_a_cell(smoke):
    output = smoke.call("explain", "smoke", "influence/combined@0.5#0")
    assert output.startswith("influence/combined@0.5#0: done")
    for kind in ("base", "pool", "answers", "scores", "subset", "checkpoint", "samples"):
        assert f" {kind} " in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_interrupted_runs_end_like_an_undisturbed_one(smoke, tmp_path):
    place = Place(tmp_path)
    for wanted, blow in ((12, signal.SIGKILL), (50, signal.SIGINT)):
        process = place.start("run", "smoke")
        deadline = time.monotonic() + 300
        while place.made() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(blow)
        output = process.communicate()[0]
        assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL), output
    place.call("run", "smoke")
    undisturbed, continued = smoke.records(), place.records()
    assert undisturbed.keys() == continued.keys()
    for cell, entry in undisturbed.items():
        assert entry["outputs"] == continued[cell]["outputs"], cell
    pd.testing.assert_frame_equal(
        smoke.table().drop(columns=TIMES), place.table().drop(columns=TIMES), check_exact=True
    )
