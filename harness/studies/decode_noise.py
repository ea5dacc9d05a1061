"""Decode noise: how far the accuracy of one checkpoint moves when it is only evaluated again.

No number of training seeds explains this part of a difference. Every repetition takes the way of an
evaluation in a run. What differs is the order in which the engine gets the items, and so what is
computed together (the first keeps the order of a run), and for sampled answers their seeds. One
engine serves the repetitions of a call: what another start of it would change is not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from harness.experiment.paths import EXPERIMENTS
from harness.experiment.records import write_atomic
from harness.experiment.stage import EXTERNAL, Stage, artefact
from harness.experiment.store import Artefact, Store, digest
from harness.reporting.results import NOISE as FILE
from harness.running.builders import seed_for
from harness.running.display import View
from harness.running.evaluation_builders import SAMPLES
from harness.running.plan import Cell, Plan
from harness.running.run import Run
from harness.stats.decode_noise import by_repetition, repeated

REPEATS = 8
SCHEMA = 1
COLUMNS = ("task", "mean", "SD", "range", "flips", "texts")
BINOMIAL = "binomial"


@dataclass(frozen=True)
class Noise:
    """`repeats` evaluations of the checkpoint of one cell; `run` says where and how."""

    run: Run
    cell: Cell
    repeats: int = REPEATS

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ValueError(f"repeats = {self.repeats!r}; expected at least 2: one has no spread")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The repetitions."""
        return tuple(self._stage(number) for number in range(self.repeats))

    def _stage(self, number: int) -> Stage:
        samples, limits = self.cell.samples, self.run.limits
        decoding, order = seed_for("noise", self.cell.name, number).generate_state(2).tolist()
        inputs = {
            "samples": {task: stage.recipe for task, stage in samples.items()},
            "repetition": number,
            "order": order if number else None,
            "device": "cuda" if self.run.gpu else "cpu",
        }
        if _asked(self.cell)["temperature"] > 0:
            inputs["seed"] = decoding
        # Unlike accuracy, noise is about the set-up: another one is measured anew.
        set_up = {"sequences": limits.sequences, "memory": limits.memory}
        inputs |= {name: value for name, value in set_up.items() if value is not None}
        items = {f"items:{task}": stage.parents["items"] for task, stage in samples.items()}
        label = f"repetition {number + 1} of {self.cell.name}"
        return Stage("noise", label, inputs, {"model": _model(self.cell), **items})

    def make(self, view: View) -> Mapping[str, Any] | None:
        """Make the repetitions that are not stored; the error that ended it, or None."""
        missing = [s for s in self.stages if not self.run.store.has(s.kind, s.key)]
        jobs = [self.run.job(stage) for stage in missing]
        view.begin(self.stages, jobs, workers=1)
        self.run.make(jobs, view, stop=True)  # the same engine would fail again
        return next((error for _, error in self.run.failures.values()), None)

    def entry(self) -> dict[str, Any]:
        """What was measured, from the stored repetitions alone; fit for JSON."""
        made = [artefact(self.run.store, stage) for stage in self.stages]
        frames = [pd.read_parquet(each.folder / SAMPLES) for each in made]
        weights = {str(value) for frame in frames for value in frame["weights"].unique()}
        if len(weights) != 1:
            raise ValueError(
                f"{self.cell.name}: repetitions had the weights {sorted(weights)}; expected one "
                "checkpoint"
            )
        asked = _asked(self.cell)
        correct, texts = _tables(frames, list(self.cell.samples))
        sampled = asked["temperature"] > 0
        return {
            "schema": SCHEMA,
            "experiment": self.run.plan.experiment.name,
            "cell": self.cell.name,
            "key": digest([stage.key for stage in self.stages]),
            "repetitions": self.repeats,
            "weights": weights.pop(),
            "decoding": asked,
            "engine": made[0].info["engine"],
            "mixed": _mixed(made),
            "tasks": {
                task: _numbers({task: correct[task]}, {task: texts[task]}, sampled)
                for task in correct
            },
            "mean": _numbers(correct, texts, sampled),
            "provenance": {**made[0].meta["provenance"], "created": made[0].meta["created"]},
        }


def chosen(plan: Plan, store: Store, name: str | None = None) -> Cell:
    """The cell called `name`, or the first finished one of `full`, the reference and `base`.

    Raises:
        ValueError: it is not in the store, or no cell is; the message names the command to run.
    """
    experiment = _called(plan)
    if name is not None:
        cell = plan.cell(name)
        lacking = _lacking(cell, store)
        if lacking:
            raise ValueError(
                f"{cell.name}: {', '.join(stage.label for stage in lacking)} not in the store "
                f"({store.root}); expected there, as made by: cotsieve run {experiment} --only "
                f"row={cell.row.row}"
            )
        return cell
    rows = ("full", plan.experiment.protocol.reference, "base")
    cells = [c for row in rows for c in plan.cells if c.arm == "main" and c.row.row == row]
    for cell in cells:
        if not _lacking(cell, store):
            return cell
    raise ValueError(
        f"{plan.experiment.name} has no finished cell of {', '.join(rows)} in the store "
        f"({store.root}); expected one, as made by: cotsieve run {experiment}"
    )


def _lacking(cell: Cell, store: Store) -> list[Stage]:
    """What an evaluation of `cell` stands on and the store does not hold."""
    model = _model(cell)
    below = [model, *(s.parents["items"] for s in cell.samples.values())]
    below += [model.parents["model"]] if "model" in model.parents else []
    return [s for s in below if s.kind not in EXTERNAL and not store.has(s.kind, s.key)]


