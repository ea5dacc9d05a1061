"""Features of a pool under one model: token losses and pooled hidden states.

One forward pass per example gives everything here, so selectors that want different features share
it. Examples are batched by length; the batch they fall into changes their values by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from harness.data.pool import IGNORED, Pool, collate
from harness.experiment.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

Weighting = Literal["weighted", "mean", "last"]
Array = npt.NDArray[np.float32]

FILE = "features.safetensors"
TOKENS_PER_BATCH = 16384
"""Padded tokens of a batch, where more than one example is in it."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of every example of a pool, in its order.

    `losses`: negative log-likelihood (nats) of each response token in order, one array per example;
    a token at the very first position has no prediction and no loss. `pooled`: last-layer states
    pooled over prompt and response by each weighting, [n, d].
    """

    losses: tuple[Array, ...]
    pooled: Mapping[str, Array]

    def states(self, weighting: Weighting = "weighted") -> Array:
        """Pooled last-layer states [n, d], not normalised.

        "weighted": sum_i w_i h_i with w_i = i / sum_j j, i counted from 1 (RDS+, 2503.01807);
        "mean": every position alike; "last": the state of the last token.
        """
        if weighting not in self.pooled:
            raise ValueError(f"weighting is {weighting!r}; expected one of {get_args(Weighting)}")
        return self.pooled[weighting]

    def save(self, folder: Path) -> None:
        """Write `features.safetensors` into `folder`."""
        from safetensors.numpy import save_file

        counts = np.array([len(row) for row in self.losses], np.int64)
        arrays = {"losses": np.concatenate([*self.losses, np.empty(0, np.float32)])}
        arrays |= {name: np.ascontiguousarray(states) for name, states in self.pooled.items()}
        save_file({"counts": counts, **arrays}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> FeatureTable:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(folder / FILE)
        ends = np.cumsum(arrays.pop("counts"))
        rows = np.split(arrays.pop("losses"), ends[:-1]) if len(ends) else []
        return cls(tuple(rows), arrays)


def compute_features(
    model: Any,
    pool: Pool,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> FeatureTable:
    """One forward pass of `model`, a causal language model in eval mode, over `pool`."""
    import torch

    if model.training:
        raise ValueError("features of a model in training mode; expected model.eval()")
    losses = [np.empty(0, np.float32)] * len(pool)
    width = model.get_input_embeddings().weight.shape[1]
    pooled = {name: np.zeros((len(pool), width), np.float32) for name in get_args(Weighting)}
    states: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda module, inputs, output: states.append(output[0])
    )
    batches = list(_batches(pool, batch_size))
    try:
        with torch.no_grad():
            for positions in progress(batches, "features", len(batches)):
                rows = _batch_losses(model, pool, positions, device)
                lengths = [len(pool.input_ids[p]) for p in positions]
                for row, position in zip(rows, positions, strict=True):
                    losses[position] = row
                for name, values in _pooled(states.pop(), lengths).items():
                    pooled[name][positions] = values
    finally:
        hook.remove()
    return FeatureTable(tuple(losses), pooled)


def _batch_losses(model: Any, pool: Pool, positions: list[int], device: str) -> list[Array]:
    import torch

    batch = collate(pool, positions, pad_id=0)
    labels = batch["labels"][:, 1:].to(device)
    trained = labels != IGNORED
    # Logits are needed from the first predicted response token on: with a large vocabulary
    # those of the prompts would fill the memory.
    first = int(trained.any(dim=0).int().argmax()) if trained.any() else labels.shape[1]
    keep = labels.shape[1] + 1 - first
    # Padding stands on the right: under a causal mask no real position sees it.
    logits = model(
        input_ids=batch["input_ids"].to(device), use_cache=False, logits_to_keep=keep
    ).logits[:, :-1]
    rows = []
    for row in range(len(positions)):
        mask = trained[row, first:]
        token_losses = torch.nn.functional.cross_entropy(
            logits[row][mask].float(), labels[row, first:][mask], reduction="none"
        )
        rows.append(token_losses.cpu().numpy())
    return rows


def _batches(pool: Pool, batch_size: int) -> Iterator[list[int]]:
    """Positions by falling length: memory runs out in the first batch or never."""
    lengths = np.array([len(tokens) for tokens in pool.input_ids], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        fit = max(1, TOKENS_PER_BATCH // max(1, int(lengths[order[0]])))
        size = min(batch_size, fit)
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
