"""Influence from an experiment file to records, on a tiny random model with made-up answers."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.data.pool import Pool
from harness.data.queries import Answers
from harness.experiment import config
from harness.experiment.stage import with_ancestors
from harness.experiment.store import Store
from harness.influence import Curvature, CurvatureOptions, fit
from harness.influence.costs import fit_operations
from harness.running import cell_record, facts, plan
from harness.running.recipes import CurvatureRecipe, FeaturesRecipe, InfluenceRecipe
from harness.running.run import protocol_of
from harness.running.workspace import build as build_stage
from harness.running.workspace import load_model
from harness.selection import toy
from harness.selection.subset import read_scores
from tests.pretend import write_toy_files

TOML = """
name = "flips"
[pool]
dataset = "pool.jsonl"
[model]
base = "{base}"
[train]
learning_rate = 3e-3
epochs = 1.0
batch_size = 16
max_tokens = 128
[query]
dataset = "queries.jsonl"
{query}
[evaluate]
tasks = ["mine"]
engine = "hf"
[[task]]
name = "mine"
data = "items.jsonl"
[grid]
fractions = [0.25, 0.5]
seeds = [3]
[[selector]]
name = "length"
[[selector]]
name = "influence"
rows = [
  {{ strategy = "correct" }}, {{ strategy = "incorrect" }}, {{ strategy = "combined" }},
  {{ name = "few", strategy = "correct", max_queries = 2, replicates = 50 }},
]
[[selector]]
name = "self_influence"
[[selector]]
name = "random"
rows = [{{ name = "matched", match = "length", of = "influence/combined" }}]
"""
SEVERAL = "decodes = 3\ntemperature = 0.7"
RIGHT, WRONG = np.array([7, 8, 1], np.int32), np.array([9, 1], np.int32)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flips")
    write_toy_files(folder)

    def make(query=""):
        path = folder / "flips.toml"
        path.write_text(TOML.format(base=folder / "base", query=query))
        return plan.make(config.load(path), path)

    return make


def answered(store, stage, right):
    """Answers as an engine would leave them, with the given correctness [queries, decodes]."""
    right = np.asarray(right, dtype=bool)
    tokens = tuple(tuple(RIGHT if ok else WRONG for ok in row) for row in right)
    texts = tuple(tuple("x" for _ in row) for row in right)
    ids = [f"q{v}" for v in range(len(right))]

    def build(work):
        Answers(texts, tokens, right).save(work, ids)
        return {}

    store.make(stage, build)


def build(made, store, row, fraction=0.5, before=None, after=None):
    """The stored subset of a row, with given answers."""
    for name, right in (("before", before), ("after", after)):
        if right is not None:
            answered(store, made.queries["main"][name], right)
    cell = made.cell(f"{row}@{fraction:g}#3")
    for stage in cell.subset.ancestry():
        if stage.kind != "model":
            build_stage(stage, store)
    return cell.subset


def column(*values):
    return np.array(values)[:, None]


BEFORE, AFTER = column(0, 0, 0, 1, 1, 0, 1, 0), column(1, 1, 1, 0, 0, 0, 1, 0)


@pytest.fixture(scope="module")
def filled(make, tmp_path_factory):
    """Every selector's subset at both fractions."""
    store, made = Store(tmp_path_factory.mktemp("store")), make()
    for row in ("influence/correct", "influence/incorrect", "influence/combined", "influence/few"):
        for fraction in (0.25, 0.5):
            build(made, store, row, fraction, BEFORE, AFTER)
    build(made, store, "self_influence")
    build(made, store, "random/matched")
    return store, made


def kinds(store, kind):
    return sorted(store.root.glob(f"{kind}/*/meta.json"))


def test_one_curvature_serves_strategies_fractions_and_self_influence(filled):
    store, made = filled
    [meta] = kinds(store, "curvature")
    assert len(kinds(store, "influence")) == 2  # one per number of rank queries
    stored = Curvature.load(meta.parent)
    cell = made.cell("self_influence@0.5#3")
    reference = cell.subset.parents["scores"].parents["reference"]
    model = load_model(store.folder(reference), "cpu")
    pool_stage = made.pools["main"]
    pool = Pool.load(store.folder(pool_stage))
    own = fit(model, pool, CurvatureOptions())
    for name, tensor in own.tensors().items():
        np.testing.assert_array_equal(stored.tensors()[name].numpy(), tensor.numpy())
    known = json.loads(meta.read_text())["info"]["operations"]
    assert known == fit_operations(model, pool, CurvatureOptions())


def test_costs_are_counted_once_for_each_part(filled):
    store, made = filled
    curvature = json.loads(kinds(store, "curvature")[0].read_text())
    cost = cell_record.selection_cost(made.cell("influence/combined@0.5#3").subset, store)
    parts = cost["select_parts"]
    assert set(parts) == {"choose", "reference", "answers", "curvature", "influence"}
    assert parts["curvature"] == curvature["seconds"]
    single = cell_record.selection_cost(made.cell("self_influence@0.5#3").subset, store)
    assert set(single["select_parts"]) == {"choose", "reference", "curvature"}
    assert cost["select_flops"] > single["select_flops"] > 0
    parameters = toy.models()[0].num_parameters()
    influence = [json.loads(path.read_text())["info"] for path in kinds(store, "influence")]
    [combined] = [i for i in influence if len(i["rank_queries"]["C"]) == 3]
    reference = made.cell("full@1#3").checkpoint
    trained = 6 * store.load(reference).info["train"]["tokens"]
    operations = curvature["info"]["operations"] + combined["operations"] + trained
    assert cost["select_flops"] == parameters * operations  # the given answers took none


def test_a_row_that_looks_at_another_costs_what_that_one_costs(filled):
    store, made = filled
    cells = ("random/matched@0.5#3", "influence/combined@0.5#3")
    own, seen = (cell_record.selection_cost(made.cell(name).subset, store) for name in cells)
    assert own["select_flops"] == seen["select_flops"] > 0  # drawing costs no operation of its own
    assert own["select_seconds"] > seen["select_seconds"]
    for part in ("reference", "answers", "curvature", "influence"):
        assert own["select_parts"][part] == seen["select_parts"][part]


def test_facts_of_a_record(filled):
    store, made = filled
    subset = made.cell("influence/few@0.25#3").subset
    facts = cell_record.selection_facts(subset, store)
    assert (facts["n_C"], facts["n_I"]) == (3, 2)
    stability = facts["stability"]
    assert (stability["replicates"], stability["queries"]) == (50, {"C": 2})
    assert 0 <= stability["low"] <= stability["jaccard"] <= stability["high"] <= 1
    folder = store.folder(subset.parents["scores"])
    table = pd.read_parquet(folder / "stability.parquet").set_index("kept")
    assert stability["jaccard"] == table["jaccard"][12]
    assert {"s_C", "place_low", "place_high"} <= set(read_scores(folder))
    assert cell_record.selection_facts(build(made, store, "length"), store) == {}


@pytest.mark.parametrize(
    ("row", "before", "after", "says"),
    [
        ("influence/correct", column(*[1] * 8), AFTER, r"C is empty.*use strategy = 'incorrect'"),
        ("influence/incorrect", BEFORE, column(*[1] * 8), r"I is empty.*use strategy = 'correct'"),
        ("influence/combined", BEFORE, column(*[1] * 8), r"I is empty.*ask more queries, train"),
        ("influence/combined", BEFORE, BEFORE, r"\(C and I are empty\); .* ask more queries"),
    ],
)
def test_an_empty_side_stops_with_a_clear_message(make, tmp_path, row, before, after, says):
    with pytest.raises(ValueError, match=says):
        build(make(), Store(tmp_path), row, 0.5, before, after)


def test_one_side_is_enough_for_a_strategy_that_asks_no_more(make, tmp_path):
    store, made = Store(tmp_path), make()
    subset = build(made, store, "influence/correct", 0.5, BEFORE, column(*[1] * 8))
    assert cell_record.selection_facts(subset, store)["n_C"] == 5


def test_several_decodes_go_by_majority(make, tmp_path):
    store, made = Store(tmp_path), make(SEVERAL)
    stage = made.queries["main"]["before"]
    assert (stage.recipe.decodes, stage.recipe.temperature) == (3, 0.7)
    before = [[0, 0, 1], [0, 0, 0], [1, 1, 0], *[[0, 0, 0]] * 5]
    after = [[1, 0, 1], [0, 0, 1], [0, 0, 1], *[[0, 0, 0]] * 5]
    subset = build(made, store, "influence/combined", 0.5, before, after)
    [influence] = [s for s in subset.ancestry() if s.kind == "influence"]
    assert influence.recipe.rule == "majority"
    main = facts.facts(made, store)["arms"]["main"]
    assert (main["n_C"], main["n_I"], main["query_decodes"]) == (1, 1, 3)
    [meta] = kinds(store, "influence")
    info = json.loads(meta.read_text())["info"]
    queryset = made.queries["main"]["queryset"]
    ids = Pool.load(store.folder(queryset)).ids
    assert info["rank_queries"] == {"C": [ids[0]], "I": [ids[2]]}


def keys(made):
    ends = [stage for cell in made.cells for stage in cell.samples.values()]
    return {stage.label: stage.key for stage in with_ancestors(ends).values()}


def test_decoding_changes_answers_and_what_rests_on_them_alone(make):
    plain, several = make(), make(SEVERAL)
    before, now = keys(plain), keys(several)
    changed = {label for label in before if before[label] != now[label]}
    assert {"query answers before", "scores of influence/correct"} <= changed
    assert not [label for label in changed if "length" in label or "self_influence" in label]
    assert "query set" not in changed
    anyone = keys(make(SEVERAL + '\nrule = "any"'))
    assert anyone["query answers before"] == now["query answers before"]
    assert anyone["scores of influence/correct"] != now["scores of influence/correct"]


def test_one_greedy_answer_leaves_no_trace_in_the_protocol(make):
    assert set(protocol_of(make())["query"]) == set(protocol_of(make("decodes = 1"))["query"])
    assert "decodes" not in protocol_of(make())["query"]
    assert protocol_of(make(SEVERAL))["query"]["rule"] == "majority"


@pytest.mark.parametrize(
    ("kind", "stale"),
    [
        (InfluenceRecipe, "influence/correct"),
        (CurvatureRecipe, "self_influence"),
        (FeaturesRecipe, None),
    ],
)
def test_a_new_version_makes_exactly_its_scores_stale(make, monkeypatch, kind, stale):
    before = keys(make())
    monkeypatch.setattr(kind, "version", kind.version + 1)
    after = keys(make())
    changed = {label for label, key in after.items() if before[label] != key}
    assert (f"scores of {stale}" in changed) is (stale is not None)
    assert not [label for label in changed if "length" in label]
    assert ("scores of self_influence" in changed) is (kind is CurvatureRecipe)
    assert ("scores of influence/few" in changed) is (kind is not FeaturesRecipe)
