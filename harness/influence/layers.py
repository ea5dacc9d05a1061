"""The linear layers whose weights count for influence, and the weights they hold.

Of a model with LoRA adapters these are the parts of its active adapters, and nothing else.

A layer's gradient is one matrix [out, in] or, with a bias, [out, in + 1]: the bias is the weight of
an input that is always 1, its column stands last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.influence.adapters import adapters, check_prompts, tuners

Gradients = dict[str, Tensor]
"""Layer name -> matrices [..., out, in (+ 1)]."""

PATTERNS = {
    "attention": re.compile(r"(?i)attn|attention"),
    "mlp": re.compile(r"(?i)mlp|ffn|feed_?forward|moe|expert"),
}
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """One tracked linear layer; `tied` are the embeddings that hold the very same weight."""

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


def tracked_layers(
    model: nn.Module, layers: str = "attention+mlp", head: bool = False
) -> tuple[Layer, ...]:
    """The tracked layers in the order of the model's modules.

    ValueError where a wanted part of the model keeps weights in something other than `nn.Linear`,
    or adapters other than LoRA's, where a weight is shared between layers, or where nothing
    matches.
    """
    check_prompts(model)
    tuned = tuners(model)
    found = _adapted(model, tuned, layers, head) if tuned else _linear(model, layers, head)
    if not found:
        raise ValueError(
            f"no {'LoRA adapters' if tuned else 'linear layers'} match layers {layers!r} in "
            f'{type(model).__name__}; expected attention or MLP blocks, or layers = "all"'
        )
    _refuse_sharing(found)
    return tuple(found)


def _linear(model: nn.Module, layers: str, head: bool) -> list[Layer]:
    """Wanted layers of a model without adapters."""
    output = output_layer(model)
    found: list[Layer] = []
    for name, module in model.named_modules():
        if module is output or not _wanted(name, layers):
            continue
        if isinstance(module, nn.Linear):
            found.append(Layer(name, module))
        else:
            _refuse_weights(name, module)
    if head:
        found.append(_head_layer(model, output))
    return found


def _adapted(
    model: nn.Module, tuned: Mapping[str, nn.Module], layers: str, head: bool
) -> list[Layer]:
    """Parts of the wanted adapters; the path of the adapted module says what is wanted."""
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
        for name, part in adapters(path, module)
    ]


def match(layers: tuple[Layer, ...], gradients: Mapping[str, Tensor]) -> None:
    """ValueError unless `gradients` holds exactly these layers in their shapes."""
    names = {layer.name for layer in layers}
    if names != set(gradients):
        differ = sorted(names ^ set(gradients))
        raise ValueError(f"gradients and tracked layers differ in {differ[:5]}; expected the same")
    for layer in layers:
        if tuple(gradients[layer.name].shape[-2:]) != layer.shape:
            raise ValueError(
                f"gradient of layer {layer.name!r} has shape "
                f"{tuple(gradients[layer.name].shape)}; expected (..., {layer.shape[0]}, "
                f"{layer.shape[1]})"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode and gives each its own mode back."""
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
    """What turns hidden states into logits, where the model tells."""
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


def _refuse_weights(name: str, module: nn.Module) -> None:
    """Norms (some hold a row per head) and vectors may stay untracked; other weights may not.

    Quantised layers keep theirs as parameters, as integer buffers, or packed out of sight.
    """
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


def _refuse_sharing(layers: list[Layer]) -> None:
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


def dots(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """<left_j, right_j> over all layers, [k], in double precision."""
    parts = [
        (left[name] * part).sum(dim=(1, 2), dtype=torch.float64) for name, part in right.items()
    ]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(dim=0)
