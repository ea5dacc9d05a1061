"""What is measured: a model, a pool and queries, made once and kept on disk for every engine.

A prepared workload is a folder: `model/` (weights, config and tokenizer in the Hugging Face
layout), `pool/` and `queries/`. Tokenised once: every engine gets exactly these tokens.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.items import numbered_lines
from harness.data.pool import IGNORED, Pool
from harness.experiment.stage import Recipe, Stage
from harness.experiment.store import Store
from harness.running.recipes import BaseModelRecipe, TokenizerRecipe
from harness.running.workspace import build

PERPLEXITY = "perplexity"
"""Measured beside the engines: one forward pass over the pool, the unit of their costs."""
WARM_UP = (8, 2)
"""Examples of the pool and queries in the first, untimed run."""
LONG = 4096
"""Tokens per example from which exact scores are costly: they take seconds per example and
activations that do not fit, so that attention is recomputed and only our scores are checked."""
DATA, TOKENIZER = "COTSIEVE_REAL_DATA", "COTSIEVE_REAL_TOKENIZER"


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model with random weights and tied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int | None = None  # None: the tokenizer's, rounded up to a multiple of 64


@dataclass(frozen=True)
class Workload:
    """`batch_size` examples per batch in every engine; `shape` None: the testbed's base model.

    `max_tokens`: examples are truncated to it; for `random` workloads, their exact length. Those
    also have a folder `warm`: one layer of the same width, with a narrower MLP, and a few examples.
    """

    name: str
    pool: int
    queries: int
    max_tokens: int
    batch_size: int
    shape: Shape | None = None
    random: bool = False
    device: str = "cpu"
    dtype: str = "float32"


def _random_on_gpu(name: str, shape: Shape, length: int) -> Workload:
    """As many tokens whatever the length of an example."""
    return Workload(
        f"{name}-{length // 1024}k",
        pool=256 * 1024 // length,
        queries=16 * 1024 // length,
        max_tokens=length,
        batch_size=16 * 1024 // length,
        shape=shape,
        random=True,
        device="cuda",
        dtype="bfloat16",
    )


_HALF_BILLION = Shape(896, 4864, 24, 14, 2, vocabulary=151936)
_ONE_AND_A_HALF = Shape(1536, 8960, 28, 12, 2, vocabulary=151936)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("testbed", pool=768, queries=64, max_tokens=256, batch_size=64),
        # With a vocabulary of 50,000, a third of the weights are in the body.
        Workload(
            "qwen2-10m",
            pool=512,
            queries=64,
            max_tokens=256,
            batch_size=16,
            shape=Shape(hidden=128, intermediate=512, layers=14, heads=4, key_value_heads=2),
        ),
        *(_random_on_gpu("qwen2.5-0.5b", _HALF_BILLION, length) for length in (1024, 8192)),
        *(_random_on_gpu("qwen2.5-1.5b", _ONE_AND_A_HALF, length) for length in (1024, 8192)),
    )
}


@dataclass(frozen=True)
class WorkloadRecipe(Recipe):
    """A prepared workload; `sources` are the folders of the user that it reads."""

    kind = "bench"
    version = 3
    workload: Workload
    sources: tuple[str, ...]


def prepare(workload: Workload, store: Store) -> Path:
    """The folder of a prepared workload; ValueError where it needs data that are not there."""
    sources: tuple[str, ...] = ()
    if workload.shape is not None and not workload.random:
        sources = tuple(str(folder_of(name, workload.name)) for name in (DATA, TOKENIZER))
    stage = Stage(WorkloadRecipe(workload, sources), f"workload {workload.name}")
    return store.make(stage, lambda folder: _build(workload, store, folder)).folder


def folder_of(variable: str, workload: str) -> Path:
    """The folder that an environment variable names."""
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        files = "gsm8k_train.jsonl and gsm8k_test.jsonl" if variable == DATA else "tokenizer.json"
        raise ValueError(
            f"workload {workload!r}: {variable} is {value!r}; expected a folder with {files}"
        )
    return Path(value)


def load(folder: Path) -> tuple[Pool, Pool]:
    """Pool and queries of a prepared workload."""
    return Pool.load(folder / "pool"), Pool.load(folder / "queries")


def load_model(folder: Path, workload: Workload) -> Any:
    """The model on its device, with the attention kernel that transformers chooses."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, workload.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    return model.to(workload.device).eval()


