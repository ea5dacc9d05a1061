"""Features against plain transformers, one unpadded example at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.pool import Pool
from harness.selection.features import FeatureTable, compute_features

WEIGHTINGS = ("weighted", "mean", "last")


@pytest.fixture(scope="module")
def model(make_qwen: Any) -> Any:
    return make_qwen(seed=1, vocab_size=40, num_key_value_heads=1)


@pytest.fixture
def pool() -> Pool:
    """Seven examples of different lengths and prompts; one response has a hole of no loss."""
    rng = np.random.default_rng(2)
    lengths, prompts = [5, 12, 7, 3, 12, 9, 6], [2, 4, 1, 2, 9, 3, 0]
    tokens = [rng.integers(2, 40, n).astype(np.int32) for n in lengths]
    labels = [t.copy() for t in tokens]
    for label, prompt in zip(labels, prompts, strict=True):
        label[:prompt] = -100
    labels[1][6] = -100
    return Pool(tuple("abcdefg"), tuple(tokens), tuple(labels))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_losses_equal_plain_transformers(model: Any, pool: Pool, batch_size: int) -> None:
    losses = compute_features(model, pool, batch_size=batch_size).losses
    assert [len(row) for row in losses] == [3, 7, 6, 1, 3, 6, 5]
    for i, row in enumerate(losses):
        tokens = torch.tensor(pool.input_ids[i].astype(np.int64))
        with torch.no_grad():
            log_p = model(tokens[None]).logits[0].log_softmax(-1)
        expected = [
            -float(log_p[t - 1, tokens[t]]) for t in range(1, len(tokens)) if pool.labels[i][t] >= 0
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
        assert row.dtype == np.float32


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_states_equal_their_definition(model: Any, pool: Pool, batch_size: int) -> None:
    features = compute_features(model, pool, batch_size=batch_size)
    found = {name: features.states(name) for name in WEIGHTINGS}  # type: ignore[arg-type]
    for i, tokens in enumerate(pool.input_ids):
        with torch.no_grad():
            output = model(torch.tensor(tokens[None].astype(np.int64)), output_hidden_states=True)
        h = output.hidden_states[-1][0].numpy()
        expected = {
            "weighted": np.average(h, axis=0, weights=np.arange(1, len(h) + 1)),
            "mean": h.mean(axis=0),
            "last": h[-1],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-4, atol=1e-5)


def test_one_forward_pass_serves_everything(model: Any, pool: Pool, tmp_path: Path) -> None:
    features = compute_features(model, pool)
    assert not model.base_model._forward_hooks
    features.save(tmp_path)
    again = FeatureTable.load(tmp_path)
    assert [row.tolist() for row in again.losses] == [row.tolist() for row in features.losses]
    for name in WEIGHTINGS:
        np.testing.assert_array_equal(again.states(name), features.states(name))  # type: ignore[arg-type]


def test_no_example_has_no_features(model: Any, pool: Pool, tmp_path: Path) -> None:
    compute_features(model, pool.take([])).save(tmp_path)
    assert FeatureTable.load(tmp_path).losses == ()


def test_refusals(model: Any, pool: Pool) -> None:
    with pytest.raises(ValueError, match="weighting is 'first'"):
        compute_features(model, pool).states("first")  # type: ignore[arg-type]
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            compute_features(model, pool)
    finally:
        model.eval()
