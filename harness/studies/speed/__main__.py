"""`nox -s bench -- --json FILE`, or `python -m harness.studies.speed` with the peers installed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.evaluation.environment import installed
from harness.experiment.records import provenance
from harness.experiment.store import Store
from harness.studies.speed.measure import Bench, compare, markdown
from harness.studies.speed.workload import WORKLOADS, Workload, prepare

ENGINES = ("ours", "kronfluence", "bergson")
EXPLANATION = """
Each engine fits EK-FAC on the pool and scores every example against the mean gradient of the
queries: same weights, tokens, precision, batch size, threads, loss and damping. Repetitions are
interleaved; each is a fresh process, in which imports, loading and a first run on a few examples
come before the clock. With a CUDA device, models of the shape of Qwen2.5 are measured too, in
bfloat16, with random weights and tokens.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON where asked; 2 for bad input."""
    options = parser().parse_args(arguments)
    try:
        report = measure(options)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(markdown(report))  # noqa: T201
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="nox -s bench --",
        description="Compare the influence engine with kronfluence and bergson.",
        epilog=EXPLANATION,
    )
    add = command.add_argument
    add("what", nargs="?", choices=["influence"], default="influence", help="the only bench")
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--repeats", type=_positive, default=3, metavar="N", help="repetitions (default 3)")
    add("--threads", type=_positive, default=2, metavar="N", help="threads (default 2)")
    add(
        "--store",
        type=Path,
        default=Path(".cotsieve"),
        metavar="FOLDER",
        help="where models are kept between runs (default .cotsieve)",
    )
    add(
        "--workload",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(WORKLOADS)}; may be repeated (default: all that this machine can "
        "run)",
    )
    add(
        "--engine",
        action="append",
        choices=ENGINES,
        help="measure only these; may be repeated (ours is always measured)",
    )
    add(
        "--limit",
        type=_positive,
        metavar="SECONDS",
        help="time limit of each process; a peer that takes longer is reported as failed",
    )
    add(
        "--short",
        action="store_true",
        help="skip agreement on the same labels and memory at two pool sizes (measured on testbed)",
    )
    return command


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The engine beside others, one workload after the other."""
    gpu = gpu_name()
    names = options.workload or [w.name for w in WORKLOADS.values() if w.device == "cpu" or gpu]
    workloads = [_workload(name, gpu) for name in names]
    engines = list(dict.fromkeys(["ours", *(options.engine or ENGINES)]))
    sources = [prepare(workload, Store(options.store)) for workload in workloads]
    start = time.perf_counter()
    reports = {}
    for workload, source in zip(workloads, sources, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(workload, source.resolve(), Path(folder), options.threads, options.limit)
            extras = workload.shape is None and not options.short  # many runs: only quick ones
            reports[workload.name] = compare(bench, engines, options.repeats, extras)
    device = "cuda" if any(workload.device == "cuda" for workload in workloads) else "cpu"
    versions = {name: installed(name) or "not installed" for name in engines if name != "ours"}
    machine = provenance(Path(__file__).parents[3], device, versions)
    return {
        "engines": engines,
        "repeats": options.repeats,
        "threads": options.threads,
        "machine": machine | ({"gpu": gpu} if device == "cuda" else {}),
        "workloads": reports,
        "seconds": time.perf_counter() - start,
    }


def gpu_name() -> str | None:
    """What the CUDA device calls itself; None without one."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def _workload(name: str, gpu: str | None) -> Workload:
    if name not in WORKLOADS:
        raise ValueError(
            f"workload {name!r} does not exist; expected one of {', '.join(WORKLOADS)}"
        )
    if WORKLOADS[name].device == "cuda" and gpu is None:
        raise ValueError(f"workload {name!r} needs a CUDA device; none is available")
    return WORKLOADS[name]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
