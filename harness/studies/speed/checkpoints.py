"""What the evaluation bench has answered: one base model, perturbed by a seed, and its tasks.

The stages are those of a run: the same kinds, inputs and keys of their content.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data import testbed
from harness.evaluation.benchmarks import task_digest
from harness.evaluation.environment import engine_version
from harness.experiment.stage import Stage
from harness.experiment.store import Artefact, Store, tree_digest
from harness.running.builders import Builder
from harness.running.job import Job

MAX_TOKENS = 80
NOISE = 0.02
"""In units of a tensor's own spread: enough that every checkpoint answers otherwise."""


@dataclass(frozen=True)
class Series:
    """Checkpoints, and the stages of each: one for every task."""

    checkpoints: tuple[tuple[Stage, ...], ...]
    threads: int
    parameters: int

    @property
    def cells(self) -> list[Stage]:
        """Every task of every checkpoint."""
        return [cell for cells in self.checkpoints for cell in cells]

    def store(self, root: Path) -> Store:
        """A store with the tasks' items and nothing else."""
        store = Store(root)
        for cell in self.checkpoints[0]:
            _made(cell.parents["items"], store)
        return store

    def job(self, position: int, store: Store) -> Job:
        """What a run makes of a checkpoint."""
        return Job(self.checkpoints[position], str(store.root.resolve()))


def series(
    store: Store, folder: Path, base: str, checkpoints: int, items: int, threads: int
) -> Series:
    """Checkpoints below `folder`, made of a base model that is kept in `store`."""
    tokenizer = Stage("tokenizer", "tokenizer", {"testbed": "chain"})
    spec = asdict(testbed.BASES[base])
    model = Stage("base", "base model", {"spec": spec}, {"tokenizer": tokenizer})
    _made(tokenizer, store)
    source = _made(model, store)
    folders = [perturbed(source.folder, folder / f"{n}", n) for n in range(checkpoints)]
    tasks = [
        Stage(
            "items",
            f"items of {task}",
            {"testbed": task, "items": items, "seed": 0},
            {"tokenizer": tokenizer},
        )
        for task in testbed.TASKS
    ]
    cells = tuple(_cells(made, tasks, threads) for made in folders)
    return Series(cells, threads, int(source.info["parameters"]))


def perturbed(base: Path, folder: Path, seed: int) -> Path:
    """A copy of a checkpoint with noise on every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("meta.json", "log.txt"))
    weights = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=draw)
        weights[name] = tensor + NOISE * tensor.std() * noise
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _cells(folder: Path, tasks: list[Stage], threads: int) -> tuple[Stage, ...]:
    where = {"path": str(folder.resolve())}
    model = Stage("model", folder.name, {"digest": tree_digest(folder)}, where=where)
    engine = {"name": "vllm", "version": engine_version("vllm")}
    shared = {"decodes": 1, "temperature": 0.0, "engine": engine, "threads": threads}
    found = []
    for items in tasks:
        task = str(items.inputs["testbed"])
        asked = {"task": task, "yaml": task_digest(task), "max_tokens": MAX_TOKENS}
        parents = {"model": model, "items": items}
        found.append(Stage("samples", f"{task} of {folder.name}", asked | shared, parents))
    return tuple(found)


def _made(stage: Stage, store: Store) -> Artefact:
    builder = Builder(stage, store, _quiet, dict)
    return store.make(stage.kind, stage.key, stage.recipe, builder.build)


def _quiet(
    iterable: Iterable[Any], description: str = "", total: int | None = None
) -> Iterable[Any]:
    return iterable
