"""The output layer of a language model, run only on the positions that carry loss.

Logits are the largest tensor of a forward pass: tokens times vocabulary. Here they exist for a
block of tokens at a time, together with the gradient of the loss at the last hidden state, which is
all that a backward pass through the rest of the model needs:

    g_h = weight (softmax(z) - onehot(label)) W        z = W h (+ b)

This holds where logits are a linear function of what enters the output layer. Models that scale or
cap them are detected by comparison, at the first positions of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Entries of the logits held at once (32 MiB in single precision). A GPU needs many rows, since
every block reads the whole head."""
HALF = (torch.bfloat16, torch.float16)
BLOCK = 256
"""Entries of a distribution that are summed together before a draw looks into one block."""


@dataclass
class Capture:
    """The input of the output layer, [b, T, d], with its graph."""

    hidden: Tensor | None = None


@contextmanager
def captured(head: nn.Linear) -> Iterator[Capture]:
    """Inside, `head` sees only the first position of each row; its whole input is kept."""
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
    """Whether the model's `logits` [b, 1, V] are exactly what `head` makes of `hidden` [b, T, d].

    In 16 bits, where rounding could hide a cap, the numbers have to be equal.
    """
    expected = nn.functional.linear(hidden[:, :1], head.weight, head.bias).detach()
    if expected.shape != logits.shape:
        return False
    logits = logits.detach()
    if expected.dtype in HALF:
        return bool(torch.equal(expected.to(logits.dtype), logits))
    tolerance = 16 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool((expected - logits).abs().max() <= tolerance)


def hidden_gradients(
    head: nn.Linear, hidden: Tensor, labels: Tensor, weights: Tensor, uniform: Tensor | None = None
) -> Tensor:
    """Gradients [N, d] at `hidden` [N, d] of the tokens' losses times `weights` [N].

    `uniform` [N] in [0, 1): labels are sampled from the model, by inverting its distribution; None:
    `labels` [N] are used. Not differentiable.
    """
    gradients = torch.empty_like(hidden)
    for rows, logits in _logits(head, hidden):
        # In place where possible: the largest tensor is read and written once.
        p = torch.softmax(logits, 1, out=logits if logits.device.type == "cpu" else None)
        label = labels[rows] if uniform is None else sample(p, uniform[rows])
        p.scatter_add_(1, label[:, None], p.new_full((len(p), 1), -1.0))
        gradients[rows] = p.to(hidden.dtype) @ head.weight.detach()
    return gradients.mul_(weights[:, None].to(gradients.dtype))


def hidden_curvature(head: nn.Linear, hidden: Tensor, tangents: Tensor, weights: Tensor) -> Tensor:
    """The losses' curvature times `tangents` [k, N, d] of `hidden` [N, d]: [k, N, d].

    weight W^T (diag(p) - p p^T) W t: the expectation over labels of g_h g_h^T t.
    """
    products = torch.empty_like(tangents)
    matrix = head.weight.detach()
    for rows, logits in _logits(head, hidden):
        p = logits.softmax(dim=1)
        for tangent, product in zip(tangents, products, strict=True):
            curved = softmax_curvature(p, (tangent[rows] @ matrix.T).to(p.dtype), weights[rows])
            product[rows] = curved.to(hidden.dtype) @ matrix
    return products


def softmax_curvature(p: Tensor, tangent: Tensor, weights: Tensor) -> Tensor:
    """weight (diag(p) - p p^T) t for every row of `p` and `tangent` [N, V]."""
    centred = tangent - (p * tangent).sum(dim=1, keepdim=True)
    return centred.mul_(p).mul_(weights[:, None].to(p.dtype))


def token_losses(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of every token, [N], in double precision; not differentiable."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float64)
    for rows, logits in _logits(head, hidden):
        label_logits = logits.gather(1, labels[rows, None]).squeeze(1)
        losses[rows] = torch.logsumexp(logits, dim=1).double() - label_logits.double()
    return losses


def _logits(head: nn.Linear, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of logits, in single precision or better, each in the memory of the one before."""
    weight = head.weight.detach()
    limit = LOGITS.get(hidden.device.type, LOGITS["cpu"]) // len(weight)
    step = max(1, min(len(hidden), limit))
    space = hidden.new_empty(step, len(weight))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = torch.mm(hidden[rows], weight.T, out=space[: len(hidden[rows])])
        if head.bias is not None:
            logits.add_(head.bias.detach())
        yield rows, logits.float() if logits.dtype in HALF else logits


def sample(p: Tensor, uniform: Tensor) -> Tensor:
    """Index [N] where the distribution function of each row of `p` [N, V] >= 0 passes `uniform`.

    `p` need not sum to 1. Sums of blocks first, then one block: `p` is read once, and sums are in
    double precision, so that a draw can change only where rounding moves a step of the function
    across `uniform` (about one draw in 10^5 in single precision).
    """
    classes = p.shape[1]
    whole = classes // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2)
    if whole < classes:
        sums = torch.cat([sums, p[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    reached = sums.double().cumsum(dim=1)
    target = uniform[:, None].double() * reached[:, -1:]
    block = torch.searchsorted(reached, target, right=True).clamp(max=reached.shape[1] - 1)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp(min=0)), 0.0)
    index = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = p.gather(1, index.clamp(max=classes - 1)).double()
    inside = torch.where(index < classes, inside, 0.0).cumsum(dim=1)
    entry = torch.searchsorted(inside, target - before, right=True).clamp(max=BLOCK - 1)
    chosen = (block * BLOCK + entry).squeeze(1).clamp(max=classes - 1)
    # Rounding may lead to an entry of probability 0: the likeliest one then.
    impossible = p.gather(1, chosen[:, None]).squeeze(1) == 0
    return torch.where(impossible, p.argmax(dim=1), chosen) if bool(impossible.any()) else chosen


def embedding_scale(module: nn.Embedding, tokens: Tensor, output: Tensor) -> float:
    """The factor of an embedding's rows; ValueError where it does anything else to them."""
    scale = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(module.weight.dtype)
    rows = module.weight.detach()[tokens[:, :1]] * scale.to(module.weight.device)
    tolerance = 4 * torch.finfo(rows.dtype).eps * float(rows.abs().max())
    if scale.ndim or not bool((rows - output[:, :1].detach()).abs().max() <= tolerance):
        raise ValueError(
            f"the embedding, a {type(module).__name__}, gives more than rows of its weight; "
            "expected a table, or head = False"
        )
    return float(scale)
