"""Matrix products by the quicker of the two libraries that torch carries on a CPU.

torch multiplies single-precision matrices with MKL, which keeps AVX-512 to Intel's own processors;
oneDNN, in the same wheel, uses it wherever it is. Where a processor's AVX-512 units are as wide as
its registers that doubles the rate (measured on one core of an AMD EPYC: 105-114 against 242-264
GFLOP/s), where they are not it gains 5-15% (on another: 81-100 against 93-107) and is not worth
oneDNN's memory, some 150 MB of compiled kernels. So one product is timed, once per process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 1 << 20
"""Multiplications below which the call costs oneDNN more than the product."""
LARGE = 1 << 23
"""The same for one of many products, which torch would do in one call."""
TRIALS = 15
FASTER = 1.4
"""How many times as fast oneDNN has to be. What processors do lies far from it on either side, so
that the choice, and with it the last bit of a result, is the same in every process."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a processor with AVX-512 that MKL leaves half idle."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if "GenuineIntel" in about or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    plain, other = _seconds(nn.functional.linear, _onednn)
    return plain > FASTER * other


def _seconds(*products: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """Of one product of the usual size, on one thread of the processor, the best of several.

    The libraries take turns, so that what else the machine does strikes both.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = [float("inf")] * len(products)
    try:
        inputs, weight = torch.ones(1024, 256), torch.ones(256, 256)
        for _ in range(TRIALS):
            for number, product in enumerate(products):
                start = time.perf_counter()
                product(inputs, weight)
                best[number] = min(best[number], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return best


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision for what is summed, solved and kept: single, or double as `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def linear(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """`inputs` [..., in] times the transpose of `weight` [out, in]; not differentiable.

    `out`: memory for the product of a matrix, used where the library can.
    """
    if inputs.numel() * len(weight) >= SMALL and _suits(inputs, weight):
        return _onednn(inputs, weight, bias)
    if out is None:
        return nn.functional.linear(inputs, weight, bias)
    if bias is None:
        return torch.mm(inputs, weight.T, out=out)
    return torch.addmm(bias, inputs, weight.T, out=out)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over examples and tokens of left right^T: [..., out] and [..., in] give [out, in]."""
    return linear(left.flatten(0, -2).T, right.flatten(0, -2).T)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Sum over tokens of left right^T for every example: [b, T, out], [b, T, in] -> [b, out, in].

    A call costs oneDNN some 10 us, so that only large examples go to it, one by one.
    """
    _, tokens, out = left.shape
    width = right.shape[-1]
    if tokens * out * width < LARGE or not _suits(left, right):
        return left.transpose(1, 2) @ right
    found = left.new_empty(len(left), out, width)
    for target, a, b in zip(found, left, right, strict=True):
        target.copy_(linear(a.T, b.T))
    return found


def _suits(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == "cpu"
        and onednn_is_faster()
    )


class _Frozen(torch.autograd.Function):  # type: ignore[misc]
    """A linear map whose weights need no gradient: neither inputs nor outputs are kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return linear(grads[0], weight.T), None, None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Runs every plain `nn.Linear` of `model` without gradients of its weights, by `linear`.

    Only gradients with respect to inputs pass. Each module gets its own `forward` back.
    """
    if not any(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters()):
        yield
        return
    if not onednn_is_faster():
        yield
        return

    def run(module: nn.Linear, inputs: Tensor) -> Tensor:
        return _Frozen.apply(inputs, module.weight.detach(), _detached(module.bias))

    replaced = []
    try:
        for module in model.modules():
            if type(module) is nn.Linear and "forward" not in vars(module):
                module.forward = functools.partial(run, module)  # type: ignore[method-assign]
                replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
