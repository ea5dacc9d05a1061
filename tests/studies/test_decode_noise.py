"""Decode noise of one checkpoint: which cell, what is stored, what is said; no engine."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli.app import app, main
from harness.evaluation.settings import Limits
from harness.experiment import config, records
from harness.experiment.store import Store
from harness.running import plan, schedule
from harness.running import run as running
from harness.running.display import View
from harness.running.job import Job
from harness.running.workspace import build
from harness.studies import decode_noise as noise
from tests.pretend import TOML

SAMPLED = TOML.replace('engine = "hf"', 'engine = "hf"\ndecodes = 2\ntemperature = 0.8')
ENGINE = {
    "name": "hf",
    "version": "1.2",
    "device": "cpu",
    "dtype": "float32",
    "sequences": 128,
    "batch_invariant": False,
}
ITEMS = [f"i{n:02d}" for n in range(20)]


def pretend(job, report):
    """A worker's target: cheap stages are real, models and engines are not."""
    store = Store(Path(job.store))
    for stage in job.stages:
        if os.environ.get("PRETEND_STOP") == stage.label:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("PRETEND_FAIL") == stage.label:
            raise RuntimeError("no engine today")
        if stage.kind == "noise":
            builder = answers(stage)
        elif stage.kind in ("base", "checkpoint", "samples"):
            builder = nothing
        else:
            build(stage, store, lambda: job.provenance)
            continue
        store.make(stage, builder, lambda: job.provenance)
    return {}


def nothing(work):
    return {"parameters": 1}


def answers(stage):
    """Item i is right in repetition r where (i + r * PRETEND_NOISE) is even."""

    def write(work):
        number, moved = stage.recipe.repetition, int(os.environ.get("PRETEND_NOISE", "0"))
        decodes = stage.recipe.samples[0].decodes
        frames = []
        for task in [samples.task for samples in stage.recipe.samples]:
            # Rows come in another order each time; only ids say what belongs together.
            order = np.random.default_rng(number).permutation(20)
            part = pd.DataFrame({"item": [ITEMS[i] for i in order], "at": order})
            part = part.loc[np.repeat(part.index, decodes)].assign(task=task)
            part["decode"] = np.tile(np.arange(decodes), 20)
            flips = moved * number * (part["at"] < number) * (task == "chain_far")
            part["correct"] = (part["at"] + flips) % 2 == 0
            part["response"] = part["correct"].map({True: "yes ", False: "no "}) + part["item"]
            frames.append(part.drop(columns="at").assign(weights="abcdef0123456789"))
        pd.concat(frames).to_parquet(work / "samples.parquet")
        return {"engine": ENGINE}

    return write


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "run_job", pretend)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTSIEVE_STORE", "store")
    monkeypatch.setenv("COLUMNS", "80")

    class World:
        store = Store(tmp_path / "store")
        folder = tmp_path
        results = tmp_path / "results/pretend"

        def plan(self, text=TOML):
            (tmp_path / "pretend.toml").write_text(text)
            return plan.make(config.load(Path("pretend.toml")), Path("pretend.toml"))

        def fill(self, only, text=TOML):
            """Store everything behind the cells of a row, but for their samples."""
            made = self.plan(text)
            cells = [cell for cell in made.cells if cell.row.row == only]
            run = running.Run(made, self.store, self.results)
            for job in run.scheduler.jobs(running.wanted_stages(made, cells)):
                for stage in job.stages:
                    if stage.kind != "samples":
                        self.store.make(stage, nothing)

        def noise(self, *arguments, code=0, text=TOML):
            self.plan(text)
            done = CliRunner().invoke(app, ["noise", "pretend.toml", *map(str, arguments)])
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            assert done.exit_code == code, done.output
            return done

        def stored(self):
            metas = [
                json.loads(path.read_text()) for path in self.store.root.glob("noise/*/*.json")
            ]
            return sorted(meta["inputs"]["inputs"]["repetition"] for meta in metas)

        def entry(self, cell="full@1#0"):
            return json.loads((self.results / noise.FILE).read_text())["cells"][cell]

    return World()


