import json

import numpy as np
import pytest
import torch

from harness import influence
from harness.data.pool import Pool
from harness.influence import CurvatureOptions
from harness.influence import score_table as module

OPTIONS = CurvatureOptions(batch_size=4, layers="mlp")


@pytest.fixture
def parts(make_model, make_pool):
    model, pool, queries = make_model(), make_pool(30), make_pool(3, 1, "q")
    return model, influence.fit(model, pool, OPTIONS), pool, queries


def spied(monkeypatch, fail_after=None):
    """Sizes of the parts that are scored; the part after `fail_after` of them is interrupted."""
    seen = []
    real = module.directional_scores

    def spy(model, part, *args, **keywords):
        if fail_after is not None and len(seen) == fail_after:
            raise KeyboardInterrupt
        seen.append(len(part))
        return real(model, part, *args, **keywords)

    monkeypatch.setattr(module, "directional_scores", spy)
    return seen


def test_identity_is_the_dot_product_of_autograd_gradients(make_model, make_pool, autograd):
    model, pool, queries = make_model(), make_pool(6), make_pool(2, 1, "q")
    curvature = influence.fit(model, pool, kind="identity", layers="mlp")
    names = list(curvature.shapes)

    def flat(examples, position):
        actual = autograd(model, examples, position, names)
        return torch.cat([actual[name].flatten() for name in names]).double()

    wanted = np.array([[float(flat(pool, d) @ flat(queries, v)) for v in (0, 1)] for d in range(6)])
    table = influence.scores(model, curvature, pool, queries, aggregate=None)
    assert list(table.columns) == list(queries.ids)
    assert table.index.tolist() == list(pool.ids)
    np.testing.assert_allclose(table.to_numpy(), wanted, rtol=1e-3, atol=1e-5)
    for aggregate, expected in (("mean", wanted.mean(axis=1)), ("sum", wanted.sum(axis=1))):
        scores = influence.scores(model, curvature, pool, queries, aggregate=aggregate)
        np.testing.assert_allclose(scores["score"], expected, rtol=1e-3, atol=1e-5)


def test_training_on_the_highest_scores_raises_the_queries(make_model, make_pool):
    """The sign: a small step of gradient descent on the best and on the worst example."""
    model, pool, queries = make_model(), make_pool(20), make_pool(2, 1, "q")
    curvature = influence.fit(model, pool, kind="identity", layers="all")
    ordered = influence.scores(model, curvature, pool, queries)["score"].sort_values()
    assert ordered.iloc[0] < 0 < ordered.iloc[-1]

    def loss(examples):
        total = 0.0
        for tokens, labels in zip(examples.input_ids, examples.labels, strict=True):
            ids, targets = (torch.from_numpy(part.astype(np.int64)) for part in (tokens, labels))
            total = total + model(input_ids=ids[None], labels=targets[None]).loss
        return total

    before = loss(queries).item()
    for name, sign in ((ordered.index[-1], 1), (ordered.index[0], -1)):
        modules = [model.get_submodule(layer).weight for layer in curvature.shapes]
        grads = torch.autograd.grad(loss(pool.take_ids([name])), modules)
        with torch.no_grad():
            for weight, grad in zip(modules, grads, strict=True):
                weight -= 1e-3 * grad
            assert sign * (before - loss(queries).item()) > 0
            for weight, grad in zip(modules, grads, strict=True):
                weight += 1e-3 * grad


@pytest.mark.parametrize("method", ["forward", "ghost"])
def test_shards_change_no_bit(parts, tmp_path, method):
    whole = influence.scores(*parts, method=method)
    assert whole.attrs["shards"] == {"total": 1, "found": 0}
    cut = influence.scores(*parts, method=method, shards=tmp_path, shard_size=7)
    assert cut.attrs["shards"] == {"total": 4, "found": 0}  # 7 is rounded up to two batches of 4
    assert cut.to_numpy().tobytes() == whole.to_numpy().tobytes()


