"""Rows along a warm-up run, from an experiment file to chosen ids, on a tiny random model."""

import numpy as np
import pytest

from harness.experiment import config
from harness.experiment.stage import with_ancestors
from harness.experiment.store import Store
from harness.running import cell_record, forecast, plan
from harness.running.recipes import TrajectoryRecipe
from harness.running.workspace import build as build_stage
from harness.running.workspace import load_model
from harness.selection import toy
from harness.selection.subset import read_scores, read_subset
from harness.training import trajectory
from tests.pretend import write_toy_files

TOML = """
name = "along"
[pool]
dataset = "pool.jsonl"
[model]
base = "{base}"
[train]
learning_rate = 3e-3
epochs = 1.0
batch_size = 8
max_tokens = 128
[query]
dataset = "queries.jsonl"
[evaluate]
tasks = ["mine"]
engine = "hf"
[[task]]
name = "mine"
data = "items.jsonl"
[grid]
fractions = [0.25, 0.5]
seeds = [3, 4]
[[selector]]
name = "length"
[[selector]]
name = "tracin"
rows = [{{}}, {{ loss = "sum" }}, {{ checkpoints = 2 }}]
[[selector]]
name = "less"
rows = [{{ minimum = 8, epochs = 2.0 }}]
[[selector]]
name = "gradcos"
[[selector]]
name = "self_influence"
"""
LESS = "less/minimum=8-epochs=2.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("along")
    write_toy_files(folder)
    path = folder / "along.toml"
    path.write_text(TOML.format(base=folder / "base"))
    return plan.make(config.load(path), path)


@pytest.fixture(scope="module")
def store(made, tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def build(made, store, row):
    """The stored subset of a row at half the pool."""
    subset = made.cell(f"{row}@0.5#3").subset
    for stage in subset.ancestry():
        if stage.kind != "model":
            build_stage(stage, store)
    return subset


def runs(made):
    """The training runs that rows look along."""
    keys = {}
    for cell in made.cells:
        if cell.subset is not None and "scores" in cell.subset.parents:
            stage = parent(cell.subset.parents["scores"], "trajectory")
            keys.setdefault(cell.row.row, set()).add(stage and stage.key)
    return keys


def parent(stage, kind):
    """The parent of a kind, or None."""
    return next((p for p in stage.parents.values() if p.kind == kind), None)


def test_rows_that_look_along_the_same_run_share_it(made):
    keys = runs(made)
    assert all(len(found) == 1 for found in keys.values())  # over fractions and seeds
    assert keys["tracin"] == keys["tracin/sum"]
    assert len(set.union(keys["tracin"], keys["tracin/checkpoints=2"], keys[LESS])) == 3
    assert keys["gradcos"] == keys["self_influence"] == keys["length"] == {None}


def test_the_forecast_shows_runs_and_their_disk(made, tmp_path):
    found = forecast.forecast(made, Store(tmp_path))
    assert found["jobs"]["trajectory"] == 3
    needs = {row["row"]: row["needs"] for row in found["rows"]}
    assert needs["tracin"] == needs[LESS] == "trajectory, queryset"
    assert needs["gradcos"] == "checkpoint, queryset"
    # 4 + 2 + 4 checkpoints on the way, the last 4 with moments: three copies of the model each.
    trained = found["jobs"]["checkpoint"]
    parameters = toy.models()[0].num_parameters()
    disk = (trained + 4 + 2 + 3 * 4) * 4 * parameters / 2**30
    [note] = [note for note in found["notes"] if "of disk for" in note]
    assert f"{disk:.2g} GiB of disk for {trained + 10} checkpoints" in note


@pytest.mark.parametrize("row", ["tracin", LESS, "gradcos", "self_influence"])
def test_from_the_file_to_the_chosen_ids(made, store, row):
    subset = build(made, store, row)
    chosen = read_subset(store.folder(subset))
    scores = subset.parents["scores"]
    columns = read_scores(store.folder(scores))
    order = np.argsort(-np.asarray(columns["score"]), kind="stable")[:24]
    assert set(chosen) == {columns["id"][p] for p in order}
    cost = cell_record.selection_cost(subset, store)
    training = {"gradcos": "reference", "self_influence": "reference"}.get(row, "trajectory")
    fitted = {"curvature"} if row == "self_influence" else set()
    assert set(cost["select_parts"]) == {"choose", training} | fitted
    run_stage = parent(scores, "checkpoint" if training == "reference" else training)
    run = store.load(run_stage)
    parameters = toy.models()[0].num_parameters()
    scoring = store.load(scores).info["operations"]
    assert scoring > 0
    if fitted:
        scoring += store.load(parent(scores, "curvature")).info["operations"]
    expected = parameters * (6 * run.info["train"]["tokens"] + scoring)
    assert cost["select_flops"] == pytest.approx(expected)
    if training == "reference":
        spent = cell_record.training_flops(run_stage, store)
        assert spent == 6 * parameters * run.info["train"]["tokens"]


def test_the_stored_run_is_the_one_that_was_asked_for(made, store):
    for row, steps in (("tracin", [2, 3, 5, 6]), (LESS, [1, 2])):
        stage = parent(build(made, store, row).parents["scores"], "trajectory")
        base = made.base.path
        folder = store.folder(stage)
        found = trajectory.load_trajectory(folder, lambda base=base: load_model(base, "cpu"))
        assert [checkpoint.step for checkpoint in found] == steps
        assert all(0 < checkpoint.rate <= 3e-3 for checkpoint in found)


def test_a_new_version_of_runs_remakes_what_follows(made, monkeypatch):
    def keys():
        again = plan.make(made.experiment, made.file)
        ends = [stage for cell in again.cells for stage in cell.samples.values()]
        return {stage.label: stage.key for stage in with_ancestors(ends).values()}

    before = keys()
    monkeypatch.setattr(TrajectoryRecipe, "version", -1)
    changed = {label for label, key in keys().items() if before[label] != key}
    assert "scores of tracin" in changed
    assert not [label for label in changed if "gradcos" in label or "length" in label]
