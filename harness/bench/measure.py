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
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PERPLEXITY = "perplexity"
SIZES = (500, 5000)
"""Pool sizes between which our memory has to stay flat."""

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

    workload: str
    source: Path
    folder: Path
    threads: int

    def process(self, name: str, **job: Any) -> Path:
        """Run one job to its end; RuntimeError with its last words where it fails."""
        out = self.folder / name
        out.mkdir(parents=True)
        asked = {"workload": self.workload, "source": str(self.source), "threads": self.threads}
        (out / "job.json").write_text(json.dumps(asked | job) + "\n", encoding="utf-8")
        paths = (str(out / "job.json"), str(out))
        command = [sys.executable, "-m", "harness.bench.process", *paths]
        done = subprocess.run(
            command, env=environment(self.threads), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{self.workload}, {name}: {done.stderr.strip()[-2000:]}")
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
    folders: dict[str, list[Path]] = {name: [] for name in (PERPLEXITY, *engines)}
    for number, name in order(list(folders), repeats):
        label = f"{name}-{number}"
        if name == PERPLEXITY:
            folders[name].append(bench.process(label, work=PERPLEXITY))
        else:
            folders[name].append(bench.run(name, label, keep_factors=number == 0))
    runs = {name: [result(folder) for folder in found] for name, found in folders.items()}
    summary = {name: medians(found) for name, found in runs.items()}
    passes = summary.pop(PERPLEXITY)
    firsts = {name: folders[name][0] for name in engines}
    for name, value in _exact(bench, firsts).items():
        summary[name]["spearman_exact"] = value
    found: dict[str, Any] = {**passes, **summary, **ratios(passes, summary)}
    found["agreement"] = {"as_timed": _pairs({n: _scores(f) for n, f in firsts.items()})}
    if extras:
        found["agreement"]["same_labels"] = _pairs(_same_labels(bench, engines))
        found["flat_memory"] = {
            str(size): result(bench.run("ours", f"ours-of-{size}", examples=size))["peak_mb"]
            for size in SIZES
        }
    return found | {"repetitions": runs}


def _scores(folder: Path) -> Any:
    return np.load(folder / "scores.npy", allow_pickle=False)


def _exact(bench: Bench, firsts: Mapping[str, Path]) -> Result:
    """Spearman of each engine's scores with exact ones under its own curvature."""
    folders = {name: str(folder) for name, folder in firsts.items()}
    exact = result(bench.process("exact", work="exact", factors=folders))
    found = {}
    for name, folder in firsts.items():
        own = _scores(folder)
        rows = np.linspace(0, len(own) - 1, len(exact[name])).round().astype(int)
        found[name] = spearman(own[rows], exact[name])
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
