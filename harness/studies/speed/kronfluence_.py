"""EK-FAC influence by kronfluence, on this project's pools and with this project's definition.

Made equal: the tracked layers (no head), the loss of an example (mean over its response tokens),
labels drawn from the model for the fit, damping as a multiple of the mean eigenvalue, the sign
(higher: training on the example raises the queries' log-probability), and batches of similar
length, longest first.

One thing is fixed here. The covariances of kronfluence 1.0.1 include the output gradients at masked
positions: with masked prompts, the output-gradient covariance would count prompt positions that the
input covariance leaves out.

A 16-bit model gets kronfluence's own settings for it: its low-precision preset "except for Lambda
computations", and "except for preconditioning computations".

Padding is on the right, where causal attention never looks. The model therefore gets no attention
mask, so that torch can take its faster causal kernel.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.data.pool import IGNORED, Pool, collate
from harness.influence.batches import device_of
from harness.influence.layers import tracked_layers

Batch = dict[str, Tensor]
Scores = npt.NDArray[np.float64]
FACTORS, SCORES = "ekfac", "scores"


def per_query_scores(
    model: nn.Module, pool: Pool, queries: Pool, *, damping: float = 0.1, batch_size: int = 32
) -> Scores:
    """Influence of every example on every query, [n, q], higher = the query gains.

    The same numbers as `harness.influence.per_query_scores` with EK-FAC, up to the sampled labels
    and the examples that eigenvectors are estimated from. All linear layers of attention and MLP;
    `model` is left unchanged.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = Kronfluence(copy.deepcopy(model), Path(folder), pool, queries, batch_size, damping)
        engine.fit()
        return engine.pairwise_scores()


