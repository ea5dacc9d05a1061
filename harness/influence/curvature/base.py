"""One interface for every curvature: `apply` multiplies gradients by the damped inverse.

A kind says how it is fitted, how it solves one layer, and which tensors it stores of it; grouping
layers, saving, loading and checking are common. A kind that couples layers overrides `_solve_all`.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.influence.layers import Gradients, match_shapes, tracked_layers
from harness.influence.options import CurvatureOptions, SamplingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.pool import Pool
    from harness.influence.batches import Progress
    from harness.influence.layers import Layer, Layers

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Curvature(abc.ABC):
    """A fitted curvature of the pool's loss at one set of weights.

    `shapes`: layer -> shape of its gradient, in model order. `examples`: number of examples it was
    fitted on. `parts`: layer -> its tensors, an instance of the kind's `part`. `error`: the cost of
    fitting on a sample, where `options.measure_error` asked for it and there was a sample.
    """

    kind: ClassVar[str]
    part: ClassVar[type]
    options: CurvatureOptions
    shapes: Mapping[str, tuple[int, int]]
    examples: int
    parts: Mapping[str, Any]
    error: SamplingError | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        pool: Pool,
        options: CurvatureOptions,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Estimate the curvature on `pool` at the model's present weights."""
        layers = tracked_layers(model, options.layers, options.head)
        parts: dict[str, Any] = {}
        for group in cls.groups(layers, pool, options):
            parts |= cls._fit(model, group, pool, options, progress)
        return cls(options, {layer.name: layer.shape for layer in layers}, len(pool), parts)

    @classmethod
    @abc.abstractmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, Any]:
        """The parts of some layers."""

    @classmethod
    @abc.abstractmethod
    def held(cls, layer: Layer, options: CurvatureOptions) -> int:
        """Bytes that fitting a layer holds for itself, activations apart."""

    @classmethod
    def groups(cls, layers: Layers, pool: Pool, options: CurvatureOptions) -> Sequence[Layers]:
        """Layers in order, cut so that what fitting a group holds fits `options.memory_gib`.

        Counted per layer: what one batch of the longest examples leaves behind, and `held`. A layer
        too large for the limit has a group to itself.
        """
        if options.memory_gib is None:
            return [layers]
        lengths = sorted((len(tokens) for tokens in pool.input_ids), reverse=True)
        tokens = lengths[0] * min(options.batch_size, len(lengths))
        grouped: list[list[Layer]] = [[]]
        total = 0.0
        for layer in layers:
            activations = 2 * layer.module.weight.element_size() * tokens * sum(layer.shape)
            need = cls.held(layer, options) + activations
            if grouped[-1] and total + need > options.memory_gib * 2**30:
                grouped.append([])
                total = 0.0
            grouped[-1].append(layer)
            total += need
        return [tuple(group) for group in grouped]

    @abc.abstractmethod
    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """The damped inverse of layer `name` times `gradient` [..., out, in (+ 1)]."""

    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored, by name: LAYER/PART."""
        return {
            f"{name}/{field.name}": getattr(part, field.name)
            for name, part in self.parts.items()
            for field in dataclasses.fields(part)
        }

    def apply(
        self,
        gradients: Mapping[str, Tensor],
        *,
        model: nn.Module | None = None,
        pool: Pool | None = None,
        progress: Progress | None = None,
    ) -> Gradients:
        """(H + damping)^-1 times gradients, layer -> [..., out, in (+ 1)], in new tensors.

        "ekfac+cg" solves with passes over the data: it needs the `model` and the `pool` that it was
        fitted on, and raises ValueError without them.
        """
        match_shapes(self.shapes, gradients, "curvature")
        return self._solve_all(gradients, model, pool, progress)

    def _solve_all(
        self,
        gradients: Mapping[str, Tensor],
        model: nn.Module | None,
        pool: Pool | None,
        progress: Progress | None,
    ) -> Gradients:
        return {name: self.solve(name, gradient) for name, gradient in gradients.items()}

    def report(self) -> dict[str, Any]:
        """What a reader of scores should know about fit and solves so far; fit for JSON."""
        error = self.error
        return {} if error is None else {"sampling_error": dataclasses.asdict(error)}

    def save(self, folder: Path | str) -> None:
        """Write `curvature.json` and `curvature.safetensors` into `folder`.

        The JSON holds `format`, `options`, `shapes`, `examples` and `error`. Tensors are named
        LAYER/PART: for "ekfac" and "ekfac+cg" `inputs` and `outputs` (eigenvectors as columns) and
        `eigenvalues` [out, in (+ 1)]; for "projected" `inputs`, `outputs` (orthonormal rows) and
        `fisher`. "identity" has none.
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
        kind = kind_of(options.kind)
        fields = [field.name for field in dataclasses.fields(kind.part)]
        parts = {x: kind.part(*(tensors[f"{x}/{name}"] for name in fields)) for x in shapes}
        error = None if head.get("error") is None else SamplingError(**head["error"])
        return kind(options, shapes, int(head["examples"]), parts, error=error)


@dataclasses.dataclass(frozen=True)
class NoPart:
    """Nothing to store for a layer."""


@dataclasses.dataclass(frozen=True)
class Identity(Curvature):
    """No curvature: influence is the dot product of gradients (GradDot)."""

    kind: ClassVar[str] = "identity"
    part: ClassVar[type] = NoPart

    @classmethod
    def _fit(
        cls,
        model: nn.Module,
        layers: Layers,
        pool: Pool,
        options: CurvatureOptions,
        progress: Progress | None,
    ) -> dict[str, NoPart]:
        return {layer.name: NoPart() for layer in layers}

    @classmethod
    def held(cls, layer: Layer, options: CurvatureOptions) -> int:
        """Nothing."""
        return 0

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient itself, in a new tensor."""
        return gradient.clone()


_KINDS = {
    "identity": ("base", "Identity"),
    "ekfac": ("ekfac", "EKFAC"),
    "ekfac+cg": ("conjugate_gradients", "EKFACCG"),
    "projected": ("projected", "Projected"),
}


def kind_of(name: str) -> type[Curvature]:
    """The class of a kind, imported when it is used."""
    module, attribute = _KINDS[name]
    kind: type[Curvature] = getattr(
        importlib.import_module(f"harness.influence.curvature.{module}"), attribute
    )
    return kind
