"""EK-FAC as the preconditioner of conjugate gradients on the damped Fisher system of the pool.

    (F + D) x = b      F: the Fisher matrix, between layers too
                       D: damping * mean Lambda in every layer, the damping of the preconditioner

EK-FAC keeps F's blocks on the diagonal, each in an approximate eigenbasis; a few steps of conjugate
gradients correct what that leaves out. Stored are the tensors of EK-FAC. Solving takes one pass
over the pool (or its sample) per step, for all right-hand sides together; each has its own step
lengths and stops by itself. The products of all steps use the same sampled labels, so that the
system is one and symmetric:

    expected    F u = mean over n of  w_n^2 sum over t of  J_nt^T (diag(p_nt) - p_nt p_nt^T) J_nt u
    sampled     F u = mean over n and R draws r of  G_nr <G_nr, u>
    empirical   F u = mean over n of  G_n <G_n, u>

J_nt: derivative of the logits at loss-carrying position t with respect to all tracked weights
together; w_n = 1 / T_n for the mean over T_n tokens, 1 for the sum. G_nr: gradient of the loss
under the r-th draw of labels from the model; the first draw is the one behind EK-FAC's eigenvalues.

Sampled (`options.cg_draws`) and empirical: per batch one forward pass, and one backward for each
set of labels, whatever the number of directions. Expected (`cg_draws` None): forward mode takes a
direction to the last hidden states, the head is known in closed form, and a backward pass takes the
result back to the weights. Two forward passes per batch are shared by all directions; each further
costs its derivative and one backward pass.

Three steps do not solve the system and are not meant to: with damping of 0.1 it is badly
conditioned, and residuals rise to several times the right-hand side, as `report` says, while the
error in the norm of the system falls. More steps predict retraining worse; stopping early is a
regulariser beside the damping. On 500 examples of the testbed (64 queries; 64 halves retrained with
3 seeds; LDS of EK-FAC 0.383) the lead over EK-FAC after 1 to 8 steps at damping 0.1 was +0.000,
+0.038, +0.043 [+0.015, +0.074], +0.028, +0.019, +0.017, +0.009, -0.001. Three steps with 1, 2, 4
and 8 draws gave +0.029, +0.036, +0.043, +0.036; the empirical Fisher matrix gets worse from step 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from harness.influence.batches import batches, device_of, draw_seed
from harness.influence.curvature.ekfac import EKFAC
from harness.influence.directional import DIRECTIONS_AT_ONCE, load_forward_mode, pushforward
from harness.influence.gradients import FEW, Pullback, Trace, gradient_at
from harness.influence.head import hidden_curvature, softmax_curvature
from harness.influence.layers import (
    Gradients,
    Layer,
    check_attention,
    dots,
    evaluating,
    match,
    tracked_layers,
    wide,
)
from harness.influence.options import CurvatureOptions, fitted_on

if TYPE_CHECKING:
    from harness.data.pool import Pool
    from harness.influence.batches import Batch, Progress

BLOCK_ELEMENTS = 1 << 28
"""Entries of right-hand sides solved together; about five times as many are held."""

Product = Callable[[Gradients, int], Gradients]
"""`product(directions, step)`: layer -> [k, out, in (+ 1)] times the system's matrix."""


@dataclass(frozen=True)
class Solved:
    """How far one right-hand side came: `residual` is |b - (F + D) x| / |b|."""

    steps: int
    residual: float


