"""`nox -s bench -- influence --json FILE`; `python -m harness.studies.speed` where the peers are.

`evaluate` and `overhead` measure how answers are made, without peers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.studies.speed import overhead, served, serving
from harness.studies.speed.machine import machine, processor
from harness.studies.speed.measure import Bench, compare
from harness.studies.speed.table import markdown
from harness.studies.speed.workload import DATA, GPU_WORKLOADS, TOKENIZER, WORKLOADS, Workload

__all__ = ["main", "processor"]

ENGINES = ("ours", "kronfluence", "bergson")
DISTRIBUTIONS = ("cotsieve", "torch", "transformers", "numpy", "kronfluence", "bergson")
EXPLANATION = """
Each engine fits EK-FAC on the pool and scores every example against the mean gradient of the
queries: same weights, tokens, precision, batch size, threads, loss and damping. Repetitions are
interleaved; each is a fresh process, in which imports, loading and a first run on a few examples
come before the clock. With a CUDA device, models of the shape of Qwen2.5 are measured too, in
bfloat16, with random weights and tokens.
"""
EVALUATE = """
Perturbed copies of the testbed's base model on its four tasks: by the process that a run keeps for
all checkpoints, and by a fresh process for each, in turns. Every row and every token id must be
the same, and a process that is killed may cost the checkpoint in hand and no more; else the exit
code is 1.
"""
OVERHEAD = """
The same prompts with a fixed number of new tokens, in turns on one engine: by vLLM's own generate
on token ids, and by this program's evaluation through lm-eval, with grading. The model is a Llama
with random weights: what it writes means nothing, and takes as long as if it did.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON where asked; 2 for bad input, 1 for a difference."""
    given = sys.argv[1:] if arguments is None else arguments
    asked = parser().parse_args(given or ["influence"])
    measure, table = {
        "influence": (influence, markdown),
        "evaluate": (serving.measure, served.markdown),
        "overhead": (overhead.measure, overhead.markdown),
    }[asked.what]
    try:
        report = measure(asked)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(table(report))  # noqa: T201
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for problem in report.get("problems", ()):
        print(f"bench: {problem}", file=sys.stderr)  # noqa: T201
    return 1 if report.get("problems") else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="nox -s bench --", description="Measure; see WHAT --help.")
    kinds = made.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_influence(kinds)
    _add_evaluate(kinds)
    _add_overhead(kinds)
    return made


def _add_influence(kinds: Any) -> None:
    what = "compare the influence engine with kronfluence and bergson"
    made = kinds.add_parser("influence", help=what, description=what, epilog=EXPLANATION)
    _add_shared(made, repeats=3, threads=2)
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
        "--limit",
        type=_positive,
        metavar="SECONDS",
        help="of each process; a peer that takes longer is reported as not finished",
    )
    made.add_argument(
        "--short",
        action="store_true",
        help="leave out agreement and memory at two pool sizes, which only testbed measures",
    )


def _add_evaluate(kinds: Any) -> None:
    what = "many checkpoints through one process, beside a fresh process for each"
    made = kinds.add_parser("evaluate", help=what, description=what, epilog=EVALUATE)
    _add_shared(made, repeats=3, threads=1)
    made.add_argument(
        "--checkpoints", type=_positive, default=12, help="how many (default 12)", metavar="N"
    )
    made.add_argument(
        "--items", type=_positive, default=100, help="of each task (default 100)", metavar="N"
    )
    made.add_argument(
        "--base", choices=["tiny", "small"], default="tiny", help="of the testbed (default tiny)"
    )


def _add_overhead(kinds: Any) -> None:
    what = "evaluation through lm-eval, beside vLLM's own generate"
    made = kinds.add_parser("overhead", help=what, description=what, epilog=OVERHEAD)
    _add_shared(made, repeats=5, threads=1)
    made.add_argument(
        "--data", type=Path, metavar="FILE", help=f"GSM8K's test set (default: from {DATA})"
    )
    made.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help=f"of a model for real text, such as Pythia's (default: {TOKENIZER})",
    )
    made.add_argument(
        "--tokens", type=_positive, default=64, help="of each answer (default 64)", metavar="N"
    )
    made.add_argument(
        "--items", type=_positive, help="only so many prompts (default: all)", metavar="N"
    )


def _add_shared(made: argparse.ArgumentParser, repeats: int, threads: int) -> None:
    made.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    made.add_argument(
        "--repeats",
        type=_positive,
        default=repeats,
        metavar="N",
        help=f"repetitions (default {repeats})",
    )
    made.add_argument(
        "--threads",
        type=_positive,
        default=threads,
        metavar="N",
        help=f"threads (default {threads})",
    )
    made.add_argument(
        "--store",
        type=Path,
        default=Path(".cotsieve"),
        metavar="FOLDER",
        help="where models are kept between runs",
    )


def influence(asked: argparse.Namespace) -> dict[str, Any]:
    """The engine beside others, one workload after the other."""
    from harness.experiment.store import Store
    from harness.studies.speed.workload import prepare

    known = dict(WORKLOADS) | (dict(GPU_WORKLOADS) if has_cuda() else {})
    workloads = [_known(name, known) for name in asked.workload or list(known)]
    engines = list(dict.fromkeys(["ours", *(asked.engine or ENGINES)]))
    sources = [(workload, prepare(workload, Store(asked.store))) for workload in workloads]
    start = time.perf_counter()
    found = {}
    for workload, source in sources:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(workload, source.resolve(), Path(folder), asked.threads, asked.limit)
            extras = not asked.short and workload.shape is None  # many runs: where they are quick
            found[workload.name] = compare(bench, engines, asked.repeats, extras)
    return {
        "what": asked.what,
        "engines": engines,
        "repeats": asked.repeats,
        "threads": asked.threads,
        "machine": machine(DISTRIBUTIONS)
        | ({"device": device_name()} if any(w.device == "cuda" for w in workloads) else {}),
        "workloads": found,
        "seconds": time.perf_counter() - start,
    }


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def device_name() -> str:
    """What the CUDA device calls itself."""
    import torch

    return str(torch.cuda.get_device_name())


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


if __name__ == "__main__":
    sys.exit(main())
