"""A synthetic results folder: what a finished experiment leaves behind, without running one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.reporting import quotes

ROWS = (
    "base",
    "random",
    "length",
    "difficulty",
    "perplexity/middle",
    "perplexity/top",
    "perplexity/bottom",
    "embedding",
    "influence/correct",
    "influence/incorrect",
    "influence/combined",
    "full",
    "oracle",
    "anti-oracle",
)
TASKS = ("chain_core", "chain_long", "chain_distract", "chain_far")
GAIN = {
    "base": -0.16,
    "length": -0.055,
    "difficulty": 0.015,
    "perplexity/middle": 0.02,
    "perplexity/top": -0.05,
    "perplexity/bottom": 0.045,
    "embedding": 0.025,
    "influence/correct": 0.06,
    "influence/incorrect": 0.035,
    "influence/combined": 0.07,
    "full": 0.03,
    "oracle": 0.16,
    "anti-oracle": -0.14,
}
PARTS = {
    "difficulty": {"decodes": 21.0},
    "perplexity": {"losses": 1.3},
    "embedding": {"hidden states": 1.6, "queries": 0.4},
    "influence": {"reference": 14.1, "curvature": 6.2, "queries": 1.4, "scores": 2.9},
}
SCORED = ("length", "difficulty", "perplexity", "gradcos")
CLASSES = {
    "clean-hard": 0.30,
    "clean-easy": 0.15,
    "near-duplicate": 0.10,
    "verbose": 0.05,
    "wrong-step": 0.15,
    "unfaithful": 0.05,
    "wrong-answer": 0.10,
    "off-topic": 0.10,
}
CORRECT = ("clean-hard", "clean-easy", "near-duplicate", "verbose")


def toml_text(value: Any) -> str:
    """TOML for the few shapes that a protocol holds (JSON strings are valid TOML strings)."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {toml_text(entry)}" for key, entry in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_text(v) for v in value) + "]"
    return json.dumps(value)


def make_record(cell: str, row: str, fraction: float, seed: int, **changes: Any) -> dict[str, Any]:
    """One finished cell as the runner writes it."""
    selector = row.split("/")[0]
    parts = PARTS.get(selector, {})
    record = {
        "schema": 1,
        "experiment": "quick",
        "protocol": "0" * 64,
        "arm": "main",
        "cell": cell,
        "row": row,
        "selector": selector,
        "params": {},
        "fraction": fraction,
        "seed": seed,
        "status": "done",
        "error": None,
        "key": "1" * 64,
        "n_examples": 480,
        "accuracy": {},
        "train": {"steps": 60, "tokens": 61234, "truncated": 0.0, "final_loss": 0.31},
        "costs": {
            "select_seconds": sum(parts.values()) + (0.05 if parts else 0.001),
            "select_parts": dict(parts),
            "select_flops": 6e9 * sum(parts.values()),
            "train_seconds": 0.0 if row == "base" else 8.1 + 0.1 * seed,
            "eval_seconds": 5.2,
            "train_flops": 0.0 if row == "base" else 4e10 * (1 + 0.01 * seed),
        },
        "provenance": {
            "commit": "4f2c9e1b7a6d5c3f8e0b1a2d3c4f5e6a7b8c9d0e",
            "dirty": False,
            "packages": {"torch": "2.13.0+cpu", "transformers": "5.19.0", "lm-eval": "0.4.13"},
            "python": "3.11.7",
            "platform": "Linux-x86_64",
            "device": "cpu",
            "processor": "Example CPU @ 2.0GHz",
            "threads": 1,
            "engine": {"name": "vllm", "version": "0.32.0+cpu"},
            "created": f"2026-11-23T15:0{seed % 10}:00Z",
        },
    }
    return record | changes


