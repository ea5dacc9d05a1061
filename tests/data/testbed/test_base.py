import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.testbed import BASES, TASKS, PoolSpec, make_pool, make_task
from harness.data.testbed.base import (
    ALPHABET,
    CONTEXT,
    BaseSpec,
    _example,
    build_tokenizer,
    train_base,
)

MICRO = BaseSpec(layers=1, hidden=32, heads=1, steps=6, batch=4, learning_rate=1e-2, threads=1)


def silent(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    return iterable


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_base(MICRO, folder, silent)
    return folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "c=3,y=c*2,e=y+9;e?",
        "c=3 y=3*2=6 e=6+9=5 #### 5",
        " c=3  y ",
        "sort dcab?",
        "a####b # #",
        "a\nb ,b ?",
        ALPHABET,
    ],
)
def test_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_one_token_per_character_and_one_for_the_mark(tokenizer: Any) -> None:
    assert tokenizer.tokenize("e=5 #### 5") == ["e", "=", "5", " #### ", "5"]
    ids = tokenizer("a=1;a?")["input_ids"]
    assert len(ids) == 6
    assert tokenizer.convert_ids_to_tokens(ids) == list("a=1;a?")
    assert [len(tokenizer(c)["input_ids"]) for c in ALPHABET] == [1] * len(ALPHABET)


def test_no_special_tokens_are_added(tokenizer: Any) -> None:
    assert tokenizer.bos_token is None
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_prompt_and_response_can_be_encoded_apart(tokenizer: Any) -> None:
    rows = make_pool(PoolSpec(100, "random", 0)) + make_task(TASKS[1], 20, 0)
    for row in rows:
        apart = tokenizer(row["prompt"])["input_ids"] + tokenizer(row["response"])["input_ids"]
        assert apart == tokenizer(row["prompt"] + row["response"])["input_ids"]
        assert tokenizer.decode(apart) == row["prompt"] + row["response"]
        assert len(apart) + 1 <= CONTEXT // 2


def test_base_training_is_bitwise_deterministic(micro: Path, tmp_path: Path) -> None:
    log = train_base(MICRO, tmp_path / "again", silent)
    assert digest(tmp_path / "again") == digest(micro)
    assert log == json.loads((micro / "base_log.json").read_text())
    train_base(replace(MICRO, seed=1), tmp_path / "other", silent)
    assert digest(tmp_path / "other") != digest(micro)


def test_base_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train_base(replace(MICRO, steps=1), tmp_path, silent)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_base_lowers_its_loss_and_loads_everywhere(micro: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    losses = json.loads((micro / "base_log.json").read_text())["losses"]
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(micro)
    tokenizer = AutoTokenizer.from_pretrained(micro)
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert not model.generation_config.do_sample


def test_checkpoint_folder_gives_the_same_tokens_as_training_saw(
    micro: Path, tokenizer: Any
) -> None:
    """With a Qwen2 configuration beside it, another class may read the tokenizer's files."""
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(micro)
    for row in make_pool(PoolSpec(50, "random", 1)):
        text = row["prompt"] + row["response"]
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert saved.decode(saved(text)["input_ids"]) == text


def test_base_is_never_told_a_product(tokenizer: Any, verify) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt, response = _example(rng, 5, tokenizer)
        text = tokenizer.decode(prompt), tokenizer.decode(response[:-1])
        assert "*" not in text[0]
        assert verify(*text).steps_ok
        assert response[-1] == tokenizer.eos_token_id


def test_presets_have_heads_that_the_engine_runs() -> None:
    for spec in BASES.values():
        assert spec.hidden == 32 * spec.heads
