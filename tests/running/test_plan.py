"""The plan: which cells there are, what they share, and what a change makes stale."""

import pytest

from harness.experiment import config
from harness.experiment.records import append
from harness.experiment.store import Store
from harness.running import plan
from harness.running.explain import explain
from harness.running.forecast import forecast
from harness.running.run import wanted_stages
from harness.running.schedule import missing_stages
from harness.selection import plugins

TOML = """
name = "micro"
discover = {discover}
[pool]
dataset = "testbed:chain"
size = 40
[model]
base = "testbed:tiny"
[train]
learning_rate = {rate}
budget = "steps"
steps = 2
[query]
dataset = "testbed:queries"
size = 10
[evaluate]
tasks = {tasks}
items = 5
engine = "hf"
[grid]
fractions = {fractions}
seeds = {seeds}
[[selector]]
name = "random"
[[selector]]
name = "length"
[[selector]]
name = "influence"
rows = [{{ strategy = "correct" }}, {{ strategy = "combined" }}]
"""


@pytest.fixture
def make(tmp_path):
    def make(
        rate="1e-3", seeds="[0, 1]", fractions="[0.5]", tasks='["chain_far"]', discover="false"
    ):
        path = tmp_path / "micro.toml"
        values = {"rate": rate, "seeds": seeds, "fractions": fractions, "tasks": tasks}
        path.write_text(TOML.format(discover=discover, **values))
        return plan.make(config.load(path), path)

    return make


def fill(store, made):
    """Mark every stage of a plan as stored."""
    for stage in missing(store, made):
        store.make(stage, lambda work: {})


def left(store, made):
    return sorted(stage.label for stage in missing(store, made))


def missing(store, made):
    return missing_stages(wanted_stages(made, made.cells), store).values()


def test_cells_by_hand(make):
    names = [cell.name for cell in make(seeds="[3]", fractions="[0.25, 0.5]").cells]
    assert names == [
        "random@0.25#3",
        "random@0.5#3",
        "length@0.25#3",
        "length@0.5#3",
        "influence/correct@0.25#3",
        "influence/correct@0.5#3",
        "influence/combined@0.25#3",
        "influence/combined@0.5#3",
        "base@0#0",
        "full@1#3",
        "oracle@0.25#3",
        "oracle@0.5#3",
        "anti-oracle@0.25#3",
        "anti-oracle@0.5#3",
    ]


def test_fractions_and_seeds_share_the_scores_of_a_deterministic_selector(make):
    made = make(fractions="[0.25, 0.5]")
    scores = {cell.subset.parents["scores"].key for cell in made.cells if cell.row.row == "length"}
    subsets = {cell.subset.key for cell in made.cells if cell.row.row == "length"}
    draws = {cell.subset.key for cell in made.cells if cell.row.row == "random"}
    assert (len(scores), len(subsets), len(draws)) == (1, 2, 4)


def test_the_reference_is_the_first_full_checkpoint(make):
    made = make()
    scores = made.cell("influence/correct@0.5#0").subset.parents["scores"]
    [influence] = [stage for stage in scores.parents.values() if stage.kind == "influence"]
    assert influence.parents["reference"].key == made.cell("full@1#0").checkpoint.key


def test_nothing_is_left_when_all_is_stored(make, tmp_path):
    store = Store(tmp_path / "store")
    fill(store, make())
    assert left(store, make()) == []


def test_another_learning_rate_remakes_what_was_trained_and_what_follows(make, tmp_path):
    store = Store(tmp_path / "store")
    fill(store, make())
    labels = left(store, make(rate="2e-3"))
    assert not [x for x in labels if x.startswith(("pool", "base", "items", "subset of random"))]
    assert "checkpoint of random@0.5#0" in labels
    # Influence looks at the reference checkpoint, so its selection depends on the recipe too.
    assert "scores of influence/correct" in labels
    assert "scores of length" not in labels
    assert "chain_far of base" not in labels


def test_another_seed_adds_only_its_cells(make, tmp_path):
    store = Store(tmp_path / "store")
    fill(store, make(seeds="[0]"))
    labels = left(store, make(seeds="[0, 1]"))
    assert labels
    assert all(label.endswith("#1") for label in labels), labels


def test_another_task_adds_only_evaluations(make, tmp_path):
    store = Store(tmp_path / "store")
    fill(store, make())
    labels = left(store, make(tasks='["chain_far", "chain_core"]'))
    assert {label.partition(" of ")[0] for label in labels} == {
        "chain_core",
        "items",
        "proof that the data sets are disjoint (main)",
    }


SELECTOR = '''"""Keep the shortest worked solutions."""

from dataclasses import dataclass

import numpy as np

from harness import Context, Pool, Scores, ScoreSelector


@dataclass(frozen=True)
class Short(ScoreSelector):
    """Scores an example by how few tokens its response has."""

    def score(self, pool: Pool, context: Context) -> Scores:
        return -np.array([float(n) for n in pool.response_lengths])
'''


def test_a_dropped_in_file_joins_and_touching_it_remakes_exactly_its_cells(
    make, tmp_path, monkeypatch
):
    store = Store(tmp_path / "store")
    fill(store, make(discover="true"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "short.py").write_text(SELECTOR)
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    joined = left(store, make(discover="true"))
    assert joined == sorted(
        ["scores of short", "subset of short@0.5"]
        + [f"checkpoint of short@0.5#{seed}" for seed in (0, 1)]
        + [f"chain_far of short@0.5#{seed}" for seed in (0, 1)]
        # Rows that other selectors bring because the plan discovers every shipped one, too,
        # were stored before.
    )
    assert len(SELECTOR.splitlines()) <= 17
    fill(store, make(discover="true"))
    (folder / "short.py").write_text(SELECTOR.replace("few tokens", "few tokens at all"))
    assert left(store, make(discover="true")) == joined


def test_explain_says_what_changed(make, tmp_path):
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    before = make()
    fill(store, before)
    from harness.running.cell_record import identity

    name = "length@0.5#1"
    cell = before.cell(name)
    provenance = {
        "created": "now",
        "commit": None,
        "dirty": None,
        "device": "cpu",
        "processor": "x",
        "engine": {"name": "hf", "version": "1"},
    }
    entry = {**identity(cell, before, "p"), "status": "done", "provenance": provenance}
    append(results, entry)
    assert explain(before, cell, store, results)["state"] == "done"
    after = make(rate="3e-3")
    story = explain(after, after.cell(name), store, results)
    assert story["state"] == "stale"
    assert any("train.learning_rate 0.001 -> 0.003" in line for line in story["lines"])
    other = after.cell("random@0.5#0")
    assert explain(after, other, store, results)["state"] == "missing"


def test_unknown_names_are_refused_with_what_exists(make, tmp_path):
    with pytest.raises(ValueError, match="cell 'x' is not part of micro; expected for example"):
        make().cell("x")
    with pytest.raises(ValueError, match="evaluate.tasks holds 'gsm9k'; expected one of"):
        make(tasks='["gsm9k"]')


def test_the_forecast_tells_what_influence_costs(make, tmp_path):
    (note,) = (n for n in forecast(make(), Store(tmp_path))["notes"] if n.startswith("Influence"))
    assert "(influence/correct, influence/combined; curvature ekfac)" in note
    assert "and one for ranks and scores together;" in note
    assert "Measured here" not in note
