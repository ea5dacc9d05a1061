"""EK-FAC influence by bergson, on this project's pools and with this project's definition.

bergson reads a model and data sets from disk and writes the result of every step there. Its four
steps are called one by one, so that loading of model and data, which no engine is charged for, can
be subtracted.

Made equal: the tracked layers (its default: all but the head), biases, the loss of an example,
labels drawn from the model, damping, the sign, examples per batch. Two things are changed:
- its covariances include prompt positions; here they use loss-carrying ones, as everywhere else;
- its token batch may not exceed the model's context: the copy of the model that it reads claims a
  longer one (positions are rotary, nothing depends on the number).

With 16-bit weights its single-precision products may use the tensor cores, which keep more digits
than the weights have (its `use_tf32_matmuls`).

One difference stays: for the mean over T tokens it divides the gradients that enter the curvature
by sqrt(T) instead of T. Examples of equal length differ by a common factor, which cancels in the
ranking; among unequal ones long examples weigh more.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from torch import Tensor

from harness.data.pool import Pool

CONTEXT = 1 << 20
LOADERS = ("setup_model_and_peft", "setup_data_pipeline")


class Bergson:
    """One run on the model in folder `source`; files go to `folder`.

    `fisher` and `loss` (of the pool) as in `CurvatureOptions`; `precision` as bergson calls it.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        pool: Pool,
        queries: Pool,
        batch_size: int,
        damping: float,
        fisher: str = "true",
        loss: str = "mean",
        precision: str = "fp32",
    ) -> None:
        self._folder, self._batch_size, self._damping = folder, batch_size, damping
        self._fisher, self._loss, self._precision = fisher, loss, precision
        self._model = folder / "model"
        shutil.copytree(source, self._model)
        for name, key in (
            ("config.json", "max_position_embeddings"),
            ("tokenizer_config.json", "model_max_length"),
        ):
            path = self._model / name
            settings = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(settings | {key: CONTEXT}), encoding="utf-8")
        self._longest = max(len(tokens) for tokens in (*pool.input_ids, *queries.input_ids))
        for name, examples in (("pool", pool), ("queries", queries)):
            _save(examples, folder / name)
        self.loading = 0.0

    def fit(self) -> None:
        """Covariances, eigenvectors and corrected eigenvalues."""
        from bergson.config.config import HessianConfig
        from bergson.hessians.hessian_approximations import approximate_hessians

        labels = self._fisher == "empirical"
        config = HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=labels)
        with self._step("hessian", "bergson.hessians.hessian_approximations"), _loss_positions():
            approximate_hessians(self._index("hessian", "pool", self._loss), config)

    def scores(self) -> npt.NDArray[np.float64]:
        """Influence of every example on the mean query gradient, [n]."""
        from bergson.build import build_query
        from bergson.config.config import (
            InversionConfig,
            PreprocessConfig,
            QuerySetConfig,
            ScoreConfig,
        )
        from bergson.data import load_scores
        from bergson.hessians.apply_hessian import EkfacConfig, apply_worker
        from bergson.score.score import score_dataset

        paths = {name: str(self._folder / name) for name in ("hessian", "query", "direction")}
        with self._step("query", "bergson.build"):
            mean = QuerySetConfig(dataset=str(self._folder / "queries"), aggregation="mean")
            build_query(self._index("query", "queries", "mean"), mean, PreprocessConfig())
        solve = EkfacConfig(
            hessian_method_path=paths["hessian"],
            gradient_path=paths["query"],
            run_path=paths["direction"],
            ev_correction=True,
        )
        with self._step("direction"):
            apply_worker(0, 0, 1, solve, InversionConfig(damping_factor=self._damping))
        with self._step("scores", "bergson.score.score"):
            along = ScoreConfig(query_path=paths["direction"])
            score_dataset(self._index("scores", "pool", self._loss), along, PreprocessConfig())
        return np.asarray(load_scores(self._folder / "scores")[:], dtype=np.float64).ravel()

    def factors(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Layer -> Q_A, Q_S as columns and Lambda [out, in (+ 1)], in double precision."""
        from safetensors.torch import load_file

        inputs, outputs, values = (
            load_file(self._folder / "hessian" / f"{name}_sharded" / "shard_0.safetensors")
            for name in ("eigen_activation", "eigen_gradient", "eigenvalue_correction")
        )
        return {
            f"model.{name}": (inputs[name].double(), outputs[name].double(), values[name].double())
            for name in values
        }

    def _index(self, run: str, data: str, loss: str) -> Any:
        from bergson.config.config import DataConfig, DistributedConfig, IndexConfig

        return IndexConfig(
            run_path=str(self._folder / run),
            model=str(self._model),
            precision=self._precision,
            distributed=DistributedConfig(nproc_per_node=1),
            data=DataConfig(dataset=str(self._folder / data)),
            include_bias=True,
            token_batch_size=self._batch_size * self._longest,
            max_batch_size=self._batch_size,
            loss_reduction=loss,
            use_tf32_matmuls=self._precision in ("bf16", "fp16"),
            overwrite=True,
        )

    @contextmanager
    def _step(self, run: str, module: str | None = None) -> Iterator[None]:
        """A quiet step into an empty folder; what `module` loads is added to `loading`."""
        shutil.rmtree(self._folder / run, ignore_errors=True)
        logging.disable(logging.WARNING)
        with contextlib.ExitStack() as stack:
            stack.callback(logging.disable, logging.NOTSET)
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            for name in LOADERS if module else ():
                stack.enter_context(self._timed(importlib.import_module(str(module)), name))
            yield

    @contextmanager
    def _timed(self, module: Any, name: str) -> Iterator[None]:
        original = getattr(module, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.loading += time.perf_counter() - start

        with mock.patch.object(module, name, run):
            yield


def _save(pool: Pool, folder: Path) -> None:
    from datasets import Dataset

    rows = {
        "input_ids": [tokens.tolist() for tokens in pool.input_ids],
        "labels": [labels.tolist() for labels in pool.labels],
        "length": [len(tokens) for tokens in pool.input_ids],
    }
    Dataset.from_dict(rows).save_to_disk(str(folder))


@contextmanager
def _loss_positions() -> Iterator[None]:
    """Inside, covariances are taken over the positions that carry loss."""
    from bergson.collector import collector

    original = collector.pad_and_tensor

    def masked(*args: Any, **kwargs: Any) -> Any:
        tokens, labels, carrying, _ = original(*args, **kwargs)
        return tokens, labels, carrying, carrying

    with mock.patch.object(collector, "pad_and_tensor", masked):
        yield