def test_without_a_finished_cell_the_command_to_run_is_named(world, monkeypatch, capsys):
    with pytest.raises(ValueError, match="no finished cell of full, random, base"):
        world.noise()
    world.fill("base")
    with pytest.raises(ValueError, match=r"full@1#1: .*checkpoint of full@1#1 not in the store"):
        world.noise("--cell", "full@1#1")
    with pytest.raises(ValueError, match=r"cell 'fool' is not part of pretend"):
        world.noise("--cell", "fool")
    monkeypatch.setattr("sys.argv", ["cotsieve", "noise", "pretend.toml", "--cell", "random@0.5#1"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("as made by: cotsieve run pretend.toml --only row=random")
    assert world.stored() == []


def test_the_cell_is_full_then_the_reference_then_base(world):
    made = world.plan()
    for row, cell in (("base", "base@0#0"), ("random", "random@0.5#0"), ("full", "full@1#0")):
        world.fill(row)
        assert noise.choose_cell(made, world.store).name == cell
    assert noise.choose_cell(made, world.store, "random@0.5#1").name == "random@0.5#1"


def test_repetitions_that_agree_are_said_to_be_bitwise_the_same(world):
    world.fill("full")
    said = world.noise("--repeats", 3).stdout
    assert "full@1#0 of pretend: the same weights (abcdef012345) evaluated 3 times" in said
    assert "hf 1.2 on cpu: float32, at most 128 concurrent sequences, not batch-invariant" in said
    assert (
        "bitwise the same in all 3 repetitions: with these settings, this engine has no decode"
        in said
    )
    table = [line.split() for line in said.splitlines() if line.startswith(("chain", "all"))]
    assert table == [
        ["chain_far", "50.00", "0.00", "no", "interval", "50.00-50.00", "0/20", "0"],
        ["chain_core", "50.00", "0.00", "no", "interval", "50.00-50.00", "0/20", "0"],
        ["all", "2", "tasks", "50.00", "0.00", "no", "interval", "50.00-50.00", "0/40", "0"],
    ]


def test_numbers_by_hand_and_answers_matched_by_item(world, monkeypatch):
    monkeypatch.setenv("PRETEND_NOISE", "1")
    world.fill("full")
    said = world.noise("--repeats", 4).stdout
    entry = world.entry()
    # chain_far, odd repetitions: 1 turns item 0 wrong; 3 turns 0 and 2 wrong and 1 right.
    far, core = entry["tasks"]["chain_far"], entry["tasks"]["chain_core"]
    assert far["accuracies"] == pytest.approx([0.5, 0.45, 0.5, 0.45])
    assert (far["verdicts_changed"], far["texts_changed"], far["n_items"]) == (3, 3, 20)
    sd = 0.05 / np.sqrt(3)  # deviations of 0.025, four of them, over 3
    assert far["sd"] == pytest.approx(sd)
    assert far["sd_low"] == pytest.approx(np.sqrt(3 / 9.34840) * sd, rel=1e-5)
    assert far["sd_high"] == pytest.approx(np.sqrt(3 / 0.215795) * sd, rel=1e-5)
    assert (core["sd"], core["sd_low"], far["binomial_sd"]) == (0.0, None, None)
    assert entry["mean"]["sd"] == pytest.approx(sd / 2)
    [line] = [line.split() for line in said.splitlines() if line.startswith("chain_far")]
    assert line == ["chain_far", "47.50", "2.89", "[1.64,", "10.76]", "45.00-50.00", "3/20", "3"]
    assert "A deviation of 0 has no interval" in said
    assert "bitwise" not in said
    assert "binomial" not in said


def test_sampled_answers_get_seeds_and_the_binomial_deviation(world, monkeypatch):
    monkeypatch.setenv("PRETEND_NOISE", "1")
    world.fill("full", SAMPLED)
    said = world.noise("--repeats", 3, text=SAMPLED).stdout
    assert "2 sampled answers per item at temperature 0.8" in said
    # Item 0 is wrong in one repetition of three, with both decodes: p = 2/3 of 6 draws.
    expected = np.sqrt((2 / 9) / 20 * 6 / 5 / 40)
    assert world.entry()["tasks"]["chain_far"]["binomial_sd"] == pytest.approx(expected)
    assert f"{100 * expected:.2f}" in said
    made = world.plan(SAMPLED)
    run = running.Run(made, world.store, world.results)
    stages = noise.Noise(run, made.cell("full@1#0"), 5).stages
    assert len({stage.recipe.seed for stage in stages}) == 5
    other = noise.Noise(run, made.cell("full@1#1"), 5).stages
    assert not {s.recipe.seed for s in stages} & {s.recipe.seed for s in other}


def test_a_repetition_is_the_samples_of_a_run_in_another_order(world):
    made = world.plan()
    cell = made.cell("full@1#0")
    run = running.Run(made, world.store, world.results)
    stages = noise.Noise(run, cell, 4).stages
    assert [stage.recipe.order is None for stage in stages] == [True, False, False, False]
    assert len({stage.recipe.order for stage in stages}) == 4
    assert all(stage.recipe.seed is None for stage in stages)
    for stage in stages:
        assert list(stage.recipe.samples) == [s.recipe for s in cell.samples.values()]
        assert stage.parents["model"].key == cell.model.key
    assert Job(stages[:1], "", limits=Limits(seconds=9.0)).seconds == 18.0  # two tasks
    limited = running.Run(made, world.store, world.results, limits=Limits(sequences=4))
    narrow = noise.Noise(limited, cell, 4).stages
    assert {s.key for s in narrow}.isdisjoint(s.key for s in stages)
    with pytest.raises(ValueError, match="repeats = 1; expected at least 2"):
        noise.Noise(run, cell, 1)


def test_a_failed_call_is_continued_and_more_repetitions_add_to_it(world, monkeypatch):
    world.fill("full")
    monkeypatch.setenv("PRETEND_FAIL", "repetition 2 of full@1#0")
    failed = world.noise("--repeats", 3, code=1)
    assert "failed: RuntimeError: no engine today" in failed.stderr
    assert world.stored() == [0]  # the third was not tried
    assert not (world.results / noise.FILE).exists()
    monkeypatch.delenv("PRETEND_FAIL")
    assert "3 repetitions, 2 jobs to run" in " ".join(world.noise("--repeats", 3).stderr.split())
    before = world.entry()
    assert world.stored() == [0, 1, 2]
    again = world.noise("--repeats", 3)
    assert "All 3 repetitions are stored; nothing to run." in again.stderr
    assert world.entry() == before
    world.noise("--repeats", 5)
    assert world.stored() == [0, 1, 2, 3, 4]
    assert world.entry()["repetitions"] == 5
    monkeypatch.setenv("PRETEND_STOP", "repetition 6 of full@1#0")
    assert "the worker process died" in world.noise("--repeats", 6, code=1).stderr


def test_the_file_keeps_one_entry_per_cell_and_json_is_the_entry(world):
    world.fill("full")
    shown = json.loads(world.noise("--repeats", 2, "--json").stdout)
    assert shown == world.entry()
    world.noise("--repeats", 2, "--cell", "full@1#1")
    world.noise("--repeats", 3)
    path = world.results / noise.FILE
    assert {c: e["repetitions"] for c, e in json.loads(path.read_text())["cells"].items()} == {
        "full@1#0": 3,
        "full@1#1": 2,
    }
    assert (
        path.read_text()
        == json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True) + "\n"
    )
    assert str(world.folder) not in path.read_text()
    made = shown["provenance"]
    assert made["threads"] == 1
    assert {"commit", "packages", "processor", "device", "created"} <= set(made)


def test_repetitions_that_are_not_of_a_kind_are_told(world, monkeypatch):
    world.fill("full")
    made = world.plan()
    run = running.Run(made, world.store, world.results, workers=1)
    found = noise.Noise(run, made.cell("full@1#0"), 3)
    assert found.make(View()) is None
    folder = world.store.folder(found.stages[1])
    meta = json.loads((folder / "meta.json").read_text())
    meta["info"]["engine"]["sequences"] = 32
    (folder / "meta.json").write_text(json.dumps(meta))
    entry = found.entry()
    assert entry["mixed"] == {"sequences": [128, 32]}
    assert any("differ in sequences (128, 32)" in line for line in noise.notes(entry))
    frame = pd.read_parquet(folder / "samples.parquet")
    frame.assign(weights="other").to_parquet(folder / "samples.parquet")
    with pytest.raises(ValueError, match=r"had the weights \['abc.*', 'other'\]"):
        found.entry()
    frame[frame["item"] != "i03"].to_parquet(folder / "samples.parquet")
    with pytest.raises(ValueError, match="task chain_far: repetitions differ in their items"):
        found.entry()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_engine_repeats_what_a_run_measured(tmp_path, monkeypatch):
    """Greedy on a CPU: the first repetition has the run's own answers."""
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    made = {}
    for name, text in (("greedy", TOML), ("sampled", SAMPLED)):
        path = Path(f"{name}.toml")
        path.write_text(text.replace('engine = "hf"', 'engine = "auto"\nmax_tokens = 60'))
        experiment = plan.make(config.load(path), path)
        run = running.Run(experiment, store, tmp_path / name, workers=1, only="row=full")
        assert run.execute(View()).failed == {}
        found = noise.Noise(run, experiment.cell("full@1#0"), 3)
        assert found.make(View()) is None
        made[name] = found
    greedy = made["greedy"]
    samples = records.newest(records.read(tmp_path / "greedy"))["full@1#0"]["samples"]
    known = pd.read_parquet(tmp_path / "greedy" / samples)
    first, second = (
        pd.read_parquet(store.folder(stage) / "samples.parquet") for stage in greedy.stages[:2]
    )
    pd.testing.assert_frame_equal(first, known)
    assert list(second["item"]) == list(known["item"])
    entry = greedy.entry()
    assert (
        entry["tasks"]["chain_far"]["accuracies"][0]
        == known.loc[known["task"] == "chain_far", "correct"].mean()
    )
    assert entry["weights"] == known["weights"].iloc[0]
    sampled = made["sampled"].entry()
    assert sampled["tasks"]["chain_far"]["texts_changed"] > 10
    assert sampled["engine"]["device"] == entry["engine"]["device"]
