"""Costly signals of a pool under one model: token losses and pooled hidden states.

One forward pass per example gives everything here, so selectors that want different signals share
it. Examples are batched by length; the batch they fall into changes their values by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from harness.data.pool import IGNORED, Pool, collate
from harness.experiment.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

Arrays = dict[str, npt.NDArray[Any]]
Cache = Callable[[str, Pool, Callable[[], Arrays]], Arrays]
Weighting = Literal["weighted", "mean", "last"]

TOKENS_PER_BATCH = 16384
"""Padded tokens of a batch, where more than one example is in it."""


class Features:
    """Losses and states of pools under `model`, a causal language model in eval mode.

    `cache(name, pool, build)` returns what `build` makes, from wherever the caller keeps it.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int = 32,
        cache: Cache | None = None,
        device: str = "cpu",
        progress: Progress = no_progress,
    ) -> None:
        if model.training:
            raise ValueError("features of a model in training mode; expected model.eval()")
        self._model = model
        self._batch_size = batch_size
        self._cache = cache
        self._device = device
        self._progress = progress
        self._kept: dict[tuple[str, str], Arrays] = {}

    def losses(self, pool: Pool) -> list[npt.NDArray[np.float32]]:
        """Negative log-likelihood (nats) of each response token in order, one array per example.

        A token at the very first position has no prediction and no loss.
        """
        flat = self._signals(pool)["losses"]
        counts = [int((labels[1:] != IGNORED).sum()) for labels in pool.labels]
        return np.split(flat, np.cumsum(counts)[:-1]) if counts else []

    def states(self, pool: Pool, weighting: Weighting = "weighted") -> npt.NDArray[np.float32]:
        """Last-layer states pooled over prompt and response, shape [n, d], not normalised.

        "weighted": sum_i w_i h_i with w_i = i / sum_j j, i counted from 1 (RDS+, 2503.01807);
        "mean": every position alike; "last": the state of the last token.
        """
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting is {weighting!r}; expected one of {get_args(Weighting)}")
        states: npt.NDArray[np.float32] = self._signals(pool)[f"states_{weighting}"]
        return states

    def _signals(self, pool: Pool) -> Arrays:
        key = ("forward", pool.fingerprint)
        if key not in self._kept:
            made = (
                self._cache(key[0], pool, lambda: self._forward(pool))
                if self._cache
                else self._forward(pool)
            )
            self._kept[key] = made
        return self._kept[key]

    def _forward(self, pool: Pool) -> Arrays:
        import torch

        losses: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(pool)
        width = self._model.get_input_embeddings().weight.shape[1]
        states = {
            f"states_{name}": np.zeros((len(pool), width), np.float32)
            for name in get_args(Weighting)
        }
        found: list[torch.Tensor] = []
        hook = self._model.base_model.register_forward_hook(
            lambda module, inputs, output: found.append(output[0])
        )
        batches = list(self._batches(pool))
        try:
            with torch.no_grad():
                for positions in self._progress(batches, "features", len(batches)):
                    rows = self._batch_losses(pool, positions)
                    pooled = _pooled(found.pop(), [len(pool.input_ids[p]) for p in positions])
                    for row, p in enumerate(positions):
                        losses[p] = rows[row]
                    for name, values in pooled.items():
                        states[f"states_{name}"][positions] = values
        finally:
            hook.remove()
        flat = np.concatenate(losses) if losses else np.empty(0, np.float32)
        return {"losses": flat, **states}

    def _batch_losses(self, pool: Pool, positions: list[int]) -> list[npt.NDArray[np.float32]]:
        import torch

        batch = collate(pool, positions, pad_id=0)
        labels = batch["labels"][:, 1:].to(self._device)
        trained = labels != IGNORED
        # Logits are needed from the first predicted response token on: with a large vocabulary
        # those of the prompts would fill the memory.
        first = int(trained.any(dim=0).int().argmax()) if trained.any() else labels.shape[1]
        keep = labels.shape[1] + 1 - first
        # Padding stands on the right: under a causal mask no real position sees it.
        logits = self._model(
            input_ids=batch["input_ids"].to(self._device), use_cache=False, logits_to_keep=keep
        ).logits[:, :-1]
        rows = []
        for row in range(len(positions)):
            mask = trained[row, first:]
            token_losses = torch.nn.functional.cross_entropy(
                logits[row][mask].float(), labels[row, first:][mask], reduction="none"
            )
            rows.append(token_losses.cpu().numpy())
        return rows

    def _batches(self, pool: Pool) -> Iterator[list[int]]:
        """Positions by falling length: memory runs out in the first batch or never."""
        lengths = np.array([len(tokens) for tokens in pool.input_ids], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable").tolist()
        while order:
            fit = max(1, TOKENS_PER_BATCH // max(1, int(lengths[order[0]])))
            size = min(self._batch_size, fit)
            yield order[:size]
            order = order[size:]


def _pooled(states: torch.Tensor, lengths: list[int]) -> dict[str, npt.NDArray[np.float32]]:
    """The three poolings of states [b, T, d] over each row's first `lengths[row]` positions."""
    import torch

    states = states.float()
    sizes = torch.tensor(lengths, device=states.device)
    index = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=torch.float32)
    real = (index[None] <= sizes[:, None]).float()
    weighted = index * real
    rows = torch.arange(len(lengths), device=states.device)
    pooled = {
        "weighted": torch.einsum(
            "bt,btd->bd", weighted / weighted.sum(dim=1, keepdim=True), states
        ),
        "mean": torch.einsum("bt,btd->bd", real / real.sum(dim=1, keepdim=True), states),
        "last": states[rows, sizes - 1],
    }
    return {name: value.cpu().numpy() for name, value in pooled.items()}
