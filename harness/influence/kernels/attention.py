"""Attention by a fused kernel, where its gradients are as good as those of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

FUSED = "sdpa"
PROBE = 8
"""Tokens of the rows that decide whether a model's two kernels agree."""
TOLERANCE = 128
"""Roundings of the largest logit that are no disagreement. Measured: two kernels differ by 4 to 42
(24 layers of 512); a cap on the scores of attention makes 100 to 10^6."""

_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """On a CPU, runs a transformers model loaded with "eager" attention by torch's fused kernel.

    A fifth of a forward and backward pass. Not on a GPU, where the gradients of fused kernels
    depend on the composition of the batch; not under forward-mode derivatives, which they lack; and
    not for models whose own kernel does more (caps or biases), which a probe finds out once.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "eager" or not _fits(model, config):
        yield
        return
    config._attn_implementation = FUSED
    try:
        yield
    finally:
        config._attn_implementation = "eager"


def alike(model: nn.Module, twin: nn.Module) -> None:
    """Lets `twin`, a copy of `model` with the same weights, do without a probe of its own."""
    with fused_attention(model):
        if model in _agrees:
            _agrees[twin] = _agrees[model]


def _fits(model: nn.Module, config: Any) -> bool:
    # In double precision the plain kernel still takes its softmax in single: they differ. In 16
    # bits rounding would hide from the probe what it looks for.
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if not getattr(model, "_supports_sdpa", False):
        return False
    # Near 0 a cap is the identity: small weights would hide it.
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return False
    if model not in _agrees:
        _agrees[model] = _probe(model, config)
    return _agrees[model]


def _probe(model: nn.Module, config: Any) -> bool:
    """Whether both kernels give the same logits on two rows, one of them padded."""
    ids = torch.arange(2 * PROBE).remainder(min(int(config.vocab_size), 97)).view(2, PROBE)
    mask = torch.ones_like(ids)
    mask[1, PROBE // 2 :] = 0
    found = []
    with torch.no_grad():
        for kernel in ("eager", FUSED):
            config._attn_implementation = kernel
            try:
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            finally:
                config._attn_implementation = "eager"
            found.append(logits[mask.bool()])
    eager, fused = found
    tolerance = TOLERANCE * torch.finfo(eager.dtype).eps * float(eager.abs().max())
    return bool((eager - fused).abs().max() <= tolerance)
