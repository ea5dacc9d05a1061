"""Which weights an engine holds: a hash of the files, and a check that they are what it loaded.

An engine can go on answering with the weights that it had before and say nothing. Every row of
samples therefore carries the hash of the checkpoint's weights, and it is written only after the
engine's own parameters were compared with the files. vLLM's CPU build repacks the matrices of
linear layers beyond recognition; what stays readable there (embeddings, norms, biases) is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if len(files) == 1:
        return _hashed(files[0])
    return digest([[path.name, _hashed(path)] for path in files])


def _hashed(path: Path) -> str:
    facts = path.stat()
    return _file_digest(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, time: int) -> str:
    """Kept while the file is the same: a base model serves many adapters."""
    return file_digest(path)


class StaleWeightsError(RuntimeError):
    """The engine holds other weights than it was asked to answer with."""


def check_held(model: torch.nn.Module, folder: Path, every: bool = False) -> int:
    """Compare the engine's readable parameters with the files; return how many were compared.

    Raises:
        StaleWeightsError: a parameter differs, none could be compared, or, where `every` one has to
            be, one could not: after a swap some can be new and others not.
    """
    files = _Files(folder)
    compared = 0
    for name, held in model.named_parameters():
        wanted = files.tensor(name) if held.numel() else None
        if wanted is None:
            if every:
                raise StaleWeightsError(f"the engine's {name} cannot be compared with a file")
            continue
        compared += 1
        # Embeddings may have rows of padding behind those of the vocabulary.
        part = held.detach()[: len(wanted)] if wanted.dim() else held.detach()
        if part.shape != wanted.shape or not _equal(part, wanted):
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


def _equal(held: torch.Tensor, wanted: torch.Tensor) -> bool:
    import torch

    equal: bool = torch.equal(held, wanted.to(held.device, held.dtype))
    return equal


class _Files:
    """Tensors of a checkpoint by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._opened = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        self._where = {name: file for file in self._opened for name in file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor that a parameter of that name should hold; None where none is known."""
        import torch

        for known in _spellings(name):
            if known in self._where:
                return self._get(known)
            for merged, parts in MERGED.items():
                names = [known.replace(f".{merged}.", f".{part}.") for part in parts]
                if f".{merged}." in known and all(part in self._where for part in names):
                    return torch.cat([self._get(part) for part in names])
        return None

    def _get(self, name: str) -> torch.Tensor:
        tensor: Any = self._where[name].get_tensor(name)
        return tensor  # type: ignore[no-any-return]


def _spellings(name: str) -> Iterator[str]:
    """A parameter's name, also without what an engine with adapters puts into it."""
    yield name
    yield name.replace(".base_layer.", ".")
