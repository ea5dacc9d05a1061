"""Shapes of the measured models, what is refused, and one engine from end to end on a toy."""

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.experiment.store import Store
from harness.studies.speed import __main__ as command
from harness.studies.speed.__main__ import main
from harness.studies.speed.workload import WORKLOADS, Shape, Workload, load, load_model, prepare

GPU = {name: workload for name, workload in WORKLOADS.items() if workload.device == "cuda"}

TOY = Workload(
    "toy",
    pool=24,
    queries=4,
    max_tokens=16,
    batch_size=5,
    shape=Shape(32, 48, 2, heads=4, key_value_heads=2, vocabulary=64),
    random=True,
)


@pytest.fixture
def prepared(tmp_path):
    return prepare(TOY, Store(tmp_path / "store"))


def body(shape):
    """Weights and biases of all tracked layers."""
    narrow = shape.hidden // shape.heads * shape.key_value_heads
    attention = 2 * shape.hidden**2 + shape.hidden + 2 * narrow * (shape.hidden + 1)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def parameters(shape, vocabulary):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    norms = (2 * shape.layers + 1) * shape.hidden
    total = sum(p.numel() for p in model.parameters())
    assert total == body(shape) + norms + vocabulary * shape.hidden
    return total


def test_the_small_model_has_ten_million_parameters_a_third_in_its_body():
    shape = WORKLOADS["qwen2-10m"].shape
    total = parameters(shape, 50304)
    assert 9.5e6 < total < 10.5e6
    assert body(shape) / total > 0.33


def test_the_large_models_have_the_size_of_their_name():
    sizes = {name: parameters(w.shape, w.shape.vocabulary) for name, w in GPU.items()}
    assert set(sizes) == {f"qwen2.5-{s}-{k}" for s in ("0.5b", "1.5b") for k in ("1k", "8k")}
    assert all(0.45e9 < size < 0.55e9 for name, size in sizes.items() if "0.5b" in name)
    assert all(1.5e9 < size < 1.6e9 for name, size in sizes.items() if "1.5b" in name)


def test_gpu_workloads_hold_as_many_tokens_whatever_the_length():
    assert {w.pool * w.max_tokens for w in GPU.values()} == {256 * 1024}


def test_a_prepared_workload_is_made_once(prepared, tmp_path):
    assert prepare(TOY, Store(tmp_path / "store")) == prepared
    pool, queries = load(prepared)
    assert (len(pool), len(queries)) == (24, 4)
    assert {len(tokens) for tokens in pool.input_ids} == {16}
    assert set(pool.response_lengths) == {12}


@pytest.mark.parametrize("value", [None, "/nowhere"])
def test_a_missing_folder_is_named(monkeypatch, tmp_path, capsys, value):
    if value is None:
        monkeypatch.delenv("COTSIEVE_REAL_DATA", raising=False)
    else:
        monkeypatch.setenv("COTSIEVE_REAL_DATA", value)
    store = str(tmp_path / "store")
    assert main(["influence", "--workload", "qwen2-10m", "--store", store]) == 2
    assert f"COTSIEVE_REAL_DATA is {value!r}; expected a folder" in capsys.readouterr().err


def test_unknown_workloads_are_named(capsys):
    assert main(["influence", "--workload", "nothing"]) == 2
    assert "'nothing' does not exist; expected one of testbed" in capsys.readouterr().err


def write_job(folder, prepared, **settings):
    job = {"engine": "ours", "workload": "toy", "source": str(prepared), "threads": 1}
    (folder / "job.json").write_text(json.dumps(job | settings))


def exact(prepared, folder, monkeypatch):
    """Positions, exact scores and our scores there."""
    from harness.studies.speed import engines

    monkeypatch.setitem(engines.WORKLOADS, "toy", TOY)
    write_job(folder, prepared, exact=True)
    engines.main(folder)
    stored = np.load(folder / "exact.npz")
    scores = np.load(folder / "scores.npy")[stored["positions"]]
    return stored["positions"].tolist(), stored["scores"], scores


def test_our_scores_are_exact_under_our_own_curvature(prepared, tmp_path, monkeypatch):
    positions, expected, scores = exact(prepared, tmp_path, monkeypatch)
    assert positions == list(range(TOY.pool))
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_of_a_large_model_with_long_examples_a_few_are_scored(prepared, tmp_path, monkeypatch):
    from harness.studies.speed import engines

    monkeypatch.setattr(engines, "LARGE", 1)
    monkeypatch.setattr(engines, "LARGE_TOKENS", 6 * TOY.max_tokens)
    monkeypatch.setattr(engines, "LONG", 1)
    positions, expected, scores = exact(prepared, tmp_path, monkeypatch)
    assert positions == [0, 5, 9, 14, 18, 23]
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_seconds_and_memory_of_an_engine_and_of_the_perplexity_pass(
    prepared, tmp_path, monkeypatch
):
    from harness.studies.speed import engines

    monkeypatch.setitem(engines.WORKLOADS, "toy", TOY)
    results = {}
    for name in ("ours", "perplexity"):
        folder = tmp_path / name
        folder.mkdir()
        write_job(folder, prepared, engine=name, examples=30)
        engines.main(folder)
        results[name] = json.loads((folder / "result.json").read_text())
    ours = results["ours"]
    assert ours["total_s"] == ours["fit_s"] + ours["score_s"] > 0
    assert 50 < ours["peak_mb"] < 50_000
    assert {"pass_one_s", "pass_two_s", "fit_cpu_s", "score_cpu_s"} <= set(ours)
    assert len(np.load(tmp_path / "ours/scores.npy")) == 30
    assert set(results["perplexity"]) == {"perplexity_pass_s"}


def test_the_first_run_sees_one_layer_of_the_same_width(prepared):
    model = load_model(prepared / "warm", TOY)
    assert model.config.num_hidden_layers == 1
    assert model.config.hidden_size == TOY.shape.hidden
    assert [len(part) for part in load(prepared / "warm")] == [8, 2]


def test_gpu_workloads_are_refused_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(command, "gpu_name", lambda: None)
    assert main(["influence", "--workload", "qwen2.5-0.5b-8k"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_a_pool_is_repeated_under_new_ids(prepared):
    from harness.studies.speed.engines import repeated

    pool, _ = load(prepared)
    more = repeated(pool, 50)
    assert len(set(more.ids)) == len(more) == 50
    assert more.input_ids[24] is pool.input_ids[0]
    assert len(repeated(pool, 3)) == 3


def test_a_workload_is_cut_apart_by_its_own_settings(tmp_path):
    store = Store(tmp_path / "store")
    assert prepare(TOY, store) != prepare(replace(TOY, batch_size=6), store)


def test_influence_on_three_engines_is_what_is_measured_by_default():
    for arguments in ([], ["influence"]):
        options = command.parser().parse_args(arguments)
        assert (options.what, options.repeats, options.threads) == ("influence", 3, 2)
    assert command.ENGINES == ("ours", "kronfluence", "bergson")