def make_pool(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Pool facts with hidden quality and long-tailed influence scores that partly see it."""
    quality = rng.choice(list(CLASSES), size=n, p=list(CLASSES.values()))
    shift = np.where(np.isin(quality, CORRECT), 0.7, -0.9)
    shift += np.where(quality == "off-topic", 0.8, 0.0)
    return pd.DataFrame(
        {
            "id": [f"p{i:05d}" for i in range(n)],
            "quality": quality,
            "response_tokens": rng.integers(8, 60, n).astype(np.int32),
            "steps": rng.integers(1, 6, n).astype(np.int32),
            "s_C": (shift + rng.standard_t(2, n)) * 3e-3,
            "s_I": (0.6 * shift + rng.standard_t(2, n)) * 2e-3,
        }
    )


def write_selection(path: Path, pool: pd.DataFrame, row: str, fraction: float, rng: Any) -> None:
    """The subset of one cell, with the scores that chose it."""
    budget = round(fraction * len(pool))
    ranks = pool[["s_C", "s_I"]].rank(pct=True)
    strategy = row.partition("/")[2]
    score = {
        "correct": ranks["s_C"],
        "incorrect": ranks["s_I"],
        "combined": ranks[["s_C", "s_I"]].min(axis=1),
    }.get(strategy, pd.Series(rng.random(len(pool))))
    if row == "length":
        score = pool["response_tokens"] + score / 2
    frame = pd.DataFrame({"id": pool["id"], "chosen": score.rank(ascending=False) <= budget})
    if row.split("/")[0] in SCORED:
        frame["score"] = score
    if row == "embedding":
        frame["mean_cosine"], frame["max_cosine"] = score / 2, score
    if row.startswith("influence"):
        frame = frame.join(pool[["s_C", "s_I"]])
        frame["r_C"], frame["r_I"] = ranks["s_C"], ranks["s_I"]
    frame.to_parquet(path, index=False)


def cells(
    rows: Sequence[str], fractions: Sequence[float], seeds: Sequence[int]
) -> list[tuple[str, float, int]]:
    """Every cell of an arm in protocol order."""
    found = []
    for row in rows:
        shares = {"base": [0.0], "full": [1.0]}.get(row, list(fractions))
        found += [(row, f, s) for f in shares for s in ([0] if row == "base" else seeds)]
    return found


def fill_results(
    folder: Path,
    *,
    experiment: str = "quick",
    rows: Sequence[str] = ROWS,
    tasks: Sequence[str] = TASKS,
    fractions: Sequence[float] = (0.5,),
    seeds: Sequence[int] = (0, 1, 2),
    items: int = 300,
    pool_size: int = 960,
    arm: str = "main",
    failures: Mapping[str, Mapping[str, Any]] | None = None,
    gain: Mapping[str, float] | None = None,
    protocol: Mapping[str, Any] | None = None,
    decodes: int = 1,
    truncated: Mapping[str, float] | None = None,
    rng_seed: int = 7,
) -> Path:
    """Write (or, for another arm, extend) a results folder; `failures`: cell name to error.

    `truncated`: row to share of cut responses (0 where a row is not named); None leaves out the
    columns that older samples lack.
    """
    rng = np.random.default_rng(rng_seed)
    gain = GAIN if gain is None else gain
    failures = failures or {}
    for name in ("samples", "selections"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pool = make_pool(pool_size, rng)
    pool_file = "pool.parquet" if arm == "main" else f"pool-{arm}.parquet"
    pool.drop(columns=["s_C", "s_I"]).to_parquet(folder / pool_file, index=False)
    ease = {task: rng.normal(0.05 - 0.09 * k, 0.3, items) for k, task in enumerate(tasks)}
    records = []
    for row, fraction, seed in cells(rows, fractions, seeds):
        cell = f"{row}@{fraction:g}#{seed}"
        record = make_record(cell, row, fraction, seed, experiment=experiment, arm=arm)
        if cell in failures:
            empty = {"samples": None, "selection": None, "accuracy": None}
            records.append(record | {"status": "failed", "error": dict(failures[cell])} | empty)
            continue
        stem = f"{arm}-{len(records):05d}"
        noise = 0.012 * rng.standard_normal() + gain.get(row, 0.0) * (1.35 - 0.7 * fraction)
        frames = []
        for task in tasks:
            lift = 0.0 if task == "chain_far" else noise
            chance = np.clip(0.5 + lift + ease[task], 0.02, 0.98)
            correct = rng.random((items, decodes)) < chance[:, None]
            names = [f"{task}-{i:04d}" for i in range(items)]
            columns = {"task": task, "item": np.repeat(names, decodes)}
            columns["decode"] = np.tile(np.arange(decodes, dtype=np.int16), items)
            frames.append(pd.DataFrame(columns | {"correct": correct.ravel()}))
        samples = answered(pd.concat(frames, ignore_index=True))
        if truncated is not None:
            cut = np.arange(len(samples)) < round(truncated.get(row, 0.0) * len(samples))
            samples = samples.assign(rule="mark", truncated=cut, weights="2" * 64)
        samples.to_parquet(folder / "samples" / f"{stem}.parquet", index=False)
        record["samples"] = f"samples/{stem}.parquet"
        record["selection"] = None
        if row not in ("base", "full"):
            record["selection"] = f"selections/{stem}.parquet"
            write_selection(folder / record["selection"], pool, row, fraction, rng)
        records.append(record)
    with (folder / "records.jsonl").open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
    if arm == "main":
        temperature = 0.0 if decodes == 1 else 0.6
        evaluate = {"evaluate": {"decodes": decodes, "temperature": temperature}}
        changes = evaluate | dict(protocol or {})
        write_protocol(folder, experiment, rows, tasks, fractions, seeds, changes)
    return folder


def answered(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples with answers: 5 is right, of the wrong ones every fourth has none."""
    wrong = np.array(["7", "x = 3", "X  =  3", None], dtype=object)
    answer = np.where(samples["correct"], "5", wrong[np.arange(len(samples)) % 4])
    samples["answer"] = pd.Series(answer, dtype=object)
    samples["response"], samples["tokens"] = "c=3 #### 5", np.int32(9)
    return samples


def write_protocol(
    folder: Path,
    experiment: str,
    rows: Sequence[str],
    tasks: Sequence[str],
    fractions: Sequence[float],
    seeds: Sequence[int],
    changes: Mapping[str, Any],
) -> None:
    """protocol.toml and facts.json."""
    settings: dict[str, Any] = {
        "name": experiment,
        "fractions": list(fractions),
        "seeds": list(seeds),
        "tasks": list(tasks),
        "rows": [{"row": r, "selector": r.split("/")[0], "params": {}} for r in rows],
        "pool": {"dataset": "testbed:chain"},
        "protocol": {
            "reference": "random",
            "primary": "mean accuracy",
            "correction": "holm",
            "alpha": 0.05,
        },
    } | dict(changes)
    text = "".join(f"{json.dumps(key)} = {toml_text(value)}\n" for key, value in settings.items())
    (folder / "protocol.toml").write_text(text, encoding="utf-8")
    known = {"n_queries": 200, "n_C": 64, "n_I": 23, "correct_classes": list(CORRECT)}
    facts = {"arms": {"main": known, "random-errors": known}}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    """Small results folders: three rows that matter, two tasks, few items."""

    def make(**settings: Any) -> Path:
        small: dict[str, Any] = {
            "rows": ("base", "random", "length", "influence/combined", "full", "oracle"),
            "tasks": ("chain_core", "chain_far"),
            "items": 40,
            "pool_size": 120,
        }
        return fill_results(tmp_path / "results" / "quick", **(small | settings))

    return make


@pytest.fixture(scope="session")
def write_results() -> Callable[..., Path]:
    """The generator itself, for folders that outlive a test."""
    return fill_results


HOSTILE = (
    "<script>window.planted = 1</script>",
    '<img src="x" onerror="window.planted = 2">',
    "</script><script>window.planted = 3</script>",
    '<a href="javascript:window.planted = 4">look</a>',
    "{{7*7}} {% for x in y %}",
    "safe\u202egnp.exe\u202c \u2066and\u2069",
    '" autofocus onfocus="window.planted = 5',
    "' onmouseover='window.planted = 6",
    "<svg onload=window.planted=7><style>*{display:none}</style>",
    "</style></title></textarea><!--<script>",
    '<img src="http://planted.invalid/x.png"><iframe src="http://planted.invalid/"></iframe>',
    "line\u2028and\u2029end \x00\x07 &lt;b&gt; ]]> \\u003c",
    "<b>" + "9" * 100_000,
)
"""Texts that would run, ask, hide or reorder something if any of them became markup."""


def plant(folder: Path) -> Path:
    """Put a hostile text wherever a results folder of `fill_results` holds a free text."""

    def texts(n: int, first: str = "") -> list[str]:
        return [f"{first}{HOSTILE[i % len(HOSTILE)]}" for i in range(n)]

    def change(path: Path, **columns: Any) -> pd.DataFrame:
        frame = pd.read_parquet(path).assign(**columns)
        frame.to_parquet(path, index=False)
        return frame

    n = len(pd.read_parquet(folder / "pool.parquet"))
    ids = [f"{i} {text[:200]}" for i, text in enumerate(texts(n))]
    # No controls in names of classes: figures name them, and an SVG cannot hold such characters.
    classes = ["".join(c for c in text[:60] if c.isprintable()) for text in texts(n)]
    change(folder / "pool.parquet", id=ids, quality=classes)
    for path in sorted((folder / "selections").iterdir()):
        change(path, id=ids, score=np.arange(n) % 97 / 97)
    for path in sorted((folder / "samples").iterdir()):
        size = len(pd.read_parquet(path))
        items = [f"{i} {text[:200]}" for i, text in enumerate(texts(size))]
        found = change(path, item=items, response=texts(size, "r "), answer=texts(size))
    pool = pd.DataFrame({"id": ids, "prompt": texts(n), "response": texts(n, "c ")})
    quotes.kept_examples(pool, None).to_parquet(folder / quotes.examples_file("main"), index=False)
    asked = found[["task", "item"]].assign(question=texts(size, "q "), answer=texts(size))
    quotes.kept_questions(asked, None).to_parquet(folder / quotes.QUESTIONS, index=False)
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results in which every name and text is hostile, one cell failed with such a message."""
    folder = tmp_path_factory.mktemp("hostile") / "results"
    rows = ("base", "random", *HOSTILE[:7], "influence/combined", "full")
    error = {"stage": HOSTILE[0], "message": HOSTILE[2] + HOSTILE[1], "step": None}
    fill_results(
        folder,
        experiment=HOSTILE[0],
        rows=rows,
        tasks=("chain_core", HOSTILE[1]),
        items=26,
        pool_size=130,
        failures={f"{HOSTILE[0]}@0.5#1": error},
        protocol={"description": HOSTILE[10] + HOSTILE[4]},
    )
    return plant(folder)
