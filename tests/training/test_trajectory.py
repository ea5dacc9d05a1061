"""Warm-up runs: which examples and steps, weights and moments against bare torch, loading."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness import influence
from harness.data.pool import Pool
from harness.experiment.settings import TrainingRecipe
from harness.influence import CurvatureOptions
from harness.influence.layers import tracked_layers
from harness.running.workspace import load_model
from harness.selection.requests import Trajectory
from harness.training.train import example_order, train
from harness.training.trajectory import (
    kept_steps,
    load_trajectory,
    train_trajectory,
    trajectory_examples,
)

RECIPE = TrainingRecipe(learning_rate=3e-3, max_tokens=16, epochs=2, batch_size=4)
WARMUP = Trajectory(checkpoints=2, moments=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(2, 12)[None]).logits
    return out


def test_kept_steps_by_hand() -> None:
    assert kept_steps(8, 4) == (2, 4, 6, 8)
    assert kept_steps(7, 4) == (2, 4, 6, 7)
    assert kept_steps(80, 1) == (80,)
    assert kept_steps(2, 4) == (1, 2)


def test_the_examples_of_a_warm_up(pool: Pool) -> None:
    drawn = trajectory_examples(pool, Trajectory(share=0.4))
    assert len(drawn) == 4
    positions = [pool.ids.index(name) for name in drawn.ids]
    assert positions == sorted(positions)
    assert drawn.ids == trajectory_examples(pool, Trajectory(share=0.4)).ids
    assert drawn.ids != trajectory_examples(pool, Trajectory(share=0.4, seed=1)).ids
    assert len(trajectory_examples(pool, Trajectory(share=0.01, minimum=3))) == 3
    assert trajectory_examples(pool, Trajectory(share=0.01, minimum=30)) is pool
    assert trajectory_examples(pool, Trajectory()) is pool


@pytest.mark.parametrize("micro", [None, 2])
def test_checkpoints_equal_a_hand_written_loop(
    base: Path, pool: Pool, tmp_path: Path, micro: int | None
) -> None:
    """Oracle: bare torch with AdamW, 5 steps, looked at after steps 3 and 5."""
    recipe = RECIPE.changed(micro_batch=micro, weight_decay=0.1, max_grad_norm=1e9)
    log = train_trajectory(base, pool, recipe, WARMUP, 3, tmp_path)
    assert log.steps == 5
    found = load_trajectory(tmp_path, partial(load_model, base, "cpu"))
    assert [checkpoint.step for checkpoint in found] == [3, 5]
    rates = [3e-3 * (1 - step / 5) for step in range(5)]
    expected_rates = [np.mean(rates[:3]), np.mean(rates[3:])]
    assert [checkpoint.rate for checkpoint in found] == pytest.approx(expected_rates)
    order = example_order(
        pool, recipe, np.random.default_rng(np.random.SeedSequence(3, spawn_key=(0,)))
    )
    model = load_model(base, "cpu").train()
    decayed = [p for n, p in model.named_parameters() if "norm" not in n and "bias" not in n]
    plain = [p for n, p in model.named_parameters() if "norm" in n or "bias" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, count = torch.zeros(()), 0
        for p in order[4 * step : 4 * step + 4]:
            tokens = torch.tensor(pool.input_ids[p].astype(np.int64))
            out = model(tokens[None]).logits[0, 1:-1]
            total = total + torch.nn.functional.cross_entropy(out, tokens[2:], reduction="sum")
            count += len(tokens) - 2
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        if step + 1 in (3, 5):
            checkpoint = found[0 if step == 2 else 1]
            ours = dict(checkpoint.model().named_parameters())
            moments = checkpoint.moments()
            assert (moments.steps, moments.betas, moments.eps) == (step + 1, (0.9, 0.999), 1e-8)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(ours[name], parameter, atol=2e-6, rtol=1e-4)
            assert {n for n in ours if "proj" in n} == moments.first.keys() == moments.second.keys()
            state = {n: optimizer.state[p] for n, p in model.named_parameters()}
            for name, first in moments.first.items():
                torch.testing.assert_close(first, state[name]["exp_avg"], atol=1e-6, rtol=1e-3)
                torch.testing.assert_close(
                    moments.second[name], state[name]["exp_avg_sq"], atol=1e-8, rtol=1e-3
                )


def test_looking_on_changes_nothing(base: Path, pool: Pool, tmp_path: Path) -> None:
    """The run on the whole pool ends bit for bit where the reference checkpoint is."""
    train(base, pool, RECIPE, 7, tmp_path / "plain")
    train_trajectory(base, pool, RECIPE, WARMUP, 7, tmp_path / "watched")
    files = sorted(path.name for path in (tmp_path / "watched").iterdir())
    assert files == ["step-000003.safetensors", "step-000005.safetensors", "trajectory.json"]
    expected = load_file(tmp_path / "plain/model.safetensors")
    last = load_trajectory(tmp_path / "watched", partial(load_model, base, "cpu"))[-1].model()
    ours = dict(last.named_parameters())
    assert ours.keys() >= expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_epochs_take_the_place_of_the_recipes_budget(
    base: Path, pool: Pool, tmp_path: Path
) -> None:
    recipe = RECIPE.changed(budget="steps", steps=9)
    warmup = Trajectory(share=0.5, epochs=3.0, checkpoints=4)
    log = train_trajectory(base, pool, recipe, warmup, 0, tmp_path)
    assert (log.examples, log.steps) == (15, 4)
    found = load_trajectory(tmp_path, partial(load_model, base, "cpu"))
    assert [checkpoint.step for checkpoint in found] == [1, 2, 3, 4]
    assert not [n for n in load_file(tmp_path / "step-000001.safetensors") if "weight/" not in n]
    with pytest.raises(ValueError, match="holds no moments; expected a run with"):
        found[0].moments()


def test_adapters_of_a_lora_run(base: Path, pool: Pool, tmp_path: Path) -> None:
    """Only adapters are kept; loaded onto the base they are the model that was merged and saved."""
    recipe = RECIPE.changed(method="lora", lora_rank=2, learning_rate=3e-2)
    train(base, pool, recipe, 7, tmp_path / "plain")
    train_trajectory(base, pool, recipe, WARMUP, 7, tmp_path / "watched")
    kept = load_file(tmp_path / "watched/step-000005.safetensors")
    assert all("lora_" in name for name in kept)
    assert {name.partition("/")[0] for name in kept} == {"weight", "first", "second"}
    before = torch.get_rng_state()
    checkpoint = load_trajectory(tmp_path / "watched", partial(load_model, base, "cpu"))[-1]
    model = checkpoint.model()
    assert torch.equal(before, torch.get_rng_state())
    merged = load_model(tmp_path / "plain", "cpu")
    torch.testing.assert_close(logits(model), logits(merged), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(model), logits(load_model(base, "cpu")), atol=1e-2)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_scores_from_a_stored_run(base: Path, pool: Pool, tmp_path: Path, method: str) -> None:
    """A query that is also a pool example comes first for itself."""
    recipe = RECIPE.changed(method=method, lora_rank=2)
    train_trajectory(base, pool, recipe, WARMUP, 3, tmp_path)
    found = load_trajectory(tmp_path, partial(load_model, base, "cpu"))
    if method == "lora":  # adapters alone, which are all that the optimizer has moments of
        layers = tracked_layers(found[0].model())
        assert all("lora_" in layer.name for layer in layers)
        assert {name for layer in layers for name in layer.parameters()} == set(
            found[0].moments().first
        )
    options = CurvatureOptions(kind="identity", loss="mean")
    for scores in (influence.tracin_scores, influence.less_scores):
        assert scores(found, pool, pool.take([4]), options).argmax() == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, "share is 0.0; expected more than 0 and at most 1"),
        ({"share": 1.5}, "share is 1.5"),
        ({"checkpoints": 0}, "checkpoints is 0; expected at least 1"),
        ({"minimum": 0}, "minimum is 0"),
        ({"epochs": 0.0}, "epochs is 0.0; expected more than 0, or None"),
    ],
)
def test_impossible_runs_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectory(**values)  # type: ignore[arg-type]
