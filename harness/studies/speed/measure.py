"""Runs engines in turns, compares their numbers, and writes the table; free of torch.

Every measurement is a fresh process. Repetitions are interleaved (A B C A B C ...), so that a slow
minute of the machine affects every engine alike; reported are medians.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.studies.speed.workload import LONG, PERPLEXITY, Workload

POOL_SIZES = (500, 5000)
"""Pool sizes between which our memory has to stay flat."""
SAME_LABELS = {"fisher": "empirical", "loss": "sum"}
"""Settings under which all engines define the same scores: no drawn label, sums over tokens."""
COSTS = {
    "fit_s": ("fit, s", ".2f"),
    "score_s": ("score, s", ".2f"),
    "total_s": ("total, s", ".2f"),
    "peak_mb": ("peak, MB", ".0f"),
    "peak_device_mb": ("peak on the GPU, MB", ".0f"),
}
COLUMNS = {**COSTS, "spearman_exact": ("Spearman with exact", ".6f")}

Numbers = dict[str, float]


@dataclass
class Bench:
    """Processes on one prepared workload; their files go below `folder`."""

    workload: Workload
    source: Path
    folder: Path
    threads: int
    limit: float | None = None
    """Seconds that one process may take, including imports, loading and exact scores."""

    def run(self, engine: str, name: str, **job: Any) -> Path:
        """Run one job in its own process; RuntimeError with its last words, or the limit."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        job |= {
            "engine": engine,
            "workload": self.workload.name,
            "source": str(self.source),
            "threads": self.threads,
        }
        (folder / "job.json").write_text(json.dumps(job) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "harness.studies.speed.engines", str(folder)]
        variables = environment(self.threads)
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=self.limit
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"did not finish within {self.limit:.0f} s") from error
        if done.returncode:
            raise RuntimeError(f"{self.workload.name}, {name}: {done.stderr.strip()[-2000:]}")
        return folder


def environment(threads: int) -> dict[str, str]:
    """The variables that fix what would differ from process to process."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    return {**os.environ, **fixed, **dict.fromkeys(counts, str(threads))}


def compare(bench: Bench, engines: Sequence[str], repeats: int, extras: bool) -> dict[str, Any]:
    """Everything about one workload, ready for JSON.

    `extras`: also the agreement between engines on the same labels, and our memory at two sizes of
    the pool.
    """
    folders, failed = _repetitions(bench, engines, repeats)
    runs = {name: [_result(each) for each in every] for name, every in folders.items()}
    numbers = {name: medians(results) for name, results in runs.items()}
    passes = numbers.pop(PERPLEXITY)
    first = {name: folders[name][0] for name in numbers}
    for name, folder in first.items():
        numbers[name] |= _against_exact(folder)
    sizes = asdict(bench.workload)
    report: dict[str, Any] = {
        "sizes": {name: sizes[name] for name in sizes if name not in ("name", "random")},
        **passes,
        "engines": numbers,
        "ratios": ratios(numbers),
        "passes_over_perplexity": {
            name: numbers["ours"][f"{name}_s"] / passes["perplexity_pass_s"]
            for name in ("pass_one", "pass_two")
        },
        "failed": failed,
        "agreement": {"as_timed": _agreement(first)},
    }
    if extras:
        same = {e: bench.run(e, f"{e}-same-labels", **SAME_LABELS) for e in first}
        report["agreement"]["same_labels"] = _agreement(same)
        report["peak_mb_by_pool"] = {
            str(size): _result(bench.run("ours", f"ours-of-{size}", examples=size))["peak_mb"]
            for size in POOL_SIZES
        }
    return report | {"repetitions": runs}


def medians(runs: Sequence[Mapping[str, float]]) -> Numbers:
    """Median of every number over repetitions that all have the same ones."""
    return {name: float(median(run[name] for run in runs)) for name in runs[0]}


def ratios(numbers: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """How many times our seconds and megabytes each other engine takes."""
    ours = numbers["ours"]
    return {
        name: {key: theirs[key] / ours[key] for key in COSTS if key in theirs}
        for name, theirs in numbers.items()
        if name != "ours"
    }


def spearman(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def _repetitions(
    bench: Bench, engines: Sequence[str], repeats: int
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Folders of all repetitions, and the error of every peer that failed: it is not run again.

    A failure of our engine, or of the perplexity pass, ends the bench.
    """
    folders: dict[str, list[Path]] = {name: [] for name in (PERPLEXITY, *engines)}
    failed: dict[str, str] = {}
    for number in range(repeats):
        for name in folders:
            if name in failed:
                continue
            checked = name != PERPLEXITY and number == 0
            checked &= name == "ours" or bench.workload.max_tokens < LONG
            try:
                folders[name].append(bench.run(name, f"{name}-{number}", exact=checked))
            except RuntimeError as error:
                if name in (PERPLEXITY, "ours"):
                    raise
                failed[name] = str(error)
    return {name: every for name, every in folders.items() if every}, failed


