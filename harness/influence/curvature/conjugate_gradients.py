"""EK-FAC as the preconditioner of conjugate gradients on the damped Fisher system of the pool.

    (F + D) x = b      F: the Fisher matrix of fisher.py, between layers too;
                       D: damping * mean Lambda in every layer, the damping of the preconditioner

EK-FAC keeps F's blocks on the diagonal, each in an approximate eigenbasis; a few steps of conjugate
gradients mend what that leaves out. Stored are the tensors of EK-FAC. Solving takes one pass over
the pool (or its sample) per step, for all right-hand sides together; each has its own step lengths
and stops by itself. Products with F take `options.cg_draws` draws of labels for each example, the
same ones in every step, so that the system is one and symmetric.

Three steps do not solve the system and are not meant to. With damping of 0.1 it is badly
conditioned (10^3 to 10^4 on small models): residuals rise to several times the right-hand side, as
`report` says, while the error in the norm of the system falls with every step. Yet scores foretell
retraining worse after more steps: stopping early is a regulariser beside the damping.
Measured on 500 examples of the testbed (64 queries; 64 halves retrained with 3 seeds; EK-FAC with
damping 0.1 has an LDS of 0.383), lead over it after 1 to 8 steps, 4 draws:

    damping   1       2       3       4       5       6       7       8
    0.1     +0.000  +0.038  +0.043  +0.028  +0.019  +0.017  +0.009  -0.001
    1       -0.008  +0.036  +0.048  +0.038  +0.026  +0.024  +0.015  +0.003
    10      -0.039  +0.028  +0.046  +0.042  +0.038  +0.035  +0.031  +0.026
    100     -0.086  -0.003  +0.030  +0.042  +0.043  +0.048  +0.050  +0.052

The default's +0.043 has an interval of [+0.015, +0.074] over queries and [0.000, +0.078] over
queries and halves. The first step is EK-FAC but for a factor. Three steps at damping 0.1 with 1, 2,
4, 4 others and 8 draws: +0.029, +0.036, +0.043, +0.034 and +0.036. More draws do not keep the score
from falling (8 draws: +0.002 after 6 steps); heavier damping does. A preconditioner with ten times
the damping: +0.048; one of damping alone: +0.012, and no more than +0.027 in 8 steps. With the
empirical Fisher matrix the score falls from step 2 on, by 0.288 until step 8. Steps and draws were
chosen on these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from harness.influence.curvature.fisher import fisher_products
from harness.influence.curvature.kronecker import EKFAC
from harness.influence.kernels.matmul import wide
from harness.influence.layers import Gradients, dots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress

BLOCK_ELEMENTS = 1 << 28
"""Entries of right-hand sides solved together; some five times as many are held."""

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

    `solves`: what every right-hand side reached, added to by `apply`.
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

    def _solved(
        self,
        gradients: Mapping[str, Tensor],
        model: nn.Module | None,
        pool: Pool | None,
        progress: Progress | None,
    ) -> Gradients:
        model, sample = self._refitted_on(model, pool)
        damping = {
            name: self.options.damping * basis.eigenvalues.mean()
            for name, basis in self.bases.items()
        }

        def product(directions: Gradients, step: int) -> Gradients:
            label = f"conjugate gradients {step}"
            found = fisher_products(
                model, sample, directions, self.options, progress=progress, description=label
            )
            for name, direction in directions.items():
                found[name].add_(direction * damping[name].to(direction))
            return found

        def precondition(residuals: Gradients) -> Gradients:
            return {name: EKFAC.solve(self, name, part) for name, part in residuals.items()}

        leading = next(iter(gradients.values())).shape[:-2]
        columns = {name: part.reshape(-1, *self.shapes[name]) for name, part in gradients.items()}
        step = max(1, BLOCK_ELEMENTS // sum(out * width for out, width in self.shapes.values()))
        found = {name: torch.empty_like(part) for name, part in columns.items()}
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
                found[name][start : start + step] = part
        return {name: part.view(*leading, *self.shapes[name]) for name, part in found.items()}


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
    rest = {name: part.to(wide(part.dtype), copy=True) for name, part in right.items()}
    solution = {name: torch.zeros_like(part) for name, part in rest.items()}
    lengths = dots(rest, rest).sqrt()
    solved = [Solved(0, 0.0) for _ in lengths]
    active = (lengths > 0).nonzero().flatten()
    rest = columns_of(rest, active)
    ahead = precondition(rest)
    heights = dots(rest, ahead)
    for step in range(1, steps + 1):
        if not len(active):
            break
        image = product(ahead, step)
        curving = dots(ahead, image)
        if not bool((curving > 0).all()):
            raise RuntimeError(
                f"conjugate gradients step {step}: a direction has curvature "
                f"{float(curving.min()):.3g}; expected more than 0 (a higher damping or precision)"
            )
        stride = heights / curving
        for name, part in rest.items():
            amount = stride.to(part.dtype)[:, None, None]
            solution[name].index_add_(0, active, amount * ahead[name])
            part.sub_(amount * image[name])
        residuals = dots(rest, rest).sqrt() / lengths[active]
        for column, residual in zip(active.tolist(), residuals.tolist(), strict=True):
            solved[column] = Solved(step, residual)
        going = (residuals > tolerance).nonzero().flatten()
        active, heights = active[going], heights[going]
        rest, ahead = columns_of(rest, going), columns_of(ahead, going)
        turned = precondition(rest)
        fresh = dots(rest, turned)
        for name, part in turned.items():
            ahead[name] = part.add_(ahead[name] * (fresh / heights).to(part.dtype)[:, None, None])
        heights = fresh
    return solution, solved


def columns_of(parts: Mapping[str, Tensor], chosen: Tensor) -> Gradients:
    """The chosen columns of every layer."""
    return {name: part[chosen] for name, part in parts.items()}
