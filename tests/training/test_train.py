"""The fine-tuner: order, budgets, refusals, divergence, bitwise repeatability, nothing leaks."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.data.pool import Pool
from harness.experiment.settings import TrainingRecipe
from harness.training.divergence import DivergenceMonitor
from harness.training.train import TrainingDiverged, TrainLog, check_subset, example_order, train

RECIPE = TrainingRecipe(learning_rate=3e-3, max_tokens=16, epochs=2, batch_size=4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_folder_is_complete_and_the_log_adds_up(base: Path, pool: Pool, tmp_path: Path) -> None:
    cut = replace(pool, truncated=(True,) * 2 + (False,) * 8)
    log = train(base, cut, RECIPE, 0, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "train_log.json",
    }
    assert json.loads((tmp_path / "out/config.json").read_text())["use_cache"] is True
    assert (log.steps, log.examples, log.truncated) == (5, 20, 0.2)
    assert log.tokens == 2 * sum(len(t) for t in pool.input_ids)
    assert log.trainable_tokens == 2 * int(pool.response_lengths.sum())
    assert log.learning_rate_first == pytest.approx(3e-3)
    assert log.learning_rate_last == pytest.approx(3e-3 / 5)
    assert len(log.losses) == 5
    assert log.final_loss == log.losses[-1]
    assert TrainLog.load(tmp_path / "out") == log


@pytest.mark.parametrize("micro", [None, 2])
def test_equals_a_hand_written_loop(
    base: Path, pool: Pool, tmp_path: Path, micro: int | None
) -> None:
    """Oracle: bare torch, one example at a time, summed token losses over their number."""
    from transformers import AutoModelForCausalLM

    recipe = RECIPE.changed(weight_decay=0.1, micro_batch=micro)
    log = train(base, pool, recipe, 3, tmp_path / "out")
    seed = np.random.SeedSequence(3, spawn_key=(0,))
    order = example_order(pool, recipe, np.random.default_rng(seed))
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").train()
    decayed = [p for n, p in model.named_parameters() if "norm" not in n and "bias" not in n]
    plain = [p for n, p in model.named_parameters() if "norm" in n or "bias" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    losses = []
    for step, start in enumerate(range(0, len(order), 4)):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 5)
        total, count = torch.zeros(()), 0
        for p in order[start : start + 4]:
            tokens = torch.tensor(pool.input_ids[p].astype(np.int64))
            logits = model(tokens[None]).logits[0, 1:-1]
            total = total + torch.nn.functional.cross_entropy(logits, tokens[2:], reduction="sum")
            count += len(tokens) - 2
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    np.testing.assert_allclose(log.losses, losses, rtol=1e-4)
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=2e-5)


def test_same_seed_same_bits_and_other_seed_other_weights(
    base: Path, pool: Pool, tmp_path: Path
) -> None:
    root = np.random.SeedSequence(7)
    train(base, pool, RECIPE, root, tmp_path / "a")
    train(base, pool, RECIPE.changed(precision="bfloat16"), 1, tmp_path / "between")
    train(base, pool, RECIPE, root, tmp_path / "b")
    train(base, pool, RECIPE, 8, tmp_path / "c")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_globals_are_left_alone(base: Path, pool: Pool, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState, PartialState
    from transformers.utils import logging

    random.seed(1)
    torch.set_num_threads(2)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    torch_before, bars = torch.get_rng_state(), logging.is_progress_bar_enabled()
    shared = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    train(base, pool, RECIPE, 0, tmp_path / "out")
    after = (random.getstate(), np.random.get_state()[1].tolist())
    assert after == before
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert (PartialState._shared_state, AcceleratorState._shared_state) == shared
    assert logging.is_progress_bar_enabled() is bars
    torch.set_num_threads(1)


def test_progress_is_told_of_every_step(base: Path, pool: Pool, tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(iterable, description="", total=None):  # type: ignore[no-untyped-def]
        assert total == 5
        for item in iterable:
            yield item
            seen.append(item)

    train(base, pool, RECIPE, 0, tmp_path / "out", progress)
    assert seen == [0, 1, 2, 3, 4]


def test_order_covers_each_epoch_once(pool: Pool) -> None:
    order = example_order(pool, RECIPE.changed(epochs=2.5), np.random.default_rng(0))
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20])
    assert len(set(order[20:])) == 5


def test_budgets_in_steps_and_tokens(pool: Pool) -> None:
    rng = np.random.default_rng(0)
    steps = RECIPE.changed(budget="steps", steps=7)
    assert len(example_order(pool, steps, rng)) == 28
    tokens = RECIPE.changed(budget="tokens", tokens=100)
    lengths = np.array([len(t) for t in pool.input_ids])
    order = example_order(pool, tokens, rng)
    assert lengths[order].sum() >= 100 > lengths[order[:-1]].sum()
    whole = RECIPE.changed(budget="tokens", tokens=int(lengths.sum()))
    assert sorted(example_order(pool, whole, rng)) == list(range(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "steps"}, "budget = 'steps' with steps = None; expected steps exactly"),
        ({"tokens": 5}, "budget = 'examples' with tokens = 5; expected tokens exactly"),
        ({"method": "adapter"}, "(?s)method.*'full' or 'lora'.*'adapter'"),
        ({"batch_size": 0}, "(?s)batch_size.*greater than or equal to 1"),
        ({"micro_batch": 3}, "micro_batch = 3 with batch_size = 4; expected a divisor"),
    ],
)
def test_recipe_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RECIPE.changed(**change)  # type: ignore[arg-type]


def test_refuses_what_cannot_be_trained_on(pool: Pool) -> None:
    with pytest.raises(ValueError, match="subset has 0 examples"):
        check_subset(pool.take([]), RECIPE)
    masked = replace(pool, labels=(*pool.labels[:9], np.full_like(pool.labels[9], -100)))
    with pytest.raises(ValueError, match=r"'e9' has no trainable token \(1 of 10"):
        check_subset(masked, RECIPE)
    with pytest.raises(ValueError, match="too many tokens"):
        check_subset(pool, RECIPE.changed(max_tokens=5))


def test_watch_names_the_step_of_a_nan_even_when_it_looks_late() -> None:
    watch = DivergenceMonitor(start_steps=1, vocabulary=100, every=4)
    for value in (1.0, 2.0, math.nan):
        watch.add(torch.tensor(value))
    with pytest.raises(TrainingDiverged, match="nan") as caught:
        watch.add(torch.tensor(1.0))
    assert caught.value.step == 3


@pytest.mark.parametrize(
    ("start", "level", "bad"),
    [
        (2.0, 4.7, True),  # worse than uniform over 100 tokens, log(100) = 4.605
        (2.0, 4.5, False),
        (1.0, 3.1, True),  # three times the start
        (1.0, 2.9, False),
        (0.1, 1.0, False),  # the margin of one nat
        (0.1, 1.2, True),
        (5.0, 5.9, False),  # began worse than uniform: only the margin counts
        (5.0, 6.1, True),
    ],
)
def test_watch_rule(start: float, level: float, bad: bool) -> None:
    watch = DivergenceMonitor(start_steps=1, vocabulary=100)
    steps = [start, *[level] * 7, start, *[level] * 7]  # never eight in a row
    for value in steps:
        watch.add(torch.tensor(value))
    if not bad:
        watch.add(torch.tensor(level))
        return
    with pytest.raises(TrainingDiverged, match="above") as caught:
        watch.add(torch.tensor(level))
    assert caught.value.step == 17


def test_divergence_stops_the_run(base: Path, pool: Pool, tmp_path: Path) -> None:
    # Weights of 1e20: products overflow, whatever the order in which a machine adds.
    wild = RECIPE.changed(learning_rate=1e20, epochs=40, max_grad_norm=1e9, schedule="constant")
    with pytest.raises(TrainingDiverged) as caught:
        train(base, pool, wild, 0, tmp_path / "out")
    assert 1 <= caught.value.step < 100
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_bfloat16_checkpoint_is_bfloat16(base: Path, pool: Pool, tmp_path: Path) -> None:
    log = train(base, pool, RECIPE.changed(precision="bfloat16"), 0, tmp_path / "out")
    assert {w.dtype for w in weights(tmp_path / "out").values()} == {torch.bfloat16}
    exact = train(base, pool, RECIPE, 0, tmp_path / "exact")
    np.testing.assert_allclose(log.losses, exact.losses, rtol=0.02)


def test_lora_is_merged_into_a_full_model(base: Path, pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = RECIPE.changed(method="lora", lora_rank=2, learning_rate=1e-2)
    train(base, pool, recipe, 0, tmp_path / "a")
    train(base, pool, recipe, 0, tmp_path / "b")
    before, after = weights(base), weights(tmp_path / "a")
    assert before.keys() == after.keys()
    assert same(after, weights(tmp_path / "b"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if n.endswith("proj.weight")}
    change = (
        after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    )
    assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) == 2
    # The adapter by itself, which an engine on the base model serves: the same change, by hand.
    (found,) = (tmp_path / "a" / "adapter").glob("*.safetensors")
    adapter = load_file(found)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    product = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(product * recipe.lora_alpha / recipe.lora_rank, change)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / run / "adapter").iterdir()}
        for run in "ab"
    )
    assert ours == theirs
    assert str(base.parent).encode() not in b"".join(ours.values())


def test_lora_without_peft_names_the_extra(
    base: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"cotsieve\[lora\]"):
        train(base, pool, RECIPE.changed(method="lora"), 0, tmp_path / "out")
