"""Root-mean-square norms in fewer passes over memory than autograd takes.

    y = w x r,  r = (mean x^2 + eps)^-1/2        dx = r g' - x r^3 mean(g' x),  g' = w g

Autograd keeps x, x r and x^2 and reads them one operation at a time: a twelfth of a pass forward
and backward through the testbed's model (measured 1.79 -> 1.65 s on one thread).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PROBE = 4
"""Rows that decide whether a module is what its name says."""
PRECISIONS = {
    "cpu": (torch.float32,),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Runs every plain RMS norm of `model` by `_Norm`, without a gradient of its weights.

    In single precision on a CPU; on a GPU by torch's own kernel, which rounds once where modules
    round to 16 bits in between. Each module gets its own `forward` back.
    """
    replaced = []
    try:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm") and _is_plain(module):
                run = functools.partial(_run, module)
                module.forward = run  # type: ignore[method-assign]
                replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    weight: Tensor = module.weight.detach()  # type: ignore[operator, union-attr, assignment]
    return _normed(inputs, weight, _epsilon(module))


def _normed(inputs: Tensor, weight: Tensor, epsilon: float | None) -> Tensor:
    if inputs.device.type == "cuda":
        return nn.functional.rms_norm(inputs, weight.shape, weight, epsilon)
    found: Tensor = _Norm.apply(inputs, weight, epsilon)
    return found


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        lengths = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
        scale = lengths.square_().div_(inputs.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        return (inputs * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        inputs, weight, scale = ctx.saved_tensors
        weighted = grads[0] * weight
        along = torch.linalg.vecdot(weighted, inputs).unsqueeze(-1)
        along.mul_(scale.pow(3)).div_(-inputs.shape[-1])
        return weighted.mul_(scale).addcmul_(inputs, along), None, None


def _epsilon(module: nn.Module) -> float | None:
    """What keeps a norm from dividing by 0, under the names that models give it."""
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    known = [value for value in found if isinstance(value, float)]
    return known[0] if len(known) == 1 else None


def _is_plain(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or epsilon is None:
        return False
    known = PRECISIONS.get(weight.device.type, ())
    if weight.dtype not in known or "forward" in vars(module):
        return False
    if len(list(module.parameters())) != 1:
        return False
    if module not in _plain:
        _plain[module] = _probe(module, weight.detach(), epsilon)
    return _plain[module]


def _probe(module: nn.Module, weight: Tensor, epsilon: float) -> bool:
    """Whether the module gives the formula's outputs, also where epsilon is all there is."""
    rows = torch.linspace(-1, 2, PROBE * len(weight)).view(PROBE, -1)
    rows = rows * torch.tensor([1.0, 30.0, epsilon**0.5, 0.0])[:, None]
    rows = rows.to(weight)
    with torch.no_grad():
        found, expected = module(rows), _normed(rows, weight, epsilon)
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    roundings = 16 if weight.dtype == torch.float32 else 2
    tolerance = roundings * torch.finfo(weight.dtype).eps * float(expected.abs().max())
    return bool((found - expected).abs().max() <= tolerance)
