"""Decode noise: how far the accuracy of one checkpoint moves when it is only evaluated again.

More training seeds do not average out this part of a difference. Every repetition is evaluated like
a cell of a run. What differs is the order in which the engine gets the items, and so what is
batched together (the first repetition keeps the order of a run), and the seeds of sampled answers.
One engine serves all repetitions of a call: what a restart would change is not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from filelock import FileLock

from harness.data.items import ITEMS_FILE
from harness.experiment.paths import EXPERIMENTS
from harness.experiment.records import write_atomic
from harness.experiment.stage import Recipe, Stage
from harness.experiment.store import Artefact, Store, digest
from harness.reporting.results import NOISE as FILE
from harness.running.answer_builders import SAMPLES, answer_tasks
from harness.running.display import View
from harness.running.overlap import ITEMS
from harness.running.plan import Cell, Plan
from harness.running.recipes import SamplesRecipe
from harness.running.run import Run
from harness.running.workspace import Workspace, seed_for
from harness.stats.decode_noise import by_repetition, repeated

SCHEMA = 1
COLUMNS = ("task", "mean", "SD", "range", "flips", "texts")
BINOMIAL = "binomial"


@dataclass(frozen=True)
class NoiseRecipe(Recipe):
    """All tasks of a cell answered once more; `seed` only where answers are sampled."""

    kind = "noise"
    builder = "harness.studies.decode_noise:build"
    needs_engine = True
    seconds = 7.0
    samples: tuple[SamplesRecipe, ...]
    repetition: int
    order: int | None
    device: str
    seed: int | None
    sequences: int | None
    memory: float | None

    @property
    def tasks(self) -> int:
        """Each task has its own time limit."""
        return len(self.samples)


def build(recipe: NoiseRecipe, work: Workspace) -> dict[str, Any]:
    """Answer all tasks of a checkpoint once more; accuracy by task."""
    items = [work.parent(f"{ITEMS}{task.task}") / ITEMS_FILE for task in recipe.samples]
    answers, settings = answer_tasks(
        recipe.samples, items, work, seed=recipe.seed or 0, order=recipe.order, fresh_cache=True
    )
    answers.to_parquet(work.folder / SAMPLES, index=False)
    accuracy = answers.groupby("task", sort=False)["correct"].mean()
    return {"accuracy": accuracy.to_dict(), "engine": settings}


@dataclass(frozen=True)
class Noise:
    """`repeats` evaluations of the checkpoint of one cell; `run` says where and how."""

    run: Run
    cell: Cell
    repeats: int

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ValueError(f"repeats = {self.repeats!r}; expected at least 2: one has no spread")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """One stage per repetition."""
        return tuple(self._stage(number) for number in range(self.repeats))

    def _stage(self, number: int) -> Stage:
        tasks, scheduler = self.cell.samples, self.run.scheduler
        seed, order = seed_for("noise", self.cell.name, number).generate_state(2).tolist()
        recipe = NoiseRecipe(
            samples=tuple(cast(SamplesRecipe, stage.recipe) for stage in tasks.values()),
            repetition=number,
            order=order if number else None,
            device="cuda" if scheduler.gpu else "cpu",
            seed=seed if self.decoding["temperature"] > 0 else None,
            # Unlike an accuracy, noise depends on the engine's limits: others are measured anew.
            sequences=scheduler.limits.sequences,
            memory=scheduler.limits.memory,
        )
        items = {f"{ITEMS}{task}": stage.parents["items"] for task, stage in tasks.items()}
        label = f"repetition {number + 1} of {self.cell.name}"
        return Stage(recipe, label, {"model": self.cell.model, **items})

    @property
    def decoding(self) -> dict[str, Any]:
        """Answers per item, and at which temperature."""
        evaluate = self.run.plan.experiment.evaluate
        return {"decodes": evaluate.decodes, "temperature": evaluate.temperature}

    def make(self, view: View) -> Mapping[str, Any] | None:
        """Evaluate the repetitions that are not stored; the error that ended it, or None."""
        scheduler = self.run.scheduler
        missing = [stage for stage in self.stages if not self.run.store.has(stage)]
        jobs = [scheduler.job(stage) for stage in missing]
        view.begin(self.stages, jobs, workers=1)
        scheduler.run(jobs, view, stop_at_failure=True)  # the same engine would fail again
        return next((error for _, error in scheduler.failures.values()), None)

    def entry(self) -> dict[str, Any]:
        """The measurement, from the stored repetitions alone; fit for JSON."""
        artefacts = [self.run.store.load(stage) for stage in self.stages]
        frames = [pd.read_parquet(each.folder / SAMPLES) for each in artefacts]
        weights = {str(value) for frame in frames for value in frame["weights"].unique()}
        if len(weights) != 1:
            raise ValueError(
                f"{self.cell.name}: repetitions had the weights {sorted(weights)}; expected one "
                "checkpoint"
            )
        correct, texts = _tables(frames, list(self.cell.samples))
        sampled, first = self.decoding["temperature"] > 0, artefacts[0]
        return {
            "schema": SCHEMA,
            "experiment": self.run.plan.experiment.name,
            "cell": self.cell.name,
            "key": digest([stage.key for stage in self.stages]),
            "repetitions": self.repeats,
            "weights": weights.pop(),
            "decoding": self.decoding,
            "engine": first.info["engine"],
            "mixed": _mixed(artefacts),
            "tasks": {
                task: _numbers({task: correct[task]}, {task: texts[task]}, sampled)
                for task in correct
            },
            "mean": _numbers(correct, texts, sampled),
            "provenance": {**first.meta["provenance"], "created": first.meta["created"]},
        }


def choose_cell(plan: Plan, store: Store, name: str | None = None) -> Cell:
    """The cell called `name`, or the first finished one of `full`, the reference and `base`.

    Raises:
        ValueError: it is not in the store, or no cell is; the message names the command to run.
    """
    experiment = plan.file.stem if plan.file.parent == EXPERIMENTS else str(plan.file)
    if name is not None:
        cell = plan.cell(name)
        if missing := _missing(cell, store):
            raise ValueError(
                f"{cell.name}: {', '.join(stage.label for stage in missing)} not in the store "
                f"({store.root}); expected there, as made by: cotsieve run {experiment} --only "
                f"row={cell.row.row}"
            )
        return cell
    rows = ("full", plan.experiment.protocol.reference, "base")
    cells = [c for row in rows for c in plan.cells if c.arm == "main" and c.row.row == row]
    for cell in cells:
        if not _missing(cell, store):
            return cell
    raise ValueError(
        f"{plan.experiment.name} has no finished cell of {', '.join(rows)} in the store "
        f"({store.root}); expected one, as made by: cotsieve run {experiment}"
    )


def _missing(cell: Cell, store: Store) -> list[Stage]:
    """What an evaluation of `cell` needs and the store does not hold."""
    model = cell.model
    needed = [model, *(s.parents["items"] for s in cell.samples.values())]
    needed += [model.parents["model"]] if "model" in model.parents else []
    return [s for s in needed if not s.recipe.external and not store.has(s)]


def _tables(
    frames: Sequence[pd.DataFrame], tasks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verdicts and texts by task, [repetitions, items, decodes]; answers are matched by item id."""
    correct, texts = {}, {}
    for task in tasks:
        parts = [
            frame[frame["task"] == task].set_index(["item", "decode"]).sort_index()
            for frame in frames
        ]
        if any(not part.index.equals(parts[0].index) for part in parts):
            raise ValueError(f"task {task}: repetitions differ in their items; expected the same")
        shape = (len(parts), parts[0].index.get_level_values("item").nunique(), -1)
        correct[task] = np.stack([p["correct"].to_numpy(bool) for p in parts]).reshape(shape)
        texts[task] = np.stack([p["response"].to_numpy(object) for p in parts]).reshape(shape)
    return correct, texts


