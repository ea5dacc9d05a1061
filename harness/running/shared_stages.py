"""What all cells of an experiment share: base model, query set, tasks, and stages made of them.

Nothing is run here: each is a stage that says what it is made from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.data import testbed
from harness.data.contamination import POOL, QUERY
from harness.data.grading.grader import VERSION as GRADER
from harness.evaluation.benchmarks import BENCHMARKS, benchmark, find_file, task_digest
from harness.evaluation.environment import engine_version, resolve_engine
from harness.experiment.config import DECODING, DataConfig, Experiment, PoolConfig, locate
from harness.experiment.stage import Stage
from harness.experiment.store import tree_digest
from harness.running import overlap

LIMIT = 256
"""Tokens of a response to a task of which neither the experiment nor a task file says more."""


class Ingredients:
    """Stages that all arms of an experiment share."""

    def __init__(self, experiment: Experiment, file: Path, task_data: Path | None) -> None:
        self.experiment = experiment
        self.file = file
        self.task_data = task_data
        self.local = {entry.name: entry for entry in experiment.task}
        self.engine = resolve_engine(experiment.evaluate.engine)
        self.base, self.tokenizer = self._model()
        self.items = {task: self._items(task) for task in experiment.evaluate.tasks}
        self.queryset, self.check = self._queryset()

    def _model(self) -> tuple[Stage, Stage]:
        model = self.experiment.model
        if model.base.startswith("testbed:"):
            name = model.base.removeprefix("testbed:")
            if name not in testbed.BASES:
                raise ValueError(
                    f"{self.file}: model.base = {model.base!r}; "
                    f"expected one of {[f'testbed:{n}' for n in testbed.BASES]}"
                )
            tokenizer = Stage("tokenizer", "tokenizer", {"testbed": "chain"})
            spec = {**asdict(testbed.BASES[name]), "seed": model.seed}
            inputs: dict[str, Any] = {"spec": spec}
            return Stage("base", "base model", inputs, {"tokenizer": tokenizer}), tokenizer
        folder = Path(model.base)
        if folder.is_dir():
            inputs = {"digest": tree_digest(folder)}
            external = Stage("model", "base model", inputs, where={"path": str(folder.resolve())})
        elif model.revision is None:
            raise ValueError(
                f"{self.file}: model.base = {model.base!r} without revision; expected the hash of "
                "a commit for a hub model, a local folder, or 'testbed:small'"
            )
        else:
            inputs = {"name": model.base, "revision": model.revision}
            external = Stage("model", "base model", inputs)
        return external, external

    def data(self, config: DataConfig) -> tuple[dict[str, Any], dict[str, str]]:
        """Hashed inputs and unhashed whereabouts of a data set."""
        excluded = {"dataset", "overlap", *DECODING}
        values = config.model_dump(exclude=excluded, exclude_none=True)
        values["max_tokens"] = self.experiment.train.max_tokens
        if config.testbed is not None:
            return {"testbed": config.testbed, **values}, {}
        if not config.local:
            return {"dataset": config.dataset, **values}, {}
        path = locate(config.dataset, self.file)
        return {"file": tree_digest(path), **values}, {"path": str(path.resolve())}

    def _queryset(self) -> tuple[Stage | None, overlap.Check | None]:
        """The query set as it is used, and its comparison with the tasks."""
        query = self.experiment.query
        if query is None:
            return None, None
        inputs, where = self.data(query)
        rows = Stage("queryset", "query set", inputs, {"tokenizer": self.tokenizer}, where)
        check = overlap.compare(QUERY, rows, self.item_roles, query.overlap, None)
        return (rows if check is None else check.used), check

    def _items(self, task: str) -> Stage:
        if task in self.local:
            return self._local(task)
        if task in BENCHMARKS:
            return self._benchmark(task)
        if task not in testbed.TASKS:
            known = [*testbed.TASKS, *BENCHMARKS, *self.local]
            raise ValueError(
                f"{self.file}: evaluate.tasks holds {task!r}; expected one of {known} "
                "(a local file becomes a task with a [[task]] table)"
            )
        evaluate = self.experiment.evaluate
        inputs = {"testbed": task, "items": evaluate.items, "seed": evaluate.seed}
        return Stage("items", f"items of {task}", inputs, {"tokenizer": self.tokenizer})

    def _local(self, task: str) -> Stage:
        if task in (POOL, QUERY):
            raise ValueError(
                f"{self.file}: task {task!r} has the name of another data set; expected another "
                "name, so that overlaps can be told apart"
            )
        entry = self.local[task]
        path = locate(entry.data, self.file)
        inputs = entry.model_dump(exclude={"data", "name", "max_tokens"}, exclude_none=True)
        # Version 2: items hold the bare question. Those of other tasks always have, or never do.
        template = self.experiment.pool.template
        inputs |= {"file": tree_digest(path), "template": template, "version": 2}
        where = {"path": str(path.resolve())}
        return Stage("items", f"items of {task}", inputs, {"tokenizer": self.tokenizer}, where)

    def _benchmark(self, task: str) -> Stage:
        inputs: dict[str, Any] = {
            "benchmark": task,
            "yaml": task_digest(task),
            "template": self.experiment.pool.template,
        }
        where = {}
        if self.task_data is not None:
            path = find_file(benchmark(task), self.task_data)
            inputs["file"] = tree_digest(path)
            where["path"] = str(path.resolve())
        return Stage("items", f"items of {task}", inputs, {"tokenizer": self.tokenizer}, where)

    def kind(self, task: str) -> str:
        """How a task's answers are graded."""
        if task in self.local:
            return self.local[task].kind or "plain"
        return benchmark(task).kind if task in BENCHMARKS else "plain"

    def limit(self, task: str) -> int:
        """Tokens of a response to a task at most."""
        own = self.local[task].max_tokens if task in self.local else None
        chosen = own or self.experiment.evaluate.max_tokens
        if chosen is None:
            chosen = benchmark(task).max_tokens if task in BENCHMARKS else LIMIT
        return chosen

    @property
    def engine_inputs(self) -> dict[str, Any]:
        """What the keys of answers hold of the engine."""
        inputs: dict[str, Any] = {
            "name": self.engine,
            "version": engine_version(self.engine),
        }
        if self.experiment.evaluate.batch_invariant:
            inputs["batch_invariant"] = True
        return inputs

    @property
    def item_roles(self) -> dict[str, Stage]:
        """The items of every task under the role that they have among parents."""
        return {f"{overlap.ITEMS}{task}": items for task, items in self.items.items()}

    def compared(self, pool: Stage, config: PoolConfig, arm: str) -> overlap.Check | None:
        """The comparison of a pool with the tasks and the query set that is used."""
        others = dict(self.item_roles)
        if self.queryset is not None:
            others["queryset"] = self.queryset
        return overlap.compare(POOL, pool, others, config.overlap, arm)

    def proof(self, pool: Stage, arm: str) -> Stage:
        """That pool, query set and tasks share no problem."""
        parents = {"pool": pool, **self.item_roles}
        if self.queryset is not None:
            parents["queryset"] = self.queryset
        return Stage("proof", f"proof that the data sets are disjoint ({arm})", {}, parents)

    def samples(self, model: Stage, seed: int | None, label: str) -> dict[str, Stage]:
        """One stage per task over `model`, a checkpoint or the base."""
        evaluate = self.experiment.evaluate
        decoding: dict[str, Any] = {
            "decodes": evaluate.decodes,
            "temperature": evaluate.temperature,
            "engine": self.engine_inputs,
            "threads": self.experiment.train.threads,
        }
        if evaluate.temperature > 0:
            decoding["seed"] = seed
        return {
            task: Stage(
                "samples",
                f"{task} of {label}",
                {"task": task, **self._asked(task), **decoding},
                {"model": model, "items": items},
            )
            for task, items in self.items.items()
        }

    def _asked(self, task: str) -> dict[str, Any]:
        """How a task is asked and graded."""
        asked: dict[str, Any] = {"yaml": task_digest(task), "max_tokens": self.limit(task)}
        if self.kind(task) != "plain":
            asked |= {"kind": self.kind(task), "grader": GRADER}
        return asked

    def answers(self, model: Stage, label: str) -> Stage:
        """The query set answered by `model`."""
        assert self.queryset is not None
        assert self.experiment.query is not None
        inputs: dict[str, Any] = {
            "max_tokens": self.experiment.evaluate.max_tokens or max(map(self.limit, self.items)),
            "engine": self.engine_inputs,
        }
        if self.experiment.query.decoding:
            inputs["decoding"] = self.experiment.query.decoding
        return Stage(
            "answers", f"query answers {label}", inputs, {"model": model, "queryset": self.queryset}
        )
