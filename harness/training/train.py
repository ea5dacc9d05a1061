"""The shared fine-tuner: one recipe for every subset, through transformers' Trainer.

Three things are ours, because comparisons between selectors stand on them. The order of the
examples is drawn here from the cell's seed, over all epochs at once, and the Trainer only reads it
off. The budget can be counted in examples, tokens or steps. A run that goes wrong (NaN, divergence,
nothing to train on) raises instead of leaving a checkpoint behind.

The loss is the mean over all response tokens of the batch (not the mean of example means), so a
long response weighs more than a short one; micro-batches do not change it. Two runs with the same
seed give bitwise equal weights on a CPU. On a GPU attention's backward pass may differ in the last
bits.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool, collate
from harness.experiment.progress import Progress, no_progress
from harness.experiment.settings import TrainingRecipe
from harness.training.checkpoint import save
from harness.training.determinism import isolated
from harness.training.divergence import DivergenceMonitor, TrainingDiverged

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


class StepEnd(Protocol):
    """Called when a step is done, with the weights and moments that it left behind."""

    def __call__(self, step: int, steps: int, rate: float, model: Any, optimizer: Any) -> None:
        """`step` of `steps`, from 1; `rate` is the learning rate that the step used."""
        ...


@dataclass(frozen=True)
class TrainLog:
    """What a training run did; written as `train_log.json` beside the weights.

    `tokens` counts prompt and response tokens without padding, over all epochs; `losses` has one
    value per step; `final_loss` is the mean over the last tenth of the steps.
    """

    steps: int
    examples: int
    tokens: int
    trainable_tokens: int
    truncated: float
    final_loss: float
    learning_rate_first: float
    learning_rate_last: float
    seconds: float
    losses: tuple[float, ...]

    def save(self, folder: Path) -> None:
        """Write `train_log.json` into `folder`."""
        (folder / "train_log.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainLog:
        """Read what `save` wrote."""
        fields = json.loads((folder / "train_log.json").read_text())
        return cls(**{**fields, "losses": tuple(fields["losses"])})


def train(
    model_dir: Path,
    subset: Pool,
    recipe: TrainingRecipe,
    seed: int | np.random.SeedSequence,
    out: Path,
    progress: Progress = no_progress,
    *,
    device: str | None = None,
    step_end: StepEnd | None = None,
) -> TrainLog:
    """Fine-tune the model in `model_dir` on `subset`; leave a full model folder in `out`.

    `step_end` may look at every step but must change nothing. `device` is "cpu" or "cuda", by
    default whatever is there. Raises ValueError where there is nothing to train on and
    TrainingDiverged (with `.step`) where the loss says so.
    """
    import torch

    check_subset(subset, recipe)
    started = time.perf_counter()
    order_seed, torch_seed = _children(seed)
    order = example_order(subset, recipe, np.random.default_rng(order_seed))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    with isolated(int(torch_seed.generate_state(1)[0]), recipe.threads, device):
        model = _load(model_dir, recipe)
        monitor = DivergenceMonitor(
            start_steps=math.ceil(32 / recipe.batch_size), vocabulary=_vocabulary(model)
        )
        rates: list[float] = []
        trainer = _trainer(model, subset, order, recipe, out, device, monitor, rates, progress)
        if step_end is not None:
            trainer.add_callback(_calling(step_end, rates))
        trainer.train()
        monitor.settle()
        _check_weights(model, len(monitor.losses))
        save(model, model_dir, out, recipe.method, recipe.precision)
        del model, trainer
        _release(device)
    lengths = np.array([len(tokens) for tokens in subset.input_ids])
    tail = monitor.losses[-max(1, len(monitor.losses) // 10) :]
    log = TrainLog(
        steps=len(monitor.losses),
        examples=len(order),
        tokens=int(lengths[order].sum()),
        trainable_tokens=int(subset.response_lengths[order].sum()),
        truncated=float(np.mean(subset.truncated)),
        final_loss=float(np.mean(tail)),
        learning_rate_first=rates[0],
        learning_rate_last=rates[-1],
        seconds=time.perf_counter() - started,
        losses=tuple(monitor.losses),
    )
    log.save(out)
    return log


def check_subset(subset: Pool, recipe: TrainingRecipe) -> None:
    """ValueError unless every example has something to learn and fits the token limit."""
    if len(subset) == 0:
        raise ValueError("subset has 0 examples; expected at least one to train on")
    for what, wrong, expected in (
        ("no trainable token", subset.response_lengths == 0, "at least one label that is not -100"),
        (
            "too many tokens",
            np.array([len(t) > recipe.max_tokens for t in subset.input_ids]),
            f"at most max_tokens = {recipe.max_tokens}",
        ),
    ):
        where = np.flatnonzero(wrong)
        if len(where):
            raise ValueError(
                f"subset example {subset.ids[where[0]]!r} has {what} "
                f"({len(where)} of {len(subset)} like it); expected {expected}"
            )


def example_order(
    subset: Pool, recipe: TrainingRecipe, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions in training order over all epochs; each epoch is a fresh permutation.

    A tokens budget ends with the example that reaches it, so it is overshot by less than one
    example.
    """
    n = len(subset)
    if recipe.budget == "tokens":
        assert recipe.tokens is not None
        lengths = np.array([len(tokens) for tokens in subset.input_ids], dtype=np.int64)
        epochs = math.ceil(recipe.tokens / int(lengths.sum()))
        order = np.concatenate([rng.permutation(n) for _ in range(epochs)])
        seen = np.cumsum(lengths[order])
        return order[: int(np.searchsorted(seen, recipe.tokens)) + 1].astype(np.int64)
    if recipe.budget == "steps":
        assert recipe.steps is not None
        examples = recipe.steps * recipe.batch_size
    else:
        examples = max(1, round(recipe.epochs * n))
    epochs = math.ceil(examples / n)
    order = np.concatenate([rng.permutation(n) for _ in range(epochs)])
    return order[:examples].astype(np.int64)


