"""EK-FAC influence by kronfluence, on this project's pools and with this project's definition.

What is made equal: the tracked layers (no head), the loss of an example (mean over its response
tokens), labels drawn from the model for the fit, damping as a multiple of the mean eigenvalue, the
sign (higher = training on the example raises the queries' log-probability), and batches of similar
length, longest first.

One thing is mended by default. The covariances of kronfluence 1.0.1 leave the gradients at masked
positions in: with prompts masked, the output-gradient covariance would hold prompt positions that
the input covariance lacks.

A model in 16 bits gets the settings that kronfluence has for them: its preset of low precision
"except for Lambda computations", and "except for preconditioning computations".

Padding stands right of all real tokens, where causal attention never looks: no attention mask is
given to the model, which lets torch take its quicker causal kernel.
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
    model: nn.Module,
    pool: Pool,
    queries: Pool,
    *,
    damping: float = 0.1,
    batch_size: int = 32,
    mended_mask: bool = True,
    seed: int = 0,
) -> Scores:
    """Influence of every example on every query, [n, q], higher = the query gains; `model` stays.

    The numbers of `harness.influence.per_query_scores` with EK-FAC, up to the draw of the labels
    and the examples that eigenvectors are taken from. All linear layers of attention and MLP.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = Kronfluence(
            copy.deepcopy(model), Path(folder), batch_size=batch_size, damping=damping, seed=seed
        )
        engine.fit(pool, mended_mask=mended_mask)
        return engine.scores(pool, queries, aggregate=False)


class Kronfluence:
    """One analysis of `model`, which is changed for good; files go to `folder`.

    `fisher` and `reduction` (of the pool's loss) as in `CurvatureOptions`.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        *,
        batch_size: int = 32,
        damping: float = 0.1,
        seed: int = 0,
        fisher: str = "true",
        reduction: str = "mean",
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.dataset import DataLoaderKwargs

        self._batch_size, self._damping, self._fisher = batch_size, damping, fisher
        device = device_of(model)
        names = [layer.name for layer in tracked_layers(model)]
        task = _task(names, torch.Generator(device).manual_seed(seed), reduction)
        self._analyzer = Analyzer(
            analysis_name="bench",
            model=prepare_model(model, task),
            task=task,
            cpu=device.type == "cpu",
            output_dir=str(folder),
            disable_tqdm=True,
            log_level=logging.ERROR,
        )
        self._half = next(model.parameters()).dtype if _is_half(model) else None
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_joined))

    def fit(self, pool: Pool, *, mended_mask: bool = True) -> None:
        """Covariances, eigenvectors and corrected eigenvalues, kept in the folder."""
        from kronfluence.utils.common import factor_arguments as made

        arguments = made.default_factor_arguments(strategy="ekfac")
        if self._half is not None:
            arguments = made.smart_low_precision_factor_arguments("ekfac", self._half)
        arguments.use_empirical_fisher = self._fisher == "empirical"
        with _masked_gradients() if mended_mask else _as_it_is():
            self._analyzer.fit_all_factors(
                factors_name=FACTORS,
                dataset=_Examples(pool),
                per_device_batch_size=self._batch_size,
                factor_args=arguments,
                overwrite_output_dir=True,
            )

    def scores(self, pool: Pool, queries: Pool, *, aggregate: bool) -> Scores:
        """Influence on every query [n, q]; on the mean of their gradients [n, 1] if `aggregate`."""
        from kronfluence.utils.common import score_arguments as made

        arguments = made.default_score_arguments(damping_factor=None)
        if self._half is not None:
            arguments = made.smart_low_precision_score_arguments(None, dtype=self._half)
        arguments.aggregate_query_gradients = aggregate
        train, asked = _Examples(pool), _Examples(queries)
        with mock.patch("kronfluence.factor.config.HEURISTIC_DAMPING_SCALE", self._damping):
            self._analyzer.compute_pairwise_scores(
                scores_name=SCORES,
                factors_name=FACTORS,
                query_dataset=asked,
                train_dataset=train,
                per_device_query_batch_size=self._batch_size,
                per_device_train_batch_size=self._batch_size,
                score_args=arguments,
                overwrite_output_dir=True,
            )
        loaded = self._analyzer.load_pairwise_scores(scores_name=SCORES)["all_modules"]
        found = loaded.double().cpu().numpy()
        if aggregate:  # the sum over queries
            scores: Scores = np.empty((len(pool), 1))
            scores[train.order, 0] = found[0] / len(queries)
        else:
            scores = np.empty((len(pool), len(queries)))
            scores[np.ix_(train.order, asked.order)] = found.T
        return scores

    def factors(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Layer -> Q_A, Q_S as columns and Lambda [out, in (+ 1)], in double precision."""
        found = self._analyzer.load_all_factors(factors_name=FACTORS)
        values = found["lambda_matrix"]
        counts = found["num_lambda_processed"]
        return {
            name: (
                found["activation_eigenvectors"][name].double(),
                found["gradient_eigenvectors"][name].double(),
                values[name].double() / counts[name].double(),
            )
            for name in values
        }


def _is_half(model: nn.Module) -> bool:
    return next(model.parameters()).dtype in (torch.bfloat16, torch.float16)


class _Examples:
    """The examples of a pool, longest first; `order` [n] holds their positions in the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.order = np.argsort([-len(tokens) for tokens in pool.input_ids], kind="stable")

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, index: int) -> tuple[Pool, int]:
        return self._pool, int(self.order[index])


def _joined(examples: list[tuple[Pool, int]]) -> Batch:
    return collate(examples[0][0], [position for _, position in examples], 0)


def _carrying(labels: Tensor) -> Tensor:
    """Positions [b, T] whose prediction carries loss."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    return mask


def _task(names: list[str], generator: torch.Generator, reduction: str) -> Any:
    from kronfluence.task import Task

    def loss(batch: Batch, model: nn.Module, draw: bool, over_tokens: str) -> Tensor:
        """Sum over examples of the mean or sum over their response tokens."""
        logits: Tensor = model(input_ids=batch["input_ids"], use_cache=False).logits
        mask = _carrying(batch["labels"])
        kept = logits[mask]
        if draw:
            with torch.no_grad():
                chances = kept.detach().softmax(dim=-1)
                labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        else:
            labels = batch["labels"][:, 1:][mask[:, :-1]]
        if over_tokens == "sum":
            return cross_entropy(kept, labels, reduction="sum")
        weights = (1 / mask.sum(dim=1, keepdim=True)).expand_as(mask)[mask]
        return (cross_entropy(kept, labels, reduction="none") * weights).sum()

    class LanguageModelling(Task):  # type: ignore[misc]
        """The pool's loss as told; the queries' is a mean over response tokens."""

        def compute_train_loss(
            self, batch: Batch, model: nn.Module, sample: bool = False
        ) -> Tensor:
            return loss(batch, model, sample, reduction)

        def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
            return loss(batch, model, False, "mean")

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Batch) -> Tensor:
            return _carrying(batch["labels"]).long()

    return LanguageModelling()


@contextmanager
def _masked_gradients() -> Iterator[None]:
    """Inside, output gradients at masked positions stay out of the covariances."""
    from kronfluence.module.linear import TrackedLinear

    original: Callable[..., tuple[Tensor, Tensor | int]] = TrackedLinear.get_flattened_gradient

    def masked(module: Any, output_gradient: Tensor) -> tuple[Tensor, Tensor | int]:
        mask = module.attention_mask
        return original(module, output_gradient * mask.to(output_gradient.dtype)[..., None])

    with mock.patch.object(TrackedLinear, "get_flattened_gradient", masked):
        yield


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
