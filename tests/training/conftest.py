"""A saved model to train and a pool to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.pool import IGNORED, Pool

VOCABULARY = 32


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, make_qwen: Any) -> Path:
    """A saved random Qwen2 with a stand-in for tokenizer files."""
    folder = tmp_path_factory.mktemp("base")
    tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    make_qwen(vocab_size=VOCABULARY, tie_word_embeddings=True, **tokens).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"made": "up"}')
    return folder


@pytest.fixture
def pool() -> Pool:
    """Ten examples of 6 to 10 tokens with a prompt of 2."""
    rng = np.random.default_rng(5)
    tokens = [rng.integers(2, VOCABULARY, int(n)).astype(np.int32) for n in rng.integers(6, 11, 10)]
    labels = [np.concatenate([np.full(2, IGNORED, np.int32), t[2:]]) for t in tokens]
    return Pool(tuple(f"e{i}" for i in range(10)), tuple(tokens), tuple(labels))
