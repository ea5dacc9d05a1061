"""LoRA adapters of a model: small linear layers that were trained beside weights that were not.

Modules that carry adapters are known by what they have, not by their class, so that peft is needed
only by who uses it. Gradients do not ask how an adapter enters its module (scaling, dropout, a
quantised or transposed base): the parts `lora_A` and `lora_B` are linear layers that run once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

PARTS = ("lora_A", "lora_B")


def tuners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that training changed through adapters or copies, by path; empty for other models."""
    return {path: module for path, module in model.named_modules() if _is_tuner(module)}


def _is_tuner(module: nn.Module) -> bool:
    if not hasattr(module, "adapter_layer_names"):
        return False
    # A trained copy of a norm or an embedding is as untracked as one in a model without adapters.
    return hasattr(module, "base_layer") or isinstance(
        getattr(module, "original_module", None), nn.Linear
    )


def adapters(path: str, module: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The parts of a module's active LoRA adapters, by path.

    ValueError where the adapters are merged or switched off, and for every kind but plain LoRA of
    a linear layer.
    """
    if not set(PARTS) <= set(module.adapter_layer_names):
        raise ValueError(_refusal(path, module))
    if module.merged_adapters:
        raise ValueError(
            f"layer {path!r} has its adapters {list(module.merged_adapters)} merged into the "
            "base weights; expected them apart (unmerge_adapter(), or track the merged model)"
        )
    if module.disable_adapters:
        raise ValueError(f"layer {path!r} has its adapters switched off; expected them active")
    for adapter in module.active_adapters:
        variant = getattr(module, "lora_variant", {}).get(adapter)
        if variant is not None:
            raise ValueError(_refusal(path, module, type(variant).__name__))
        for part in module.adapter_layer_names:
            held = getattr(module, part, None)
            if not isinstance(held, nn.Module | Mapping) or adapter not in held:
                continue
            if part not in PARTS or not isinstance(held[adapter], nn.Linear):
                raise ValueError(_refusal(path, module, part))
            if hasattr(module, "parameter_name") or isinstance(
                module.base_layer, nn.MultiheadAttention
            ):
                raise ValueError(_refusal(path, module))  # adds the product of the parts to weights
            yield f"{path}.{part}.{adapter}".lstrip("."), held[adapter]


def check_prompts(model: nn.Module) -> None:
    """ValueError for prompt and prefix tuning, which train no layer at all."""
    encoders = getattr(model, "prompt_encoder", None)
    for adapter, encoder in dict(encoders or {}).items():
        raise ValueError(
            f"adapter {adapter!r} of {type(model).__name__} is a {type(encoder).__name__}; "
            "expected LoRA adapters of linear layers"
        )


def _refusal(path: str, module: nn.Module, detail: str = "") -> str:
    kind = ".".join([*type(module).__module__.split(".")[-2:-1], type(module).__name__])
    return (
        f"layer {path!r} is a {kind}{f' with {detail}' if detail else ''}; "
        "expected plain LoRA adapters (lora_A and lora_B) of a linear layer"
    )