@pytest.mark.parametrize("aggregate", ["mean", None])
def test_an_interrupted_run_continues(parts, tmp_path, monkeypatch, aggregate):
    if aggregate is None:
        monkeypatch.setattr(module, "block_size", lambda curvature: 2)
    more = {"aggregate": aggregate, "shard_size": 8, "shards": tmp_path / "kept"}
    whole = influence.scores(*parts, **{**more, "shards": None})
    with monkeypatch.context() as patch:
        seen = spied(patch, fail_after=3)
        with pytest.raises(KeyboardInterrupt):
            influence.scores(*parts, **more)
        assert seen == [8, 8, 8]
    total = 4 if aggregate else 8
    steps = []

    def progress(iterable, description, total):
        steps.append((description, total))
        return iterable

    with monkeypatch.context() as patch:
        seen = spied(patch)
        again = influence.scores(*parts, **more, progress=progress)
        assert seen == ([6] if aggregate else [6, 8, 8, 8, 6])
    assert [entry for entry in steps if entry[0] == "scores"] == [("scores", len(seen))]
    assert again.attrs["shards"] == {"total": total, "found": 3}
    assert again.to_numpy().tobytes() == whole.to_numpy().tobytes()
    with monkeypatch.context() as patch:
        seen = spied(patch)
        monkeypatch.setattr(module, "query_gradients", None)  # not even directions are needed
        actual = influence.scores(*parts, **more)
        assert seen == []
    assert actual.to_numpy().tobytes() == whole.to_numpy().tobytes()


def test_shards_of_something_else_are_replaced(parts, make_pool, tmp_path):
    model, curvature, pool, _ = parts
    more = {"shard_size": 8, "shards": tmp_path}
    influence.scores(*parts, **more)
    others = make_pool(3, 9, "q")
    with pytest.warns(UserWarning, match=r"that differ in queries; starting anew"):
        actual = influence.scores(model, curvature, pool, others, **more)
    wanted = influence.scores(model, curvature, pool, others)
    assert actual.to_numpy().tobytes() == wanted.to_numpy().tobytes()
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 2)[3, 3] += 0.01
    with pytest.warns(UserWarning, match=r"that differ in weights; starting anew"):
        influence.scores(model, curvature, pool, others, **more)
    with pytest.warns(UserWarning, match=r"that differ in method; starting anew"):
        influence.scores(model, curvature, pool, others, method="forward", **more)
    other = influence.fit(model, pool.take(range(20)), OPTIONS)
    with pytest.warns(UserWarning, match=r"that differ in curvature; starting anew"):
        influence.scores(model, other, pool, others, method="forward", **more)


def test_a_folder_of_other_things_is_left_alone(parts, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds 'thesis.txt' and no key.json; expected an empty"):
        influence.scores(*parts, shards=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_one_process_at_a_time(parts, tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(ValueError, match="another process is writing scores"),
    ):
        influence.scores(*parts, shards=tmp_path)


def test_facts(parts):
    table = influence.scores(*parts)
    assert table.index.name == "id"
    facts = json.loads(json.dumps(table.attrs))
    assert facts["options"]["layers"] == "mlp"
    assert (facts["examples"], facts["queries"], facts["method"]) == (30, 3, "ghost")
    assert set(facts["seconds"]) == {"directions", "scores"}


def test_a_model_with_a_fused_kernel(make_model, make_pool, parts):
    eager, curvature, pool, queries = parts
    fused = make_model(kernel="sdpa")
    wanted = influence.scores(eager, curvature, pool, queries)["score"]
    actual = influence.scores(fused, curvature, pool, queries)
    assert actual.attrs["method"] == "ghost"
    np.testing.assert_allclose(actual["score"], wanted, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"attention kernel is 'sdpa'; expected 'eager'"):
        influence.scores(fused, curvature, pool, queries, method="forward")


def test_bad_requests_are_explained(parts, make_pool):
    model, curvature, pool, _ = parts
    for wrong in ({"aggregate": "max"}, {"shard_size": 0}, {"method": "magic"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
            influence.scores(*parts, **wrong)
    with pytest.raises(ValueError, match="query set is empty"):
        influence.scores(model, curvature, pool, Pool((), (), ()))
    with pytest.raises(ValueError, match="option 'speed' is unknown; expected one of kind, fisher"):
        influence.fit(model, pool, speed=1)
    with pytest.raises(ValueError, match="options and damping were given; expected one of both"):
        influence.fit(model, pool, OPTIONS, damping=0.2)
    with pytest.raises(FileNotFoundError, match=r"curvature\.json does not exist; expected"):
        influence.Curvature.load("nowhere")


def test_curvature_by_keywords_saved_and_loaded(parts, tmp_path):
    model, _, pool, queries = parts
    curvature = influence.fit(model, pool, kind="projected", damping=0.5, batch_size=8)
    assert curvature.options == CurvatureOptions("projected", damping=0.5, batch_size=8)
    curvature.save(str(tmp_path / "c"))
    again = influence.Curvature.load(str(tmp_path / "c"))
    before, after = (influence.scores(model, c, pool, queries) for c in (curvature, again))
    assert before.to_numpy().tobytes() == after.to_numpy().tobytes()