def _children(
    seed: int | np.random.SeedSequence,
) -> tuple[np.random.SeedSequence, np.random.SeedSequence]:
    """Seeds of the order and of torch; unlike `spawn`, asking twice gives the same two."""
    parent = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    order, initialisation = (
        np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, child))
        for child in (0, 1)
    )
    return order, initialisation


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _load(model_dir: Path, recipe: TrainingRecipe) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Full fine-tuning keeps float32 master weights: in bfloat16 small updates round to nothing.
    frozen = recipe.method == "lora" and recipe.precision == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=torch.bfloat16 if frozen else torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
    )
    if recipe.method == "lora":
        return adapted(model, recipe)
    return model


def adapted(model: Any, recipe: TrainingRecipe) -> Any:
    """The model with fresh LoRA adapters on every linear layer, the rest frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            'recipe method = "lora" needs the package peft; '
            "install it with: pip install 'cotsieve[lora]'"
        ) from error
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _trainer(
    model: Any,
    subset: Pool,
    order: npt.NDArray[np.int64],
    recipe: TrainingRecipe,
    out: Path,
    device: str,
    monitor: DivergenceMonitor,
    rates: list[float],
    progress: Progress,
) -> Trainer:
    """A Trainer that reads `order` off, reports to `monitor` and saves nothing itself."""
    from torch.utils.data import DataLoader, SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback

    positions = order.tolist()
    pad_id = getattr(model.config, "pad_token_id", None) or 0
    steps = math.ceil(len(positions) / recipe.batch_size)
    micro = recipe.micro_batch or recipe.batch_size
    monitor.every = 1 if device == "cpu" else 16

    def batch(rows: list[int]) -> dict[str, torch.Tensor]:
        made = collate(subset, rows, pad_id)
        # Padding stands on the right, so under a causal mask no trained position can see it:
        # without a mask of its own the attention takes its fastest kernel.
        del made["attention_mask"]
        return made

    class Cell(Trainer):  # type: ignore[misc]
        """Trainer with our order and our monitor over the loss."""

        micro_losses: list[torch.Tensor]

        def get_train_dataloader(self) -> Any:
            return DataLoader(
                positions,
                batch_size=micro,
                sampler=SequentialSampler(positions),
                collate_fn=batch,
            )

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            self.micro_losses.append(loss)
            if self.accelerator.sync_gradients:
                monitor.add(sum(self.micro_losses[1:], self.micro_losses[0]))
                self.micro_losses = []
            return loss

    class Rates(TrainerCallback):  # type: ignore[misc]
        """Notes the learning rate of every step and moves the progress bar."""

        def __init__(self) -> None:
            self.bar = iter(progress(range(steps), "training", steps))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            rates.append(float(kw["optimizer"].param_groups[0]["lr"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            next(self.bar, None)

        def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            next(self.bar, None)  # lets the bar close

    trainer = Cell(model=model, args=_arguments(recipe, steps, out, device), callbacks=[Rates()])
    trainer.remove_callback(PrinterCallback)
    trainer.micro_losses = []
    # A new accelerator holds nothing yet; freeing it would only cost a full garbage collection.
    trainer.accelerator.free_memory = lambda *objects: list(objects)
    return trainer


def _calling(step_end: StepEnd, rates: list[float]) -> Any:
    from transformers import TrainerCallback

    class Calling(TrainerCallback):  # type: ignore[misc]
        """Hands every finished step on."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            step_end(state.global_step, state.max_steps, rates[-1], kw["model"], kw["optimizer"])

    return Calling()


def _arguments(recipe: TrainingRecipe, steps: int, out: Path, device: str) -> Any:
    from transformers import TrainingArguments

    warmup = math.ceil(recipe.warmup_ratio * steps)
    constant = "constant_with_warmup" if warmup else "constant"
    micro = recipe.micro_batch or recipe.batch_size
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=constant if recipe.schedule == "constant" else recipe.schedule,
        warmup_steps=warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=recipe.precision == "bfloat16",
        gradient_checkpointing=recipe.gradient_checkpointing,
        use_cpu=device == "cpu",
        # Nothing is logged or saved on the way: the monitor keeps the losses, `train` saves.
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    _ = arguments.device  # counts the GPUs now, so that the next line is not undone
    arguments._n_gpu = min(arguments._n_gpu, 1)  # a cell has one device; no DataParallel
    return arguments


def _check_weights(model: Any, step: int) -> None:
    """The last update is seen by no loss: look at the weights themselves."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            raise TrainingDiverged(step, f"weight {name} is not finite")


def _release(device: str) -> None:
    """Give GPU memory back now: the Trainer's reference cycles would keep it for the next cell."""
    if device == "cpu":
        return
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()