@dataclass(frozen=True)
class EKFACCG(EKFAC):
    """Conjugate gradients, preconditioned by EK-FAC.

    `solves`: what every right-hand side reached, extended by `apply`.
    """

    kind: ClassVar[str] = "ekfac+cg"
    solves: list[Solved] = field(default_factory=list, compare=False, repr=False, kw_only=True)

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """ValueError: the layers are coupled."""
        raise ValueError(
            "curvature 'ekfac+cg' couples the layers; expected `apply`, or a kind that solves "
            "layer by layer, such as 'ekfac'"
        )

    def report(self) -> dict[str, Any]:
        """Steps and relative residuals of the solves so far."""
        if not self.solves:
            return super().report()
        residuals = [solved.residual for solved in self.solves]
        return super().report() | {
            "solves": len(residuals),
            "steps": max(solved.steps for solved in self.solves),
            "residual_median": float(torch.tensor(residuals).median()),
            "residual_max": max(residuals),
            "converged": sum(r <= self.options.cg_tolerance for r in residuals),
        }

    def _fit_data(self, model: nn.Module | None, pool: Pool | None) -> tuple[nn.Module, Pool]:
        """The model and the examples of the fit."""
        kind = self.options.kind
        if model is None or pool is None:
            raise ValueError(
                f"curvature {kind!r} solves with a pass over the data; expected the model and the "
                "pool that it was fitted on, apply(gradients, model=..., pool=...)"
            )
        sample = fitted_on(pool, self.options)
        if len(sample) != self.examples:
            raise ValueError(
                f"the pool gives {len(sample)} examples; expected the {self.examples} that "
                f"curvature {kind!r} was fitted on"
            )
        return model, sample

    def _solve_all(
        self,
        gradients: Mapping[str, Tensor],
        model: nn.Module | None,
        pool: Pool | None,
        progress: Progress | None,
    ) -> Gradients:
        model, sample = self._fit_data(model, pool)
        damping = {
            name: self.options.damping * basis.eigenvalues.mean()
            for name, basis in self.parts.items()
        }

        def product(directions: Gradients, step: int) -> Gradients:
            label = f"conjugate gradients {step}"
            products = fisher_products(
                model, sample, directions, self.options, progress=progress, description=label
            )
            for name, direction in directions.items():
                products[name].add_(direction * damping[name].to(direction))
            return products

        def precondition(residuals: Gradients) -> Gradients:
            return {name: EKFAC.solve(self, name, part) for name, part in residuals.items()}

        leading = next(iter(gradients.values())).shape[:-2]
        columns = {name: part.reshape(-1, *self.shapes[name]) for name, part in gradients.items()}
        step = max(1, BLOCK_ELEMENTS // sum(out * width for out, width in self.shapes.values()))
        solutions = {name: torch.empty_like(part) for name, part in columns.items()}
        for start in range(0, len(next(iter(columns.values()))), step):
            block = {name: part[start : start + step] for name, part in columns.items()}
            solution, solved = conjugate_gradients(
                product,
                block,
                precondition,
                steps=self.options.cg_steps,
                tolerance=self.options.cg_tolerance,
            )
            self.solves.extend(solved)
            for name, part in solution.items():
                solutions[name][start : start + step] = part
        return {name: part.view(*leading, *self.shapes[name]) for name, part in solutions.items()}


def conjugate_gradients(
    product: Product,
    right: Mapping[str, Tensor],
    precondition: Callable[[Gradients], Gradients],
    *,
    steps: int,
    tolerance: float,
) -> tuple[Gradients, list[Solved]]:
    """Solve for every column of `right`, layer -> [k, out, in (+ 1)], starting from 0.

    A column stops at a residual of `tolerance` times its right-hand side, or after `steps`.
    RuntimeError where rounding has left the matrix without a positive direction.
    """
    residual = {name: part.to(wide(part.dtype), copy=True) for name, part in right.items()}
    solution = {name: torch.zeros_like(part) for name, part in residual.items()}
    lengths = dots(residual, residual).sqrt()
    solved = [Solved(0, 0.0) for _ in lengths]
    active = (lengths > 0).nonzero().flatten()
    residual = columns_of(residual, active)
    direction = precondition(residual)
    heights = dots(residual, direction)
    for step in range(1, steps + 1):
        if not len(active):
            break
        image = product(direction, step)
        curving = dots(direction, image)
        if not bool((curving > 0).all()):
            raise RuntimeError(
                f"conjugate gradients step {step}: a direction has curvature "
                f"{float(curving.min()):.3g}; expected more than 0 (a higher damping or precision)"
            )
        stride = heights / curving
        for name, part in residual.items():
            amount = stride.to(part.dtype)[:, None, None]
            solution[name].index_add_(0, active, amount * direction[name])
            part.sub_(amount * image[name])
        relative = dots(residual, residual).sqrt() / lengths[active]
        for column, value in zip(active.tolist(), relative.tolist(), strict=True):
            solved[column] = Solved(step, value)
        unfinished = (relative > tolerance).nonzero().flatten()
        active, heights = active[unfinished], heights[unfinished]
        residual, direction = columns_of(residual, unfinished), columns_of(direction, unfinished)
        preconditioned = precondition(residual)
        new_heights = dots(residual, preconditioned)
        for name, part in preconditioned.items():
            ratio = (new_heights / heights).to(part.dtype)[:, None, None]
            direction[name] = part.add_(direction[name] * ratio)
        heights = new_heights
    return solution, solved


def columns_of(parts: Mapping[str, Tensor], chosen: Tensor) -> Gradients:
    """The chosen columns of every layer."""
    return {name: part[chosen] for name, part in parts.items()}


def fisher_products(
    model: nn.Module,
    pool: Pool,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    *,
    progress: Progress | None = None,
    description: str = "curvature products",
) -> Gradients:
    """F u_j for `directions`, layer -> [k, out, in (+ 1)]; same shapes, single precision or better.

    F is the Fisher matrix of `options.fisher`, `options.cg_draws` and `options.loss` over the whole
    `pool`, undamped; one pass over the pool for any number of directions.
    """
    layers = tracked_layers(model, options.layers, options.head)
    match(layers, directions)
    add_products = _add_sampled
    if options.fisher == "true" and options.cg_draws is None:
        check_attention(model)
        load_forward_mode()
        add_products = _add_expected
    totals = {name: torch.zeros_like(u, dtype=wide(u.dtype)) for name, u in directions.items()}
    with evaluating(model), torch.no_grad():
        for batch in batches(pool, options.batch_size, device_of(model), progress, description):
            add_products(model, layers, batch, directions, options, totals)
    return {name: total.div_(len(pool)) for name, total in totals.items()}


def _add_sampled(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    totals: Gradients,
) -> None:
    """Add sum over n of  G_n <G_n, u_j>, the mean over draws; G_n exist in bounded blocks only."""
    seeds: list[int | None] = [None]
    if options.fisher == "true" and options.cg_draws is not None:
        seeds = [draw_seed(options.seed, number) for number in range(options.cg_draws)]
    traces: dict[str, Trace] = {}
    pull = Pullback(model, layers, batch, traces.__setitem__)
    for number, seed in enumerate(seeds, 1):
        gradient = gradient_at(pull.root, pull.head, batch, options.loss, seed)
        pull(gradient, again=number < len(seeds))
        products = [trace.along(directions[name]) for name, trace in traces.items()]
        weights = torch.stack(products).sum(dim=0) / len(seeds)
        for name, trace in traces.items():
            if weights.shape[1] > FEW:
                for rows, block in trace.gradients():
                    totals[name] += (weights[rows].T @ block.flatten(1)).view_as(totals[name])
            else:
                for total, weight in zip(totals[name], weights.T, strict=True):
                    total += _scaled(trace, weight).total()
        traces.clear()


def _scaled(trace: Trace, weights: Tensor) -> Trace:
    """The trace of losses times `weights` [b]."""
    factor = weights[:, None, None]
    embedded = tuple((tokens, deltas * factor) for tokens, deltas in trace.embedded)
    return dataclasses.replace(trace, deltas=trace.deltas * factor, embedded=embedded)


def _add_expected(
    model: nn.Module,
    layers: tuple[Layer, ...],
    batch: Batch,
    directions: Mapping[str, Tensor],
    options: CurvatureOptions,
    totals: Gradients,
) -> None:
    """Add the expectation over labels, one direction after the other."""
    column = 0

    def add(name: str, trace: Trace) -> None:
        totals[name][column] += trace.total()

    pull = Pullback(model, layers, batch, add)
    mask = batch.carrying
    counts = mask.sum(dim=1, keepdim=True).double()
    by_example = counts.square().reciprocal() if options.loss == "mean" else torch.ones_like(counts)
    weights = by_example.expand_as(mask)[mask]
    root = pull.root.detach()
    count = len(directions[layers[0].name])
    for start in range(0, count, DIRECTIONS_AT_ONCE):
        chosen = {name: u[start : start + DIRECTIONS_AT_ONCE] for name, u in directions.items()}
        tangents = pushforward(model, layers, pull.head, chosen, batch)[1][:, mask]
        if pull.head is None:
            p = root[mask].to(wide(root.dtype)).softmax(dim=1)
            parts = [softmax_curvature(p, tangent.to(p.dtype), weights) for tangent in tangents]
        else:
            parts = list(hidden_curvature(pull.head, root[mask], tangents, weights))
        for part in parts:
            gradient = torch.zeros_like(root)
            gradient[mask] = part.to(root.dtype)
            pull(gradient, again=column + 1 < count)
            column += 1