class Kronfluence:
    """One analysis of `model`, which it wraps for good; files go to `folder`.

    `fisher` and `loss` (of the pool) as in `CurvatureOptions`.
    """

    loading = 0.0

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        pool: Pool,
        queries: Pool,
        batch_size: int,
        damping: float,
        fisher: str = "true",
        loss: str = "mean",
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.dataset import DataLoaderKwargs

        self._pool, self._queries = _Examples(pool), _Examples(queries)
        self._batch_size, self._damping, self._fisher = batch_size, damping, fisher
        device, dtype = device_of(model), next(model.parameters()).dtype
        names = [layer.name for layer in tracked_layers(model)]
        task = _task(names, torch.Generator(device).manual_seed(0), loss)
        self._analyzer = Analyzer(
            analysis_name="bench",
            model=prepare_model(model, task),
            task=task,
            cpu=device.type == "cpu",
            output_dir=str(folder),
            disable_tqdm=True,
            log_level=logging.ERROR,
        )
        self._half = dtype if dtype in (torch.bfloat16, torch.float16) else None
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_collate))

    def fit(self) -> None:
        """Covariances, eigenvectors and corrected eigenvalues, kept in the folder."""
        from kronfluence.utils.common import factor_arguments as presets

        arguments = presets.default_factor_arguments(strategy="ekfac")
        if self._half is not None:
            arguments = presets.smart_low_precision_factor_arguments("ekfac", self._half)
        arguments.use_empirical_fisher = self._fisher == "empirical"
        with _masked_gradients():
            self._analyzer.fit_all_factors(
                factors_name=FACTORS,
                dataset=self._pool,
                per_device_batch_size=self._batch_size,
                factor_args=arguments,
                overwrite_output_dir=True,
            )

    def scores(self) -> Scores:
        """Influence of every example on the mean query gradient, [n]."""
        scores = np.empty(len(self._pool))
        summed = self._pairwise(aggregate=True)[0]
        scores[self._pool.order] = summed / len(self._queries)
        return scores

    def pairwise_scores(self) -> Scores:
        """Influence of every example on every query, [n, q]."""
        scores = np.empty((len(self._pool), len(self._queries)))
        scores[np.ix_(self._pool.order, self._queries.order)] = self._pairwise(aggregate=False).T
        return scores

    def factors(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Layer -> Q_A, Q_S as columns and Lambda [out, in (+ 1)], in double precision."""
        factors = self._analyzer.load_all_factors(factors_name=FACTORS)
        counts = factors["num_lambda_processed"]
        return {
            name: (
                factors["activation_eigenvectors"][name].double(),
                factors["gradient_eigenvectors"][name].double(),
                total.double() / counts[name].double(),
            )
            for name, total in factors["lambda_matrix"].items()
        }

    def _pairwise(self, aggregate: bool) -> Scores:
        """Scores [queries, n] in the data sets' order, or their sum over queries [1, n]."""
        from kronfluence.utils.common import score_arguments as presets

        arguments = presets.default_score_arguments(damping_factor=None)
        if self._half is not None:
            arguments = presets.smart_low_precision_score_arguments(None, dtype=self._half)
        arguments.aggregate_query_gradients = aggregate
        with mock.patch("kronfluence.factor.config.HEURISTIC_DAMPING_SCALE", self._damping):
            self._analyzer.compute_pairwise_scores(
                scores_name=SCORES,
                factors_name=FACTORS,
                query_dataset=self._queries,
                train_dataset=self._pool,
                per_device_query_batch_size=self._batch_size,
                per_device_train_batch_size=self._batch_size,
                score_args=arguments,
                overwrite_output_dir=True,
            )
        loaded = self._analyzer.load_pairwise_scores(scores_name=SCORES)["all_modules"]
        scores: Scores = loaded.double().cpu().numpy()
        return scores


class _Examples:
    """The examples of a pool, longest first; `order` [n] holds their positions in the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.order = np.argsort([-len(tokens) for tokens in pool.input_ids], kind="stable")

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, index: int) -> tuple[Pool, int]:
        return self._pool, int(self.order[index])


def _collate(examples: list[tuple[Pool, int]]) -> Batch:
    return collate(examples[0][0], [position for _, position in examples], 0)


def _loss_mask(labels: Tensor) -> Tensor:
    """Positions [b, T] whose prediction carries loss."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def _batch_loss(
    batch: Batch, model: nn.Module, reduction: str, generator: torch.Generator | None = None
) -> Tensor:
    """Sum over examples of the "mean" or "sum" over their response tokens.

    With a generator, labels are drawn from the model.
    """
    logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
    mask = _loss_mask(batch["labels"])
    kept = logits[mask]
    labels = batch["labels"][:, 1:][mask[:, :-1]]
    if generator is not None:
        with torch.no_grad():
            probabilities = kept.detach().softmax(dim=-1)
            labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    if reduction == "sum":
        return cross_entropy(kept, labels, reduction="sum")
    weights = (1 / mask.sum(dim=1, keepdim=True)).expand_as(mask)[mask]
    return (cross_entropy(kept, labels, reduction="none") * weights).sum()


def _task(names: list[str], generator: torch.Generator, reduction: str) -> Any:
    from kronfluence.task import Task

    class LanguageModelling(Task):  # type: ignore[misc]
        """The pool's loss by `reduction`; the queries' is a mean over response tokens."""

        def compute_train_loss(
            self, batch: Batch, model: nn.Module, sample: bool = False
        ) -> Tensor:
            return _batch_loss(batch, model, reduction, generator if sample else None)

        def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
            return _batch_loss(batch, model, "mean")

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Batch) -> Tensor:
            return _loss_mask(batch["labels"]).long()

    return LanguageModelling()


@contextmanager
def _masked_gradients() -> Iterator[None]:
    """Inside, covariances leave out the output gradients at masked positions."""
    from kronfluence.module.linear import TrackedLinear

    original: Callable[..., tuple[Tensor, Tensor | int]] = TrackedLinear.get_flattened_gradient

    def masked(module: Any, output_gradient: Tensor) -> tuple[Tensor, Tensor | int]:
        mask = module.attention_mask
        return original(module, output_gradient * mask.to(output_gradient.dtype)[..., None])

    with mock.patch.object(TrackedLinear, "get_flattened_gradient", masked):
        yield