def _result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def _scores(folder: Path) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = np.load(folder / "scores.npy", allow_pickle=False)
    return scores


def _against_exact(folder: Path) -> Numbers:
    """An engine's scores and exact ones under its own curvature: Spearman, and the length of the
    difference relative to that of the exact scores."""
    if not (folder / "exact.npz").exists():
        return {}
    with np.load(folder / "exact.npz", allow_pickle=False) as exact:
        positions, expected = exact["positions"], exact["scores"]
    scores = _scores(folder)[positions]
    return {
        "exact_examples": float(len(expected)),
        "spearman_exact": spearman(scores, expected),
        "error_exact": float(np.linalg.norm(scores - expected) / np.linalg.norm(expected)),
    }


def _agreement(folders: Mapping[str, Path]) -> Numbers:
    """Spearman of the scores of every two engines."""
    scores = {name: _scores(folder) for name, folder in folders.items()}
    return {
        f"{left}/{right}": spearman(scores[left], scores[right])
        for left, right in itertools.combinations(scores, 2)
    }


def markdown(report: Mapping[str, Any]) -> str:
    """One table per workload, with what else was measured below it."""
    machine, repeats = report["machine"], report["repeats"]
    where = [machine[key] for key in ("gpu", "processor") if key in machine]
    runs = "one run" if repeats == 1 else f"medians of {repeats} interleaved repetitions"
    lines = [
        f"{', '.join(where)}, {report['threads']} threads, torch {machine['packages']['torch']}, "
        f"{runs}, each in a process of its own.",
    ]
    for name, workload in report["workloads"].items():
        numbers = workload["engines"]
        memory = "peak_mb" if "peak_device_mb" in numbers["ours"] else "peak_device_mb"
        columns = {key: column for key, column in COLUMNS.items() if key != memory}
        lines += ["", f"### {name}", ""]
        lines.append("| engine | " + " | ".join(title for title, _ in columns.values()) + " |")
        lines.append("|:--" + "|--:" * len(columns) + "|")
        for engine in report["engines"]:
            row = numbers.get(engine, {})
            cells = (f"{row[k]:{style}}" if k in row else "-" for k, (_, style) in columns.items())
            lines.append(f"| {engine} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {note}" for note in _notes(workload))]
    return "\n".join(lines) + "\n"


def _notes(workload: Mapping[str, Any]) -> Iterator[str]:
    sizes, one_two = workload["sizes"], workload["passes_over_perplexity"]
    yield (
        f"{sizes['pool']} examples, {sizes['queries']} queries, at most {sizes['max_tokens']} "
        f"tokens each, batches of {sizes['batch_size']}, {sizes['dtype']}"
    )
    yield (
        f"a perplexity pass by transformers takes {workload['perplexity_pass_s']:.2f} s; in this "
        f"unit our pass over the pool takes {one_two['pass_one']:.2f} along one direction and "
        f"{one_two['pass_two']:.2f} along two"
    )
    for name, error in workload["failed"].items():
        yield f"{name} failed: {error.splitlines()[-1]}"
    for name, numbers in workload["engines"].items():
        if "error_exact" in numbers:
            yield (
                f"{name}: relative error {numbers['error_exact']:.1e} against exact scores of "
                f"{numbers['exact_examples']:.0f} examples"
            )
    for name, values in workload["ratios"].items():
        titles = {COSTS[key][0].partition(",")[0]: value for key, value in values.items()}
        yield f"{name} over ours: {_listed(titles, '.2f')}"
    for kind, values in workload["agreement"].items():
        if values:
            yield f"Spearman between engines, {kind.replace('_', ' ')}: {_listed(values, '.5f')}"
    if "peak_mb_by_pool" in workload:
        peaks = _listed(workload["peak_mb_by_pool"], ".0f")
        yield f"our peak memory in MB by examples in the pool: {peaks}"


def _listed(values: Mapping[str, float], style: str) -> str:
    return ", ".join(f"{name} {value:{style}}" for name, value in values.items())
