"""One interface for every curvature: `apply` multiplies gradients by the damped inverse.

A kind says how it is fitted, how it solves one layer, and which tensors it keeps; saving, loading
and checking are common. Kinds that couple layers, or that solve with passes over the pool, override
`_solved` as a whole.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.influence.layers import Gradients, tracked_layers
from harness.influence.options import CurvatureOptions, SamplingError, fitted_on

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Curvature(abc.ABC):
    """A fitted curvature of the pool's loss at one set of weights.

    `shapes`: layer -> shape of its gradient, in model order. `examples`: size of the pool it was
    fitted on. `error`: what fitting on a sample costs, where `options.measure_error` asked for it
    and there was a sample.
    """

    kind: ClassVar[str]
    options: CurvatureOptions
    shapes: Mapping[str, tuple[int, int]]
    examples: int
    error: SamplingError | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    @abc.abstractmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Estimate the curvature on `pool` at the model's present weights."""

    @abc.abstractmethod
    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """The damped inverse of layer `name` times `gradient` [..., out, in (+ 1)]."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored, by name."""

    @classmethod
    @abc.abstractmethod
    def restore(
        cls,
        options: CurvatureOptions,
        shapes: Mapping[str, tuple[int, int]],
        examples: int,
        tensors: Mapping[str, Tensor],
    ) -> Self:
        """The inverse of `tensors`."""

    def apply(
        self,
        gradients: Mapping[str, Tensor],
        *,
        model: nn.Module | None = None,
        pool: Pool | None = None,
        progress: Progress | None = None,
    ) -> Gradients:
        """(H + damping)^-1 times gradients, layer -> [..., out, in (+ 1)], in new tensors.

        Some kinds solve with passes over the data: they need the `model` and the `pool` that they
        were fitted on, and say so with a ValueError.
        """
        if set(gradients) != set(self.shapes):
            differ = sorted(set(gradients) ^ set(self.shapes))
            raise ValueError(f"gradients and curvature differ in {differ[:5]}; expected the same")
        for name, gradient in gradients.items():
            if tuple(gradient.shape[-2:]) != self.shapes[name]:
                raise ValueError(
                    f"gradient of layer {name!r} has shape {tuple(gradient.shape)}; "
                    f"expected (..., {self.shapes[name][0]}, {self.shapes[name][1]})"
                )
        return self._solved(gradients, model, pool, progress)

    def _solved(
        self,
        gradients: Mapping[str, Tensor],
        model: nn.Module | None,
        pool: Pool | None,
        progress: Progress | None,
    ) -> Gradients:
        return {name: self.solve(name, gradient) for name, gradient in gradients.items()}

    def _refitted_on(self, model: nn.Module | None, pool: Pool | None) -> tuple[nn.Module, Pool]:
        """The model and the examples of the fit, for kinds that solve with passes over them."""
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

    def report(self) -> dict[str, Any]:
        """What a reader of scores should know about fit and solves so far; fit for JSON."""
        error = self.error
        return {} if error is None else {"sampling_error": dataclasses.asdict(error)}

    def save(self, folder: Path | str) -> None:
        """Write `curvature.json` and `curvature.safetensors` into `folder`.

        The JSON holds `format`, `options`, `shapes`, `examples` and `error`. Tensors are named
        LAYER/PART: of the Kronecker kinds and "ekfac+cg" `inputs` and `outputs` (eigenvectors as
        columns; "diagonal" has none) and `eigenvalues` [out, in (+ 1)]; of "projected" `inputs`,
        `outputs` (orthonormal rows) and `fisher`. "identity" has none.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        head = {
            "format": FORMAT,
            "options": dataclasses.asdict(self.options),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "examples": self.examples,
            "error": None if self.error is None else dataclasses.asdict(self.error),
        }
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in self.tensors().items()},
            folder / "curvature.safetensors",
        )
        (folder / "curvature.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path | str) -> Curvature:
        """Read what `save` wrote, onto the CPU; `apply` follows the device of the gradients."""
        from safetensors.torch import load_file

        folder = Path(folder)
        path = folder / "curvature.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; expected a folder that `save` wrote")
        head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if head.get("format") != FORMAT:
            raise ValueError(f"{path}: format is {head.get('format')!r}; expected {FORMAT}")
        options = CurvatureOptions(**head["options"])
        shapes = {name: (int(out), int(width)) for name, (out, width) in head["shapes"].items()}
        tensors = load_file(folder / "curvature.safetensors")
        found = _kind(options.kind).restore(options, shapes, int(head["examples"]), tensors)
        error = head.get("error")
        return found if error is None else dataclasses.replace(found, error=SamplingError(**error))


@dataclasses.dataclass(frozen=True)
class Identity(Curvature):
    """No curvature: influence is the dot product of gradients (GradDot)."""

    kind: ClassVar[str] = "identity"

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Nothing to estimate; only the layers are noted."""
        layers = tracked_layers(model, options.layers, options.head)
        return cls(options, {layer.name: layer.shape for layer in layers}, len(pool))

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient itself, in a new tensor."""
        return gradient.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @classmethod
    def restore(
        cls,
        options: CurvatureOptions,
        shapes: Mapping[str, tuple[int, int]],
        examples: int,
        tensors: Mapping[str, Tensor],
    ) -> Self:
        """The identity on these layers."""
        return cls(options, shapes, examples)


_HOMES = {
    "identity": ("base", "Identity"),
    "diagonal": ("kronecker", "Diagonal"),
    "kfac": ("kronecker", "KFAC"),
    "ekfac": ("kronecker", "EKFAC"),
    "ekfac+cg": ("conjugate_gradients", "EKFACCG"),
    "datainf": ("datainf", "DataInf"),
    "projected": ("projected", "Projected"),
}


def _kind(name: str) -> type[Curvature]:
    module, attribute = _HOMES[name]
    found: type[Curvature] = getattr(
        importlib.import_module(f"harness.influence.curvature.{module}"), attribute
    )
    return found
