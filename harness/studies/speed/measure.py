"""Who runs when, and what the repetitions amount to; free of torch, so that children start small.

Every measurement is a fresh process. Repetitions are interleaved (A B C A B C ...), so that a slow
minute of the machine falls on every engine alike; what is quoted is the median.
"""

from __future__ import annotations

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

from harness.studies.speed.workload import Workload

PERPLEXITY = "perplexity"
SIZES = (500, 5000)
"""Pool sizes between which our memory has to stay flat."""
ALONE = 1 << 12
"""Tokens of an example from which on only our scores are compared with exact ones: each takes
seconds there."""

SIZE_FIELDS = ("pool", "queries", "max_tokens", "batch_size", "device", "dtype")

Result = dict[str, float]


def order(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Repetition and name, one round of all names after the other."""
    return ((number, name) for number in range(repeats) for name in names)


def medians(runs: Sequence[Mapping[str, float]]) -> Result:
    """Median of every number over repetitions that all have the same ones."""
    if not runs:
        raise ValueError("there are no repetitions; expected at least one")
    if any(set(run) != set(runs[0]) for run in runs):
        raise ValueError("repetitions differ in what they measured; expected the same numbers")
    return {name: float(median(run[name] for run in runs)) for name in runs[0]}


def ratios(passes: Mapping[str, float], engines: Mapping[str, Mapping[str, float]]) -> Result:
    """How many times as long others take as `ours`, and our pass in units of a perplexity pass."""
    ours = engines["ours"]
    found = {}
    for name, own in engines.items():
        if name == "ours":
            continue
        short = "" if name == "kronfluence" else f"_{name}"
        found[f"ratio{short or '_total'}"] = own["total_s"] / ours["total_s"]
        found[f"ratio_score{short}"] = own["score_s"] / ours["score_s"]
        found[f"ratio_fit{short}"] = own["fit_s"] / ours["fit_s"]
        found[f"ratio_peak{short}"] = own["peak_mb"] / ours["peak_mb"]
        if "peak_device_mb" in own:
            memory = own["peak_device_mb"] / ours["peak_device_mb"]
            found[f"ratio_peak_device{short}"] = memory
    for kind, name in (("", "perplexity_pass_s"), ("_best", "perplexity_pass_best_s")):
        found[f"score_over_perplexity{kind}"] = ours["pass_one_s"] / passes[name]
        found[f"score_two_over_perplexity{kind}"] = ours["pass_two_s"] / passes[name]
    return found


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


@dataclass
class Bench:
    """Processes on one prepared workload; their files go below `folder`."""

    workload: Workload
    source: Path
    folder: Path
    threads: int
    limit: float | None = None
    """Seconds that one process may take, its imports, loading and exact scores included."""

    def process(self, name: str, **job: Any) -> Path:
        """Run one job; RuntimeError with its last words, or the limit, where it fails."""
        out = self.folder / name
        out.mkdir(parents=True)
        asked = {
            "workload": self.workload.name,
            "source": str(self.source),
            "threads": self.threads,
        }
        (out / "job.json").write_text(json.dumps(asked | job) + "\n", encoding="utf-8")
        paths = (str(out / "job.json"), str(out))
        command = [sys.executable, "-m", "harness.studies.speed.process", *paths]
        variables = environment(self.threads)
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=self.limit
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"did not finish within {self.limit:.0f} s") from error
        if done.returncode:
            raise RuntimeError(f"{self.workload.name}, {name}: {done.stderr.strip()[-2000:]}")
        return out

    def run(self, engine: str, name: str, **job: Any) -> Path:
        """One run of an engine."""
        return self.process(name, work="run", engine=engine, **job)


def environment(threads: int) -> dict[str, str]:
    """The variables that fix what would differ from process to process."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    return {**os.environ, **fixed, **dict.fromkeys(counts, str(threads))}


def result(folder: Path) -> dict[str, Any]:
    """What a process measured."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def compare(bench: Bench, engines: Sequence[str], repeats: int, extras: bool) -> dict[str, Any]:
    """Everything about one workload, ready for JSON.

    `extras`: also the agreement between engines and the memory at two sizes of the pool.
    """
    folders, failed = _runs(bench, engines, repeats)
    runs = {name: [result(folder) for folder in found] for name, found in folders.items()}
    summary = {name: medians(found) for name, found in runs.items()}
    passes = summary.pop(PERPLEXITY)
    firsts = {name: folders[name][0] for name in engines if name in folders}
    for name, values in _exact(bench, firsts).items():
        summary[name] |= values
    found: dict[str, Any] = {"sizes": _sizes(bench.workload)}
    found |= {**passes, **summary, **ratios(passes, summary), "failed": failed}
    found["agreement"] = {"as_timed": _pairs({n: _scores(f) for n, f in firsts.items()})}
    if extras:
        found["agreement"]["same_labels"] = _pairs(_same_labels(bench, engines))
        found["flat_memory"] = {
            str(size): result(bench.run("ours", f"ours-of-{size}", examples=size))["peak_mb"]
            for size in SIZES
        }
    return found | {"repetitions": runs}


def _runs(
    bench: Bench, engines: Sequence[str], repeats: int
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Folders of all repetitions, and why a peer has none or no more of them: its last words.

    Where we fail, or the pass that others are measured by, nothing is left to compare.
    """
    folders: dict[str, list[Path]] = {name: [] for name in (PERPLEXITY, *engines)}
    failed: dict[str, str] = {}
    device = bench.workload.device
    for number, name in order(list(folders), repeats):
        if name in failed:
            continue
        label = f"{name}-{number}"
        kept = {}
        if number == 0 and device == "cpu":
            kept = {"keep_factors": True}
        elif number == 0 and (name == "ours" or bench.workload.max_tokens < ALONE):
            kept = {"exact": True}
        try:
            if name == PERPLEXITY:
                folders[name].append(bench.process(label, work=PERPLEXITY))
            else:
                folders[name].append(bench.run(name, label, **kept))
        except RuntimeError as error:
            if name in (PERPLEXITY, "ours"):
                raise
            failed[name] = str(error)
    return {name: found for name, found in folders.items() if found}, failed


def _sizes(workload: Workload) -> dict[str, Any]:
    """What a reader of numbers has to know about the workload."""
    told = asdict(workload)
    return {name: told[name] for name in SIZE_FIELDS} | {"shape": told["shape"]}


def _scores(folder: Path) -> Any:
    return np.load(folder / "scores.npy", allow_pickle=False)


def _exact(bench: Bench, firsts: Mapping[str, Path]) -> dict[str, Result]:
    """Each engine's scores beside exact ones under its own curvature: on how many examples,
    Spearman, and the length of the difference relative to that of the exact scores."""
    exact: dict[str, Any] = {}
    if bench.workload.device == "cpu":
        folders = {name: str(folder) for name, folder in firsts.items()}
        exact = result(bench.process("exact", work="exact", factors=folders))
    for folder in firsts.values():
        if (folder / "exact.json").exists():
            exact |= json.loads((folder / "exact.json").read_text(encoding="utf-8"))
    found = {}
    for name, expected in exact.items():
        own = _scores(firsts[name])
        own = own[np.linspace(0, len(own) - 1, len(expected)).round().astype(int)]
        found[name] = {
            "exact_examples": float(len(expected)),
            "spearman_exact": spearman(own, expected),
            "error_exact": float(np.linalg.norm(own - expected) / np.linalg.norm(expected)),
        }
    return found


def _same_labels(bench: Bench, engines: Sequence[str]) -> dict[str, Any]:
    """Scores where nothing is left to differ: the data's own labels, sums over tokens."""
    settings = {"fisher": "empirical", "loss": "sum"}
    return {name: _scores(bench.run(name, f"{name}-same-labels", **settings)) for name in engines}


def _pairs(scores: Mapping[str, Any]) -> Result:
    names = list(scores)
    return {
        f"{left}/{right}": spearman(scores[left], scores[right])
        for i, left in enumerate(names)
        for right in names[i + 1 :]
    }
