"""The linear layers whose weights count for influence, and the weights they hold.

In a model with LoRA adapters these are the parts of its active adapters, and nothing else: `lora_A`
and `lora_B` are linear layers that run once, whatever their adapter does around them (scaling,
dropout, a quantised or transposed base). Modules with adapters are recognised by what they have,
not by their class, so that peft is needed only by its users.

A layer's gradient is one matrix [out, in] or, with a bias, [out, in + 1]: the bias is the weight of
an input that is always 1; its column comes last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]
"""Layer name -> matrices [..., out, in (+ 1)]."""

PATTERNS = {
    "attention": re.compile(r"(?i)attn|attention"),
    "mlp": re.compile(r"(?i)mlp|ffn|feed_?forward|moe|expert"),
}
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ADAPTER_PARTS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Layer:
    """One tracked linear layer; `tied` are the embeddings that share its weight."""

    name: str
    module: nn.Linear
    tied: tuple[nn.Embedding, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the layer's gradient, bias column included."""
        return (
            self.module.out_features,
            self.module.in_features + (self.module.bias is not None),
        )

    def extend(self, inputs: Tensor) -> Tensor:
        """Inputs [..., in] with the constant 1 appended where the layer has a bias."""
        if self.module.bias is None:
            return inputs
        return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)

    def parameters(self) -> dict[str, Tensor]:
        """The layer's weights by their name in the model, detached."""
        named = self.module.named_parameters(prefix=self.name, recurse=False)
        return {name: parameter.detach() for name, parameter in named}

    def split(self, matrices: Tensor) -> dict[str, Tensor]:
        """Matrices [..., out, in (+ 1)] as directions of the layer's parameters, by name."""
        prefix = f"{self.name}." if self.name else ""
        directions = {f"{prefix}weight": matrices[..., : self.module.in_features].contiguous()}
        if self.module.bias is not None:
            directions[f"{prefix}bias"] = matrices[..., -1].contiguous()
        return directions

    def zeros(self, *leading: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros [*leading, out, in (+ 1)] on the layer's device, by default in its precision."""
        return self.module.weight.detach().new_zeros(*leading, *self.shape, dtype=dtype)


Layers = tuple[Layer, ...]


def tracked_layers(
    model: nn.Module, layers: str = "attention+mlp", head: bool = False
) -> tuple[Layer, ...]:
    """The tracked layers in the order of the model's modules.

    ValueError where a wanted part of the model keeps weights in something other than `nn.Linear`,
    or in adapters other than LoRA's, where layers share a weight, or where nothing matches.
    """
    _refuse_prompt_tuning(model)
    tuned = {path: module for path, module in model.named_modules() if _is_tuned(module)}
    tracked = _adapted(model, tuned, layers, head) if tuned else _linear(model, layers, head)
    if not tracked:
        raise ValueError(
            f"no {'LoRA adapters' if tuned else 'linear layers'} match layers {layers!r} in "
            f'{type(model).__name__}; expected attention or MLP blocks, or layers = "all"'
        )
    _check_weights(tracked)
    return tuple(tracked)


def _linear(model: nn.Module, layers: str, head: bool) -> list[Layer]:
    """Wanted layers of a model without adapters."""
    output = output_layer(model)
    tracked: list[Layer] = []
    for name, module in model.named_modules():
        if module is output or not _wanted(name, layers):
            continue
        if isinstance(module, nn.Linear):
            tracked.append(Layer(name, module))
        else:
            _refuse_untracked_weights(name, module)
    if head:
        tracked.append(_head_layer(model, output))
    return tracked


def _adapted(
    model: nn.Module, tuned: Mapping[str, nn.Module], layers: str, head: bool
) -> list[Layer]:
    """Parts of the wanted adapters; the path of the adapted module decides what is wanted."""
    output = output_layer(model)
    if head and not any(module is output for module in tuned.values()):
        raise ValueError(
            f"the head of {type(model).__name__} carries no adapter; expected head = False, or "
            "adapters on the output layer too"
        )
    return [
        Layer(name, part)
        for path, module in tuned.items()
        if (head if module is output else _wanted(path, layers))
        for name, part in _adapter_parts(path, module)
    ]


def _is_tuned(module: nn.Module) -> bool:
    """Whether training changed the module through adapters or a copy of its linear layer."""
    if not hasattr(module, "adapter_layer_names"):
        return False
    # A trained copy of a norm or an embedding is as untracked as one in a model without adapters.
    return hasattr(module, "base_layer") or isinstance(
        getattr(module, "original_module", None), nn.Linear
    )


def _adapter_parts(path: str, module: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The parts of a module's active LoRA adapters, by path.

    ValueError where the adapters are merged or disabled, and for every kind but plain LoRA of a
    linear layer.
    """
    if not set(ADAPTER_PARTS) <= set(module.adapter_layer_names):
        raise ValueError(_adapter_refusal(path, module))
    if module.merged_adapters:
        raise ValueError(
            f"layer {path!r} has its adapters {list(module.merged_adapters)} merged into the "
            "base weights; expected them apart (unmerge_adapter(), or track the merged model)"
        )
    if module.disable_adapters:
        raise ValueError(f"layer {path!r} has its adapters disabled; expected them active")
    for adapter in module.active_adapters:
        variant = getattr(module, "lora_variant", {}).get(adapter)
        if variant is not None:
            raise ValueError(_adapter_refusal(path, module, type(variant).__name__))
        for part in module.adapter_layer_names:
            held = getattr(module, part, None)
            if not isinstance(held, nn.Module | Mapping) or adapter not in held:
                continue
            if part not in ADAPTER_PARTS or not isinstance(held[adapter], nn.Linear):
                raise ValueError(_adapter_refusal(path, module, part))
            if hasattr(module, "parameter_name") or isinstance(
                module.base_layer, nn.MultiheadAttention
            ):
                # These add the product of the parts to a weight.
                raise ValueError(_adapter_refusal(path, module))
            yield f"{path}.{part}.{adapter}".lstrip("."), held[adapter]


def _refuse_prompt_tuning(model: nn.Module) -> None:
    """ValueError for prompt and prefix tuning, which train no layer at all."""
    encoders = getattr(model, "prompt_encoder", None)
    for adapter, encoder in dict(encoders or {}).items():
        raise ValueError(
            f"adapter {adapter!r} of {type(model).__name__} is a {type(encoder).__name__}; "
            "expected LoRA adapters of linear layers"
        )


def _adapter_refusal(path: str, module: nn.Module, detail: str = "") -> str:
    kind = ".".join([*type(module).__module__.split(".")[-2:-1], type(module).__name__])
    return (
        f"layer {path!r} is a {kind}{f' with {detail}' if detail else ''}; "
        "expected plain LoRA adapters (lora_A and lora_B) of a linear layer"
    )


def match(layers: tuple[Layer, ...], gradients: Mapping[str, Tensor]) -> None:
    """ValueError unless `gradients` holds exactly these layers in their shapes."""
    match_shapes({layer.name: layer.shape for layer in layers}, gradients, "tracked layers")


def match_shapes(
    shapes: Mapping[str, tuple[int, int]], gradients: Mapping[str, Tensor], source: str
) -> None:
    """ValueError unless `gradients` holds exactly the layers of `shapes`, which `source` has."""
    if set(shapes) != set(gradients):
        differ = sorted(set(shapes) ^ set(gradients))
        raise ValueError(f"gradients and {source} differ in {differ[:5]}; expected the same")
    for name, shape in shapes.items():
        if tuple(gradients[name].shape[-2:]) != shape:
            raise ValueError(
                f"gradient of layer {name!r} has shape {tuple(gradients[name].shape)}; "
                f"expected (..., {shape[0]}, {shape[1]})"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode and restores each one's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _wanted(name: str, layers: str) -> bool:
    if layers == "all":
        return True
    return any(PATTERNS[part].search(name) for part in layers.split("+"))


def output_layer(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into logits, where the model names it."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _head_layer(model: nn.Module, output: nn.Module | None) -> Layer:
    if not isinstance(output, nn.Linear):
        raise ValueError(
            f"the head of {type(model).__name__} is {type(output).__name__}; "
            "expected a torch.nn.Linear from get_output_embeddings()"
        )
    (name,) = (name for name, module in model.named_modules() if module is output)
    tied = tuple(
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is output.weight
    )
    return Layer(name, output, tied)


def _refuse_untracked_weights(name: str, module: nn.Module) -> None:
    """ValueError for weight matrices outside `nn.Linear`; norms and vectors may stay untracked.

    Quantised layers keep theirs as parameters, as integer buffers, or packed out of sight.
    """
    # The norms of some models hold a row per head.
    if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
        return
    matrices = [key for key, p in module.named_parameters(recurse=False) if p.ndim > 1]
    matrices += [
        key
        for key, b in module.named_buffers(recurse=False)
        if b.ndim > 1 and b.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)
    ]
    if hasattr(module, "_packed_params"):
        matrices.append("_packed_params")
    if matrices:
        raise ValueError(
            f"layer {name!r} is a {type(module).__name__} and holds weights ({matrices[0]}); "
            "expected every weight matrix of attention and MLP in a torch.nn.Linear"
        )


def _check_weights(layers: list[Layer]) -> None:
    """ValueError unless every layer has a plain floating-point weight of its own."""
    owners: dict[int, str] = {}
    for layer in layers:
        weight = layer.module.weight
        if weight.dtype not in PRECISIONS or type(weight.detach()) is not Tensor:
            raise ValueError(
                f"layer {layer.name!r} is a {type(layer.module).__name__} and holds "
                f"{weight.dtype} weights in a {type(weight.detach()).__name__}; expected plain "
                "floating point of 16 bits or more (of a quantised model only adapters can be "
                "tracked)"
            )
        if id(weight) in owners:
            raise ValueError(
                f"layers {owners[id(weight)]!r} and {layer.name!r} share one weight; "
                "expected a weight of its own for every tracked layer"
            )
        owners[id(weight)] = layer.name


def check_attention(model: nn.Module) -> None:
    """ValueError where the model's attention kernel has no forward-mode derivative."""
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in (None, "eager"):
        raise ValueError(
            f"the model's attention kernel is {kernel!r}; expected 'eager' (load the model with "
            'attn_implementation="eager"): other kernels lack forward-mode derivatives'
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums and solutions: single, or double like `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def dots(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """<left_j, right_j> over all layers, [k], in double precision."""
    parts = [
        (left[name] * part).sum(dim=(1, 2), dtype=torch.float64) for name, part in right.items()
    ]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(dim=0)


_plain_norms: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Runs every plain RMS norm of `model` by torch's one kernel, without its weight's gradient.

    For a GPU, where a pass over small batches waits for launches and a norm in separate operations
    has some twenty. It rounds once where modules round to 16 bits in between. Norms that compute
    something else (a probe decides) keep their own `forward`.
    """
    norms = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("RMSNorm") and _is_plain_norm(module)
    ]
    try:
        for module in norms:
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in norms:
            del module.forward


def _rms_norm(module: Any, inputs: Tensor) -> Tensor:
    weight = module.weight.detach()
    return nn.functional.rms_norm(inputs, weight.shape, weight, _epsilon(module))


def _epsilon(module: nn.Module) -> float | None:
    """What keeps a norm from dividing by 0, under the names that models give it."""
    values = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    values = [value for value in values if isinstance(value, float)]
    return values[0] if len(values) == 1 else None


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether the module gives `_rms_norm`'s outputs, also where epsilon is all there is."""
    weight, parameters = getattr(module, "weight", None), list(module.parameters())
    if len(parameters) != 1 or parameters[0] is not weight or weight.ndim != 1:
        return False
    if _epsilon(module) is None or "forward" in vars(module):
        return False
    if module not in _plain_norms:
        weight = weight.detach()
        scales = torch.tensor([1.0, 30.0, _epsilon(module) ** 0.5, 0.0])  # type: ignore[operator]
        rows = torch.linspace(-1, 2, 4 * len(weight)).view(4, -1) * scales[:, None]
        with torch.no_grad():
            expected, fused = module(rows.to(weight)), _rms_norm(module, rows.to(weight))
        roundings = 16 if weight.dtype == torch.float32 else 2
        tolerance = roundings * torch.finfo(weight.dtype).eps * float(expected.abs().max())
        _plain_norms[module] = float((expected - fused).abs().max()) <= tolerance
    return _plain_norms[module]