def _build(workload: Workload, store: Store, folder: Path) -> dict[str, Any]:
    if workload.shape is None:
        pool, queries = _testbed(workload, store, folder / "model")
    elif workload.random:
        pool, queries = _random(workload, workload.shape, folder / "model")
        _warm(workload, workload.shape, folder / "warm")
    else:
        pool, queries = _real(workload, workload.shape, folder / "model")
    _save(folder, pool, queries)
    return {"tokens": int(sum(len(tokens) for tokens in pool.input_ids))}


def _save(folder: Path, pool: Pool, queries: Pool) -> None:
    for name, examples in (("pool", pool), ("queries", queries)):
        (folder / name).mkdir()
        examples.save(folder / name)


def _testbed(workload: Workload, store: Store, folder: Path) -> tuple[Pool, Pool]:
    from transformers import AutoTokenizer

    from harness.data import testbed

    tokenizer_stage = Stage(TokenizerRecipe(), "tokenizer")
    build(tokenizer_stage, store)
    parents = {"tokenizer": tokenizer_stage}
    base = build(Stage(BaseModelRecipe(testbed.BASES["small"]), "base model", parents), store)
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("meta.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pool = testbed.make_pool(testbed.PoolSpec(workload.pool))
    queries = testbed.make_queries(workload.queries, 0)
    return _tokenised(pool, tokenizer, workload), _tokenised(queries, tokenizer, workload)


def _real(workload: Workload, shape: Shape, folder: Path) -> tuple[Pool, Pool]:
    """GSM8K, spread evenly over the files, under a real tokenizer."""
    from transformers import AutoTokenizer

    data, source = (folder_of(name, workload.name) for name in (DATA, TOKENIZER))
    tokenizer = AutoTokenizer.from_pretrained(source)
    _save_random(shape, len(tokenizer), workload, folder)
    tokenizer.save_pretrained(folder)
    pools = []
    for name, count in (("train", workload.pool), ("test", workload.queries)):
        lines = [line for _, line in numbered_lines(data / f"gsm8k_{name}.jsonl")]
        chosen = lines[:: len(lines) // count][:count]
        rows = [
            {"id": f"{name}{i}", "prompt": f"{row['question']}\n", "response": row["answer"]}
            for i, row in enumerate(map(json.loads, chosen))
        ]
        pools.append(_tokenised(rows, tokenizer, workload))
    return pools[0], pools[1]


def _random(workload: Workload, shape: Shape, folder: Path) -> tuple[Pool, Pool]:
    """Random tokens with Zipf's frequencies, a quarter of each example a prompt, all of one
    length."""
    from harness.data.testbed import build_tokenizer

    _save_random(shape, 0, workload, folder)
    build_tokenizer(folder)  # required by bergson, which does not use it
    rng = np.random.default_rng(0)
    assert shape.vocabulary is not None
    probabilities = 1 / np.arange(1, shape.vocabulary + 1)
    probabilities /= probabilities.sum()
    pools = []
    for prefix, count in (("d", workload.pool), ("q", workload.queries)):
        size = (count, workload.max_tokens)
        tokens = rng.choice(shape.vocabulary, size, p=probabilities).astype(np.int32)
        labels = tokens.copy()
        labels[:, : workload.max_tokens // 4] = IGNORED
        pools.append(Pool(tuple(f"{prefix}{i}" for i in range(count)), (*tokens,), (*labels,)))
    return pools[0], pools[1]


def _warm(workload: Workload, shape: Shape, folder: Path) -> None:
    """What a first, untimed run sees: the same kernels at little cost."""
    pool, queries = WARM_UP
    small = replace(shape, layers=1, intermediate=2 * shape.hidden)
    few = replace(workload, pool=pool, queries=queries, shape=small)
    _save(folder, *_random(few, small, folder / "model"))


def _save_random(shape: Shape, tokens: int, workload: Workload, folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary or -(-tokens // 64) * 64,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=workload.max_tokens,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), torch.device(workload.device):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    model.to(getattr(torch, workload.dtype)).save_pretrained(folder)


def _tokenised(rows: list[Any], tokenizer: Any, workload: Workload) -> Pool:
    from harness.data.dataset import Report, tokenise
    from harness.experiment.settings import DataConfig

    config = DataConfig(dataset="testbed:", id="id", template="{prompt}")  # rows are in memory
    report = Report(workload.name, rows=len(rows))
    return tokenise(rows, config, tokenizer, workload.max_tokens, report)
