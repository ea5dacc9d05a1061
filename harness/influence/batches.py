"""Batches of similar length, the loss of every example, and labels sampled from the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.data.pool import IGNORED, Pool, collate
from harness.influence.head import sample

PASS_TOKENS = {"cpu": 8192, "cuda": 16384}
"""Tokens, padding included, that go through the model at once, so that memory does not grow with
the length of the examples; a longer example goes alone."""

Progress = Callable[..., Iterable[Any]]
"""`progress(iterable, description, total)` hands the iterable through."""


@dataclass(frozen=True)
class Batch:
    """Some examples of a pool: `positions` [b] in the pool; the tensors are [b, T]."""

    positions: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def carrying(self) -> Tensor:
        """Bool [b, T]: positions whose prediction carries loss (the label stands one later)."""
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        mask[:, :-1] = self.labels[:, 1:] != IGNORED
        return mask


def batches(
    pool: Pool,
    size: int,
    device: torch.device,
    progress: Progress | None = None,
    description: str = "",
) -> Iterator[Batch]:
    """All examples, longest first, so that a batch pads little and memory peaks at the start.

    A batch of more than `PASS_TOKENS` tokens is split; `progress` counts it once. ValueError names
    an example that predicts no token: its loss is undefined.
    """
    for name, labels in zip(pool.ids, pool.labels, strict=True):
        if not (labels[1:] != IGNORED).any():
            raise ValueError(
                f"example {name!r} has no trainable token after its first; "
                "expected a response of at least one token"
            )
    cuts = by_length(pool, size)
    watched = cuts if progress is None else progress(cuts, description, len(cuts))
    for positions in chain.from_iterable(_bounded(cut, pool, device) for cut in watched):
        # Padding is masked and to the right of all real tokens, so that any valid id will do.
        tensors = collate(pool, [int(p) for p in positions], 0)
        yield Batch(
            positions=np.asarray(positions, dtype=np.int64),
            ids=tuple(pool.ids[int(p)] for p in positions),
            **{name: tensor.to(device) for name, tensor in tensors.items()},
        )


def by_length(pool: Pool, size: int) -> list[npt.NDArray[np.int64]]:
    """Positions of all examples, longest first, in groups of `size`."""
    order = np.argsort([-len(tokens) for tokens in pool.input_ids], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _bounded(
    positions: npt.NDArray[np.int64], pool: Pool, device: torch.device
) -> Iterator[npt.NDArray[np.int64]]:
    """`positions`, longest first, in parts of at most `PASS_TOKENS` tokens."""
    limit = PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])
    while len(positions):
        rows = max(1, limit // len(pool.input_ids[int(positions[0])]))
        yield positions[:rows]
        positions = positions[rows:]


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter."""
    return next(model.parameters()).device


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of a forward pass; transformers models keep no key-value cache.

    A causal model needs no mask for padding to the right of all real tokens, which never attend to
    it. Without one, attention kernels take their quicker causal path.
    """
    config = getattr(model, "config", None)
    if config is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; expected a causal model")
    return {"input_ids": batch.input_ids, "use_cache": False}


def example_losses(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Loss of every example, [b]: "mean" or "sum" over its response tokens of -log p(label).

    `logits` [b, T, V] at position t predict `labels` [b, T] at t + 1. Summed in double precision,
    which costs nothing and keeps differences of losses usable.
    """
    targets = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    total = losses.double().sum(dim=1)
    if reduction == "sum":
        return total
    return total / (targets != IGNORED).sum(dim=1)


def uniforms(batch: Batch, seed: int) -> Tensor:
    """A number in [0, 1) for every loss-carrying position of a batch, row by row, [N].

    Every example has its own generator, seeded by (seed, example id), so that neither the batch
    size nor the order of the pool changes a draw.
    """
    counts = batch.carrying.sum(dim=1).tolist()
    parts = [
        torch.rand(count, generator=seeded(seed, name), dtype=torch.float64)
        for name, count in zip(batch.ids, counts, strict=True)
    ]
    return torch.cat(parts).to(batch.labels.device)


def sampled_labels(logits: Tensor, batch: Batch, seed: int) -> Tensor:
    """Labels [b, T] sampled from the model's distribution at every loss-carrying position."""
    mask = batch.carrying
    probabilities = logits.detach()[mask].double().softmax(dim=-1)
    labels = torch.full_like(batch.labels, IGNORED)
    labels[:, 1:][mask[:, :-1]] = sample(probabilities, uniforms(batch, seed))
    return labels


def draw_seed(seed: int, number: int) -> int:
    """The seed of draw `number`, where labels are drawn several times; the first has `seed` itself.

    The others are far from any seed that people write: fits with seeds 0 and 1 share no draw.
    """
    if number == 0:
        return seed
    digest = hashlib.sha256(f"draw\0{seed}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeded(seed: int, name: str) -> torch.Generator:
    """A generator of its own for every seed and name, on the CPU."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
