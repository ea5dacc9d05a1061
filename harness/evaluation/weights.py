"""Which weights an engine holds: a hash of the files, and a check that the engine loaded them.

An engine can silently go on answering with the weights that it had before. Every row of samples
therefore carries the hash of the checkpoint's weights, and it is written only after the engine's
own parameters were compared with the files. vLLM's CPU build repacks the matrices of linear layers
beyond recognition; what stays readable there (embeddings, norms, biases) is compared.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiment.store import digest, file_digest

if TYPE_CHECKING:
    import torch

MERGED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Parameters that vLLM stacks, by the names of their parts in a checkpoint."""


def weights_digest(*folders: Path) -> str:
    """SHA-256 of the one weights file, or over the names and hashes of several.

    Args:
        folders: a checkpoint; or a base model and the adapter on it.
    """
    files = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    if not files:
        names = [folder.name for folder in folders]
        raise FileNotFoundError(f"{names}: no .safetensors file; expected the weights of a model")
    digests = [_file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if len(files) == 1:
        return digests[0]
    return digest([[path.name, value] for path, value in zip(files, digests, strict=True)])


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, time: int) -> str:
    """Cached while the file is the same: a base model serves many adapters."""
    return file_digest(path)


class StaleWeightsError(RuntimeError):
    """The engine holds other weights than it was asked to answer with."""


def check_held(model: torch.nn.Module, folder: Path, every: bool = False) -> int:
    """Compare the engine's readable parameters with the files; return how many were compared.

    Raises:
        StaleWeightsError: a parameter differs, none could be compared, or, where `every` one has to
            be, one could not: after a swap some can be new and others not.
    """
    import torch

    files = _Files(folder)
    compared = 0
    for name, parameter in model.named_parameters():
        stored = files.tensor(name) if parameter.numel() else None
        if stored is None:
            if every:
                raise StaleWeightsError(f"the engine's {name} cannot be compared with a file")
            continue
        compared += 1
        # Embeddings may have rows of padding behind those of the vocabulary.
        held = parameter.detach()[: len(stored)] if stored.dim() else parameter.detach()
        if not torch.equal(held, stored.to(held.device, held.dtype)):
            raise StaleWeightsError(
                f"the engine's {name} is not that of {folder.name}: it holds other weights; "
                "expected those of the checkpoint"
            )
    if compared == 0:
        raise StaleWeightsError(
            f"none of the engine's parameters has a counterpart in {folder.name}; expected some, "
            "to tell which weights it holds"
        )
    return compared


class _Files:
    """Tensors of a checkpoint by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor that a parameter of that name should hold; None where none is known."""
        import torch

        # Engines that serve adapters put `base_layer` into a name.
        for spelling in (name, name.replace(".base_layer.", ".")):
            if spelling in self._files:
                return self._get(spelling)
            for merged, parts in MERGED.items():
                names = [spelling.replace(f".{merged}.", f".{part}.") for part in parts]
                if f".{merged}." in spelling and all(part in self._files for part in names):
                    return torch.cat([self._get(part) for part in names])
        return None

    def _get(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor
