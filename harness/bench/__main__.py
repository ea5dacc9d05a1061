"""`nox -s bench -- influence --json FILE`; `python -m harness.bench` where the peers are."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.bench.measure import Bench, compare
from harness.bench.table import markdown
from harness.bench.workload import GPU_WORKLOADS, WORKLOADS, Workload

ENGINES = ("ours", "kronfluence", "bergson")
DISTRIBUTIONS = ("cotsieve", "torch", "transformers", "numpy", "kronfluence", "bergson")
EXPLANATION = """
Each engine fits EK-FAC on the pool and scores every example against the mean gradient of the
queries: same weights, tokens, precision, batch size, threads, loss and damping. Repetitions are
interleaved; each is a fresh process, in which imports, loading and a first run on a few examples
come before the clock. With a CUDA device, the gpu workloads are measured too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON where asked; 2 for bad input."""
    asked = parser().parse_args(arguments)
    known = dict(WORKLOADS) | (dict(GPU_WORKLOADS) if has_cuda() else {})
    names = asked.workload or list(known)
    try:
        chosen = [_known(name, known) for name in names]
        report = measured(chosen, asked)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(markdown(report))  # noqa: T201
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="nox -s bench --",
        description="Compare the influence engine with kronfluence and bergson.",
        epilog=EXPLANATION,
    )
    made.add_argument("what", choices=["influence"], help="what to measure")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    made.add_argument("--repeats", type=_positive, default=3, help="repetitions (default 3)")
    made.add_argument("--threads", type=_positive, default=2, help="threads (default 2)")
    made.add_argument(
        "--workload",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join((*WORKLOADS, *GPU_WORKLOADS))}; may be repeated (default: all "
        "that this machine can run)",
    )
    made.add_argument(
        "--engine",
        action="append",
        choices=[*ENGINES, "bergson-forward"],
        help="measure only these (ours is always among them)",
    )
    made.add_argument(
        "--store", type=Path, default=Path(".cotsieve"), help="where models are kept between runs"
    )
    made.add_argument(
        "--short",
        action="store_true",
        help="leave out agreement and memory at two pool sizes, which only testbed measures",
    )
    return made


def measured(workloads: Sequence[Workload], asked: argparse.Namespace) -> dict[str, Any]:
    """The whole report, one workload after the other."""
    from harness.bench.workload import prepare
    from harness.store import Store

    engines = list(dict.fromkeys(["ours", *(asked.engine or ENGINES)]))
    sources = [(workload, prepare(workload, Store(asked.store))) for workload in workloads]
    start = time.perf_counter()
    found = {}
    for workload, source in sources:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(workload.name, source.resolve(), Path(folder), asked.threads)
            extras = not asked.short and workload.shape is None  # many runs: where they are quick
            found[workload.name] = compare(bench, engines, asked.repeats, extras)
    return {
        "what": asked.what,
        "engines": engines,
        "repeats": asked.repeats,
        "threads": asked.threads,
        "machine": machine(),
        "workloads": found,
        "seconds": time.perf_counter() - start,
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {name: _version(name) for name in DISTRIBUTIONS} | {
        "python": platform.python_version(),
        "processor": processor(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
    }


def processor(about: Path) -> str:
    """The processor's own name where the system tells it."""
    if about.exists():
        for line in about.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def _known(name: str, known: Mapping[str, Workload]) -> Workload:
    if name in known:
        return known[name]
    reason = "needs a CUDA device" if name in GPU_WORKLOADS else "does not exist"
    raise ValueError(f"workload {name!r} {reason}; expected one of {', '.join(known)}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected at least 1")
    return value


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
