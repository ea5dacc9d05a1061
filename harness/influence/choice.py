"""Which way to a score is the cheapest, and why; free of torch, so that a plan can read it.

Costs are in forward passes over the pool, by the quickest kernels and with logits only where there
is loss. Per direction, forward mode multiplies twice more in every linear layer (weights with
tangents, directions with inputs), by plain attention. The ghost product multiplies twice more in
all: a backward pass without weight gradients, and gradients of single examples that all directions
share. Central differences are two forward passes per direction, after some on a sample of the pool.

So the ghost product is the quickest exact way whatever the number of directions. What forward mode
saves is memory: it keeps no activations. Central differences are for kernels that have no forward
mode, and whose gradients may depend on the batch: there, along one direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

METHODS = ("forward", "central", "ghost")
COSTS = {"forward": (4.1, 1.5), "central": (2.0, 2.0), "ghost": (2.4, 0.02)}
"""First and every further direction. Measured twice on one core in processor time: a Qwen2 of 3
layers of 96 with 60 tokens gave forward 4.6 and 5.2, further 1.6, ghost 2.4 and 2.7; one of 9.4M
parameters (10 layers of 128, 50,304 tokens in the vocabulary) with 200 tokens gave forward 3.7 and
2.9, further 1.4, ghost 2.4 and 2.2. Central differences gave 2.0 on both, besides their sample."""

NAMES = {
    "forward": "forward-mode derivatives",
    "central": "central differences",
    "ghost": "products of activations and output gradients",
}
FINE_BYTES = 4
"""Weights of fewer bytes are rounded too coarsely for a difference of losses to mean anything."""


@dataclass(frozen=True)
class Choice:
    """A method, why it was taken, and its cost in forward passes over the pool."""

    method: str
    reason: str
    operations: float


def operations(method: str, directions: int) -> float:
    """Cost of scoring along so many directions, in forward passes over the pool."""
    first, further = COSTS[method]
    return first + further * (directions - 1)


def choose(model: Any, directions: int) -> Choice:
    """The cheapest method that `model` allows for so many directions, with its reason."""
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    differentiable = kernel in (None, "eager")
    fine = next(model.parameters()).element_size() >= FINE_BYTES
    costs = {"ghost": operations("ghost", directions)}
    if differentiable:
        costs["forward"] = operations("forward", directions)
    elif fine:
        costs["central"] = operations("central", directions)
    method = min(costs, key=lambda name: costs[name])
    return Choice(method, _reason(method, costs, directions, kernel, differentiable), costs[method])


def _reason(
    method: str, costs: dict[str, float], directions: int, kernel: str | None, differentiable: bool
) -> str:
    along = "1 direction" if directions == 1 else f"{directions} directions"
    reason = f"{along}: {NAMES[method]} cost about {costs[method]:.1f} forward passes"
    for other, cost in costs.items():
        if other != method:
            reason += f", {NAMES[other]} {cost:.1f}"
    if not differentiable:
        reason += f"; the attention kernel {kernel!r} has no forward mode"
        if "central" not in costs:
            reason += ", and half precision is too coarse for differences"
    return reason


def given(method: str, directions: int) -> Choice:
    """The method that was asked for; ValueError where there is none of this name."""
    if method not in METHODS:
        expected = ", ".join(map(repr, ("auto", *METHODS)))
        raise ValueError(f"method is {method!r}; expected one of {expected}")
    return Choice(method, "asked for", operations(method, directions))


def chosen(model: Any, method: str, directions: int) -> Choice:
    """`choose` for "auto", else what was asked for."""
    return choose(model, directions) if method == "auto" else given(method, directions)
