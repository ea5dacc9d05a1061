"""The output layer of a language model, run on the positions that carry loss and on no others.

Logits are the largest thing that a forward pass makes: tokens times vocabulary. Here they exist for
a block of tokens at a time, together with the gradient of the loss at the last hidden state, which
is all that a backward pass through the rest of the model needs:

    g_h = weight (softmax(z) - onehot(label)) W        z = W h (+ b)

This holds where logits are a linear function of what enters the output layer. Models that scale or
cap them are found out by comparison, at the first positions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.influence.kernels.matmul import linear

LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Entries of the logits held at once (32 MiB in single precision). A GPU wants many rows, since
every block reads the whole head."""
HALF = (torch.bfloat16, torch.float16)
BLOCK = 256
"""Entries of a distribution that are summed together before a draw looks into one block."""


@dataclass
class Capture:
    """What entered the output layer, [b, T, d], with its graph."""

    hidden: Tensor | None = None


@contextmanager
def captured(head: nn.Linear) -> Iterator[Capture]:
    """Inside, `head` sees the first position of each row only; what it would have seen is kept."""
    capture = Capture()

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if capture.hidden is not None or args[0].ndim != 3:
            raise ValueError("the head runs twice, or not on [batch, tokens, width]")
        capture.hidden = args[0]
        return (args[0][:, :1], *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield capture
    finally:
        handle.remove()


def is_plain(head: nn.Linear, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the model's `logits` [b, 1, V] are just what `head` makes of `hidden` [b, T, d].

    In 16 bits, where rounding could hide a cap, only the very same numbers count.
    """
    expected = nn.functional.linear(hidden[:, :1], head.weight, head.bias).detach()
    if expected.shape != logits.shape:
        return False
    found = logits.detach()
    if expected.dtype in HALF:
        return bool(torch.equal(expected.to(found.dtype), found))
    tolerance = 16 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool((expected - found).abs().max() <= tolerance)


def hidden_gradients(
    head: nn.Linear, hidden: Tensor, labels: Tensor, weights: Tensor, uniform: Tensor | None = None
) -> Tensor:
    """Gradients [N, d] at `hidden` [N, d] of the tokens' losses times `weights` [N].

    `uniform` [N] in [0, 1): the labels are drawn from the model, by inverting its distribution;
    None: `labels` [N] count. Nothing is differentiable.
    """
    found = torch.empty_like(hidden)
    for rows, logits in _logits(head, hidden):
        # In place where it may be: one reading and one writing of the largest thing there is.
        p = torch.softmax(logits, 1, out=logits if logits.device.type == "cpu" else None)
        label = labels[rows] if uniform is None else drawn(p, uniform[rows])
        p.scatter_add_(1, label[:, None], p.new_full((len(p), 1), -1.0))
        found[rows] = linear(p.to(hidden.dtype), head.weight.detach().T)
    return found.mul_(weights[:, None].to(found.dtype))


def hidden_curvature(head: nn.Linear, hidden: Tensor, tangents: Tensor, weights: Tensor) -> Tensor:
    """What the losses' curvature makes of `tangents` [k, N, d] of `hidden` [N, d], [k, N, d].

    weight W^T (diag(p) - p p^T) W t: the expectation over labels of g_h g_h^T t.
    """
    found = torch.empty_like(tangents)
    matrix = head.weight.detach()
    for rows, logits in _logits(head, hidden):
        p = logits.softmax(dim=1)
        for tangent, target in zip(tangents, found, strict=True):
            moved = linear(tangent[rows], matrix)
            curved = softmax_curvature(p, moved.to(p.dtype), weights[rows])
            target[rows] = linear(curved.to(hidden.dtype), matrix.T)
    return found


def softmax_curvature(p: Tensor, tangent: Tensor, weights: Tensor) -> Tensor:
    """weight (diag(p) - p p^T) t for every row of `p` and `tangent` [N, V]."""
    centred = tangent - (p * tangent).sum(dim=1, keepdim=True)
    return centred.mul_(p).mul_(weights[:, None].to(p.dtype))


def token_losses(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of every token, [N], in double precision; not differentiable."""
    found = hidden.new_empty(len(hidden), dtype=torch.float64)
    for rows, logits in _logits(head, hidden):
        own = logits.gather(1, labels[rows, None]).squeeze(1)
        found[rows] = torch.logsumexp(logits, dim=1).double() - own.double()
    return found


def _logits(head: nn.Linear, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of logits, in single precision or better, each in the memory of the one before."""
    weight = head.weight.detach()
    bias = None if head.bias is None else head.bias.detach()
    most = LOGITS.get(hidden.device.type, LOGITS["cpu"]) // len(weight)
    step = max(1, min(len(hidden), most))
    space = hidden.new_empty(step, len(weight))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = linear(hidden[rows], weight, bias, out=space[: len(hidden[rows])])
        yield rows, logits.float() if logits.dtype in HALF else logits


def drawn(p: Tensor, uniform: Tensor) -> Tensor:
    """Index [N] where the distribution function of each row of `p` [N, V] >= 0 passes `uniform`.

    `p` need not sum to 1. Sums of blocks first, then one block: one reading of `p`, and sums in
    double precision, so that a draw can change only where rounding moves a step of the function
    across `uniform` (about one draw in 10^5 in single precision).
    """
    classes = p.shape[1]
    whole = classes // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2)
    if whole < classes:
        sums = torch.cat([sums, p[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    reached = sums.double().cumsum(dim=1)
    wanted = uniform[:, None].double() * reached[:, -1:]
    block = torch.searchsorted(reached, wanted, right=True).clamp(max=reached.shape[1] - 1)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp(min=0)), 0.0)
    index = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = p.gather(1, index.clamp(max=classes - 1)).double()
    inside = torch.where(index < classes, inside, 0.0).cumsum(dim=1)
    entry = torch.searchsorted(inside, wanted - before, right=True).clamp(max=BLOCK - 1)
    found = (block * BLOCK + entry).squeeze(1).clamp(max=classes - 1)
    return _possible(p, found)


def _possible(p: Tensor, index: Tensor) -> Tensor:
    """`index`, or the likeliest entry where rounding led to one of probability 0."""
    impossible = p.gather(1, index[:, None]).squeeze(1) == 0
    return torch.where(impossible, p.argmax(dim=1), index) if bool(impossible.any()) else index
