"""What a layer saw in one batch, and what its per-example gradients are asked for.

    G_n = sum over positions t of  delta_nt  a_nt^T        ([out, in (+ 1)])

is formed, where at all, for a bounded number of examples at a time (see gradients.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.influence.kernels.matmul import linear, outer, products

BLOCK_ELEMENTS = 1 << 21
"""Per-example gradient entries held at once (8 MiB in single precision)."""
ON_A_GPU = 1 << 5
"""How many times as many on a GPU, which is idle between small products."""
FEW = 3
"""Directions up to which their products with the inputs are cheaper than example gradients."""


@dataclass(frozen=True)
class Trace:
    """What one layer saw in one batch: `inputs` [b, T, in (+ 1)], `deltas` [b, T, out].

    `carrying` [b, T]: positions that carry loss. Behind the last attention no other has a gradient:
    there T counts, and the tensors hold, as many positions as the example with most of them has.
    `embedded`: for a tied head, token ids [b, T] and the gradient [b, T, in] at each embedding.
    `source`: the first layer of the model that reads these inputs; those of one source share them.
    """

    inputs: Tensor
    deltas: Tensor
    carrying: Tensor
    embedded: tuple[tuple[Tensor, Tensor], ...] = ()
    source: str = ""

    def along(self, directions: Tensor) -> Tensor:
        """<G_n, u_j> of every example, [b, k], for `directions` [k, out, in (+ 1)].

        A few directions act on the inputs, which spares the example gradients; many meet them.
        """
        directions = directions.to(self.inputs.dtype)
        if len(directions) > FEW or self.embedded:
            columns = directions.flatten(1)
            parts = [linear(block.flatten(1), columns) for _, block in self.gradients()]
            return torch.cat(parts)
        # On the side where the product is the narrower.
        early, late = (self.inputs, self.deltas), directions
        if self.deltas.shape[-1] > self.inputs.shape[-1]:
            early, late = (self.deltas, self.inputs), directions.mT
        other = early[1].flatten(1)
        found = [torch.linalg.vecdot(linear(early[0], u).flatten(1), other) for u in late]
        return torch.stack(found, dim=1)

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """Per-example gradients in bounded blocks: rows of the batch, [rows, out, in (+ 1)]."""
        out, width = self.deltas.shape[-1], self.inputs.shape[-1]
        step = rows_at_once(out * width, self.inputs.device)
        for start in range(0, len(self.inputs), step):
            rows = slice(start, start + step)
            block = products(self.deltas[rows], self.inputs[rows])
            for tokens, deltas in self.embedded:
                index = tokens[rows].unsqueeze(-1).expand_as(deltas[rows])
                block[..., : deltas.shape[-1]].scatter_add_(1, index, deltas[rows])
            yield rows, block

    def total(self) -> Tensor:
        """Gradient summed over the batch, [out, in (+ 1)], without per-example matrices."""
        total = outer(self.deltas, self.inputs)
        for tokens, deltas in self.embedded:
            total[:, : deltas.shape[-1]].index_add_(0, tokens.flatten(), deltas.flatten(0, 1))
        return total


def rows_at_once(entries: int, device: torch.device) -> int:
    """Examples whose gradients, of so many entries each, are held together."""
    limit = BLOCK_ELEMENTS * (ON_A_GPU if device.type == "cuda" else 1)
    return max(1, limit // entries)


Consumer = Callable[[str, Trace], None]
"""`consume(layer name, trace)`."""
