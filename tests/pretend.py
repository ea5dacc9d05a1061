"""Stand-ins, so that runs can be tested without training and without an engine.

`TOML` is an experiment on the testbed whose models and answers `build` makes up; `write_toy_files`
writes an experiment's own files around the made-up model of the conformance suite.
"""

import hashlib
import json

import numpy as np
import pandas as pd

from harness.data.pool import Pool
from harness.data.queries import Answers
from harness.running import workspace
from harness.selection import toy

TOML = """
name = "pretend"
[pool]
dataset = "testbed:chain"
size = 40
[model]
base = "testbed:tiny"
[train]
learning_rate = 1e-3
budget = "steps"
steps = 2
[evaluate]
tasks = ["chain_far", "chain_core"]
items = 20
engine = "hf"
[grid]
fractions = [0.5]
seeds = [0, 1]
[[selector]]
name = "random"
"""
TRAINED = {"steps": 2, "tokens": 10, "losses": [1.0, 0.5], "final_loss": 0.5}


def build(stage, store, job):
    """Build a stage: data sets and cheap stages for real, models and answers made up."""
    fake = FAKES.get(stage.kind)
    if fake is None:
        workspace.build(stage, store, lambda: job.provenance)
    else:
        store.make(stage, lambda folder: fake(stage, store, folder), lambda: job.provenance)


def _base(stage, store, folder):
    return {"parameters": 100}


def _checkpoint(stage, store, folder):
    (folder / "model.safetensors").write_bytes(stage.key.encode())
    return {"train": TRAINED}


def _answers(stage, store, folder):
    queries = Pool.load(store.folder(stage.parents["queryset"]))
    tokens, n = np.array([1], np.int32), len(queries)
    Answers((("a",),) * n, ((tokens,),) * n, np.zeros((n, 1), bool)).save(folder, queries.ids)
    return {}


def _samples(stage, store, folder):
    seed = int(hashlib.sha256(stage.key.encode()).hexdigest()[:8], 16)
    correct = np.random.default_rng(seed).random(20) < 0.5
    rows = {"task": stage.recipe.task, "item": [f"i{n}" for n in range(20)], "decode": 0}
    frame = pd.DataFrame({**rows, "correct": correct, "answer": "1", "response": "#### 1"})
    frame.assign(tokens=3).to_parquet(folder / "samples.parquet")
    return {"accuracy": float(correct.mean()), "engine_seconds": 0.0}


FAKES = {"base": _base, "checkpoint": _checkpoint, "answers": _answers, "samples": _samples}


def write_toy_files(folder):
    """Write base/, pool.jsonl, queries.jsonl and items.jsonl for an experiment's own files."""
    toy.models()[0].save_pretrained(folder / "base")
    toy.tokenizer().save_pretrained(folder / "base")
    files = {"items": [{"id": "i", "prompt": "1+1=?", "answer": "2"}]}
    for name, pool in (("pool", toy.make_pool()), ("queries", toy.make_queries().pool)):
        pairs = zip(pool.column("prompt"), pool.column("response"), strict=True)
        files[name] = [{"prompt": prompt, "response": response} for prompt, response in pairs]
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