def _numbers(correct: Mapping[str, Any], texts: Mapping[str, Any], sampled: bool) -> dict[str, Any]:
    """The statistics of the mean over tasks; null where a number is undefined."""
    statistics = asdict(repeated(correct, texts, sampled))
    defined = {name: None if math.isnan(value) else value for name, value in statistics.items()}
    return defined | {"accuracies": by_repetition(correct).tolist()}


def _mixed(artefacts: Sequence[Artefact]) -> dict[str, list[Any]]:
    """Properties of engine and machine that differ between repetitions, though they should not."""
    values: dict[str, list[Any]] = {}
    for each in artefacts:
        processor = each.meta["provenance"].get("processor")
        for name, value in {**each.info["engine"], "processor": processor}.items():
            values.setdefault(name, []).append(value)
    distinct = {name: list(dict.fromkeys(each)) for name, each in values.items()}
    return {name: each for name, each in distinct.items() if len(each) > 1}


def write(entry: Mapping[str, Any], folder: Path) -> Path:
    """Put the entry of a cell in the place of its last one in `noise.json`."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}
        entries = {"schema": SCHEMA, "cells": {**cells, entry["cell"]: entry}}
        text = json.dumps(entries, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(path, text.encode())
    return path


def head(entry: Mapping[str, Any]) -> Iterator[str]:
    """What was evaluated, how often, and by which engine."""
    engine, decoding = entry["engine"], entry["decoding"]
    yield (
        f"{entry['cell']} of {entry['experiment']}: the same weights ({entry['weights'][:12]}) "
        f"evaluated {entry['repetitions']} times"
    )
    kernels = "" if engine["batch_invariant"] else "not "
    answers = "greedy answers"
    if decoding["temperature"] > 0:
        temperature = f"temperature {decoding['temperature']:g}"
        answers = f"{decoding['decodes']} sampled answers per item at {temperature}"
    yield (
        f"{engine['name']} {engine['version']} on {engine['device']}: {engine['dtype']}, at most "
        f"{engine['sequences']} concurrent sequences, {kernels}batch-invariant; {answers}"
    )


def table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text under the names of the columns; sampled answers have one column more."""
    sampled = entry["decoding"]["temperature"] > 0
    lines: list[tuple[str, ...]] = [(*COLUMNS, BINOMIAL) if sampled else COLUMNS]
    parts = dict(entry["tasks"])
    if len(parts) > 1:
        parts[f"all {len(parts)} tasks"] = entry["mean"]
    for name, numbers in parts.items():
        interval = "no interval"
        if numbers["sd_low"] is not None:
            interval = f"[{100 * numbers['sd_low']:.2f}, {100 * numbers['sd_high']:.2f}]"
        line = (
            name,
            f"{100 * numbers['accuracy']:.2f}",
            f"{100 * numbers['sd']:.2f} {interval}",
            f"{100 * numbers['low']:.2f}-{100 * numbers['high']:.2f}",
            f"{numbers['verdicts_changed']}/{numbers['n_items']}",
            str(numbers["texts_changed"]),
        )
        lines.append((*line, f"{100 * numbers['binomial_sd']:.2f}") if sampled else line)
    return lines


def notes(entry: Mapping[str, Any]) -> Iterator[str]:
    """How to read the table."""
    repetitions = entry["repetitions"]
    yield (
        f"Accuracy over {repetitions} repetitions: mean and range in %, standard deviation in "
        "points with its 95% interval. flips, texts: items whose verdict, or text, was not the "
        "same in all of them."
    )
    if entry["decoding"]["temperature"] > 0:
        yield f"{BINOMIAL}: the standard deviation of independent draws on these very items."
    tasks = entry["tasks"].values()
    if all(t["sd"] == t["texts_changed"] == t["verdicts_changed"] == 0 for t in tasks):
        yield (
            f"Answers are bitwise the same in all {repetitions} repetitions: with these settings, "
            "this engine has no decode noise on this machine."
        )
    elif any(t["sd"] == 0 for t in tasks):
        yield "A deviation of 0 has no interval: so few repetitions may have missed the noise."
    for name, values in entry["mixed"].items():
        listed = ", ".join(map(str, values))
        yield f"Repetitions differ in {name} ({listed}), which is part of what is measured here."
