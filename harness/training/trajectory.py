"""A training run that leaves checkpoints on its way: weights, learning rates, Adam's moments.

TracIn and LESS look along such a run instead of at one model. It is the shared fine-tuner with the
experiment's recipe; looking on changes nothing, so the run on the whole pool ends in the very
weights of the reference checkpoint. Kept are the weights that were trained (of LoRA the adapters)
and, where wanted, the moments of the linear layers, which are what influence tracks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.pool import Pool
from harness.experiment.progress import Progress, no_progress
from harness.experiment.settings import TrainingRecipe
from harness.selection.requests import Trajectory
from harness.training.train import TrainLog, adapted, train

if TYPE_CHECKING:
    from torch import Tensor

    from harness.influence import Checkpoint, Moments

HEAD = "trajectory.json"


def train_trajectory(
    model_dir: Path,
    pool: Pool,
    recipe: TrainingRecipe,
    run: Trajectory,
    seed: int | np.random.SeedSequence,
    out: Path,
    progress: Progress = no_progress,
    *,
    device: str | None = None,
) -> TrainLog:
    """Train on a part of the pool; leave `trajectory.json` and the checkpoints in `out`.

    Errors are those of `train`.
    """
    if run.epochs is not None:
        recipe = recipe.changed(budget="examples", epochs=run.epochs, steps=None, tokens=None)
    out.mkdir(parents=True, exist_ok=True)
    recorder = _Recorder(out, run)
    examples = trajectory_examples(pool, run)
    scratch = out / "run"
    log = train(
        model_dir,
        examples,
        recipe,
        seed,
        scratch,
        progress,
        device=device,
        step_end=recorder.step_end,
    )
    shutil.rmtree(scratch)  # the last checkpoint holds the same weights
    head = {"recipe": recipe.model_dump(), "checkpoints": recorder.entries}
    (out / HEAD).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    return log


def trajectory_examples(pool: Pool, run: Trajectory) -> Pool:
    """The examples that are trained on, in pool order."""
    size = min(len(pool), max(run.minimum, round(run.share * len(pool))))
    if size == len(pool):
        return pool
    chosen = np.random.default_rng([run.seed, 102]).choice(len(pool), size, replace=False)
    return pool.take(np.sort(chosen))


def kept_steps(steps: int, checkpoints: int) -> tuple[int, ...]:
    """Steps, counted from 1, after which a checkpoint is kept: equally spaced, the last included.

    A run of fewer steps than `checkpoints` keeps every step.
    """
    return tuple(sorted({-(-steps * k // checkpoints) for k in range(1, checkpoints + 1)}))


@dataclass
class _Recorder:
    """Writes the checkpoints of a run while it goes on."""

    out: Path
    run: Trajectory
    entries: list[dict[str, Any]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def step_end(self, step: int, steps: int, rate: float, model: Any, optimizer: Any) -> None:
        """Keep this step, if it is one of those to keep."""
        from safetensors.torch import save_file

        self.rates.append(rate)
        if step not in kept_steps(steps, self.run.checkpoints):
            return
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        tensors = {f"weight/{name}": parameter.detach() for name, parameter in trained.items()}
        if self.run.moments:
            for name in _in_linear_layers(model) & trained.keys():
                state = optimizer.state[trained[name]]
                tensors[f"first/{name}"] = state["exp_avg"]
                tensors[f"second/{name}"] = state["exp_avg_sq"]
        file = f"step-{step:06d}.safetensors"
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, self.out / file)
        group = optimizer.param_groups[0]
        self.entries.append(
            {
                "step": step,
                "rate": float(np.mean(self.rates)),
                "last_rate": rate,
                "betas": [float(beta) for beta in group["betas"]],
                "eps": float(group["eps"]),
                "file": file,
            }
        )
        self.rates = []


def _in_linear_layers(model: Any) -> set[str]:
    """Names of the parameters of linear layers, without the output layer."""
    from torch import nn

    head = model.get_output_embeddings()
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
        for key, _ in module.named_parameters(recurse=False)
    }


def load_trajectory(folder: Path, base: Callable[[], Any]) -> tuple[Checkpoint, ...]:
    """What `train_trajectory` left in `folder`, in order of steps; nothing is loaded yet.

    `base()` loads the model that the run began with, for gradients (float32, eager attention).
    """
    from harness.influence import Checkpoint

    head: dict[str, Any] = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    recipe = TrainingRecipe(**head["recipe"])
    return tuple(
        Checkpoint(
            step=entry["step"],
            rate=entry["rate"],
            model=partial(_model, folder / entry["file"], base, recipe),
            moments=partial(_moments, folder / entry["file"], entry),
        )
        for entry in head["checkpoints"]
    )


def _model(file: Path, base: Callable[[], Any], recipe: TrainingRecipe) -> Any:
    """The base with the weights of one checkpoint; with LoRA, adapters beside frozen weights."""
    import torch

    model = base()
    if recipe.method == "lora":
        with torch.random.fork_rng(devices=[]):  # adapters are drawn before they are filled
            model = adapted(model, recipe).eval()
    weights = _part(file, "weight")
    parameters = dict(model.named_parameters())
    missing = sorted(weights.keys() - parameters.keys())
    if missing:
        raise ValueError(f"{file}: holds {missing[:3]}, which the base model has not")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return model


def _moments(file: Path, entry: dict[str, Any]) -> Moments:
    from harness.influence import Moments

    first, second = _part(file, "first"), _part(file, "second")
    if not first:
        raise ValueError(f"{file} holds no moments; expected a run with moments = true")
    return Moments(first, second, entry["step"], tuple(entry["betas"]), entry["eps"])


def _part(file: Path, part: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {
            name.partition("/")[2]: tensors.get_tensor(name)
            for name in tensors.keys()  # noqa: SIM118 - not a dict
            if name.startswith(f"{part}/")
        }
