"""The exact inverse against an iterative solve of the same system with gradients by autograd."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, cg

from harness.data.pool import IGNORED, Pool
from harness.influence import CurvatureOptions, fit
from harness.influence.batches import draw_seed
from harness.studies.influence.builders import exact_scores, resampled

# transformers and its dependencies; these tests are about numbers.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model(make_qwen):
    return make_qwen(vocab_size=12, hidden_size=8, intermediate_size=12).double()


def random_pool(n, seed):
    rng = np.random.default_rng(seed)
    tokens = tuple(rng.integers(0, 12, size=6).astype(np.int32) for _ in range(n))
    labels = tuple(t.copy() for t in tokens)
    for label in labels:
        label[:2] = IGNORED
    return Pool(tuple(f"d{seed}-{i}" for i in range(n)), tokens, labels)


def gradients(model, pool, names):
    """Example gradients of the mean loss over response tokens, all layers side by side, [n, P]."""
    parameters = dict(model.named_parameters())
    rows = []
    for tokens, labels in zip(pool.input_ids, pool.labels, strict=True):
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :-1]
        targets = torch.from_numpy(labels[1:].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
        parts = []
        for name in names:
            inner = [parameters[f"{name}.weight"]]
            if f"{name}.bias" in parameters:
                inner.append(parameters[f"{name}.bias"])
            scores = torch.autograd.grad(loss, inner, retain_graph=True)
            parts.append(torch.cat([f if f.ndim == 2 else f[:, None] for f in scores], 1).flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows).numpy()


def test_the_inverse_is_that_of_the_damped_fisher_matrix(model):
    pool, queries = random_pool(5, 1), random_pool(2, 2)
    options = CurvatureOptions(damping=0.3, seed=4)
    scores = exact_scores(model, pool, queries, options, draws=3)
    curvature = fit(model, pool, options)
    names = list(curvature.shapes)
    damping = np.concatenate(
        [
            np.full(out * width, 0.3 * float(curvature.parts[name].eigenvalues.mean()))
            for name, (out, width) in curvature.shapes.items()
        ]
    )
    drawn = [gradients(model, resampled(model, pool, draw_seed(4, k)), names) for k in range(3)]
    sampled = np.concatenate(drawn)
    size = len(damping)
    system = LinearOperator(
        (size, size),
        matvec=lambda x: sampled.T @ (sampled @ x) / len(sampled) + damping * x,
        dtype=np.float64,
    )
    scale = LinearOperator((size, size), matvec=lambda x: x / damping, dtype=np.float64)
    own, asked = gradients(model, pool, names), gradients(model, queries, names)
    for column, query in enumerate(asked):
        solved, failed = cg(system, query, rtol=1e-12, M=scale, maxiter=500)
        assert failed == 0
        # Training on d moves the weights along -g_d, and log-probability is minus the loss.
        np.testing.assert_allclose(scores[:, column], own @ solved, rtol=1e-6)


def test_labels_are_drawn_where_there_is_loss_and_depend_on_the_seed(model):
    pool = random_pool(4, 3)
    first, second = resampled(model, pool, 0), resampled(model, pool, 1)
    for before, one in zip(pool.labels, first.labels, strict=True):
        np.testing.assert_array_equal(before == IGNORED, one == IGNORED)
    assert any((a != b).any() for a, b in zip(first.labels, second.labels, strict=True))
    assert first.fingerprint == resampled(model, pool, 0).fingerprint


def test_damping_of_zero_is_refused(model):
    with pytest.raises(ValueError, match="more than 0"):
        exact_scores(model, random_pool(2, 1), random_pool(1, 2), CurvatureOptions(damping=0.0))