def _model(cell: Cell) -> Stage:
    return next(iter(cell.samples.values())).parents["model"]


def _asked(cell: Cell) -> dict[str, Any]:
    inputs = next(iter(cell.samples.values())).inputs
    return {name: inputs[name] for name in ("decodes", "temperature")}


def _called(plan: Plan) -> str:
    """How the command line calls the experiment."""
    return plan.file.stem if plan.file.parent == EXPERIMENTS else str(plan.file)


def _tables(
    frames: Sequence[pd.DataFrame], tasks: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verdicts and texts by task, [repetitions, items, decodes]; answers are matched by item id."""
    correct, texts = {}, {}
    for task in tasks:
        own = [
            frame[frame["task"] == task].set_index(["item", "decode"]).sort_index()
            for frame in frames
        ]
        if any(not frame.index.equals(own[0].index) for frame in own):
            raise ValueError(f"task {task}: repetitions differ in their items; expected the same")
        shape = (len(own), own[0].index.get_level_values("item").nunique(), -1)
        correct[task] = np.stack([f["correct"].to_numpy(bool) for f in own]).reshape(shape)
        texts[task] = np.stack([f["response"].to_numpy(object) for f in own]).reshape(shape)
    return correct, texts


def _numbers(correct: Mapping[str, Any], texts: Mapping[str, Any], sampled: bool) -> dict[str, Any]:
    """The statistics of the mean over tasks; null where a number is undefined."""
    values = asdict(repeated(correct, texts, sampled))
    known = {name: None if math.isnan(value) else value for name, value in values.items()}
    return known | {"accuracies": by_repetition(correct).tolist()}


def _mixed(made: Sequence[Artefact]) -> dict[str, list[Any]]:
    """In what the engine and the machine of the repetitions differed, against intention."""
    seen: dict[str, list[Any]] = {}
    for each in made:
        known = {**each.info["engine"], "processor": each.meta["provenance"].get("processor")}
        for name, value in known.items():
            values = seen.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: values for name, values in seen.items() if len(values) > 1}


def write(entry: Mapping[str, Any], folder: Path) -> Path:
    """Put the entry of a cell in the place of its last one in `noise.json`."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else {}
        known = {"schema": SCHEMA, "cells": {**cells, entry["cell"]: entry}}
        text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(path, text.encode())
    return path


def head(entry: Mapping[str, Any]) -> Iterator[str]:
    """What was evaluated, how often and by what."""
    engine, asked = entry["engine"], entry["decoding"]
    yield (
        f"{entry['cell']} of {entry['experiment']}: the same weights ({entry['weights'][:12]}) "
        f"evaluated {entry['repetitions']} times"
    )
    kernels = "" if engine["batch_invariant"] else "not "
    answers = "greedy answers"
    if asked["temperature"] > 0:
        answers = f"{asked['decodes']} sampled at temperature {asked['temperature']:g} per item"
    yield (
        f"{engine['name']} {engine['version']} on {engine['device']}: {engine['dtype']}, "
        f"{engine['sequences']} sequences together, {kernels}batch-invariant; {answers}"
    )


def rows(entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lines of the table with the columns `columns(entry)`."""
    parts = dict(entry["tasks"])
    if len(parts) > 1:
        parts[f"all {len(parts)} tasks"] = entry["mean"]
    for name, found in parts.items():
        interval = "no interval"
        if found["sd_low"] is not None:
            interval = f"[{100 * found['sd_low']:.2f}, {100 * found['sd_high']:.2f}]"
        line = (
            name,
            f"{100 * found['accuracy']:.2f}",
            f"{100 * found['sd']:.2f} {interval}",
            f"{100 * found['low']:.2f}-{100 * found['high']:.2f}",
            f"{found['verdicts_changed']}/{found['n_items']}",
            str(found["texts_changed"]),
        )
        expected = found["binomial_sd"]
        yield line if expected is None else (*line, f"{100 * expected:.2f}")


def columns(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the table; sampled answers have one more."""
    return (*COLUMNS, BINOMIAL) if entry["decoding"]["temperature"] > 0 else COLUMNS


def notes(entry: Mapping[str, Any]) -> Iterator[str]:
    """How to read the table."""
    times = entry["repetitions"]
    yield (
        f"Accuracy over {times} repetitions: mean and range in %, standard deviation in points "
        "with its 95% interval. flips, texts: items whose verdict, or text, was not always the "
        "same."
    )
    if entry["decoding"]["temperature"] > 0:
        yield f"{BINOMIAL}: the standard deviation of independent draws on these very items."
    if constant(entry):
        yield (
            f"Answers are bitwise the same in all {times} repetitions: this engine, on this "
            "machine, has no decode noise with these settings."
        )
    elif any(found["sd"] == 0 for found in entry["tasks"].values()):
        yield "A deviation of 0 has no interval: so few repetitions need not have met the noise."
    for name, values in entry["mixed"].items():
        listed = ", ".join(map(str, values))
        yield f"Repetitions differ in {name} ({listed}), which is part of what is measured here."


def constant(entry: Mapping[str, Any]) -> bool:
    """Whether no text and no verdict differed between repetitions."""
    return all(
        found["sd"] == 0 and found["texts_changed"] == found["verdicts_changed"] == 0
        for found in entry["tasks"].values()
    )
