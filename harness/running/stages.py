"""The stages of an experiment, built in one place; nothing is run here.

`SharedStages` are those that all arms have in common: base model, query set, tasks. `ArmStages`
stand on one variant of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.data import testbed
from harness.data.contamination import POOL, QUERY
from harness.data.grading.grader import VERSION as GRADER
from harness.evaluation.benchmarks import BENCHMARKS, benchmark, find_file, task_digest
from harness.evaluation.environment import engine_version, resolve_engine
from harness.experiment.config import Experiment, locate
from harness.experiment.settings import AnswerKind, ArmConfig, DataConfig, PoolConfig, Row
from harness.experiment.stage import Recipe, Stage, plain
from harness.experiment.store import digest, tree_digest
from harness.running import overlap
from harness.running.recipes import (
    AnswersRecipe,
    BaseModelRecipe,
    BenchmarkItemsRecipe,
    BuiltinItemsRecipe,
    CheckpointRecipe,
    ControlRecipe,
    CurvatureRecipe,
    DecodesRecipe,
    DisjointRecipe,
    EngineChoice,
    FeaturesRecipe,
    FileItemsRecipe,
    HubModelRecipe,
    InfluenceRecipe,
    LocalModelRecipe,
    PoolRecipe,
    QuerySetRecipe,
    SamplesRecipe,
    ScoresRecipe,
    SetRecipe,
    TokenizerRecipe,
    TopRecipe,
    TrajectoryRecipe,
)
from harness.selection import plugins
from harness.selection import requests as rq
from harness.selection.selector import ScoreSelector, Selector

LIMIT = 256
"""Tokens of a response to a task where neither the experiment nor a task file sets a limit."""
MAIN = overlap.MAIN


class SharedStages:
    """Stages that all arms of an experiment share.

    `task_data`: folder with the benchmarks' files; None takes them from the hub.
    """

    def __init__(self, experiment: Experiment, file: Path, task_data: Path | None) -> None:
        self.experiment = experiment
        self.file = file
        self.task_data = task_data
        self.file_tasks = {task.name: task for task in experiment.task}
        name = resolve_engine(experiment.evaluate.engine)
        batch_invariant = True if experiment.evaluate.batch_invariant else None
        self.engine = EngineChoice(name, engine_version(name), batch_invariant)
        self.base, self.tokenizer = self._model()
        self.items = {task: self._items(task) for task in experiment.evaluate.tasks}
        self.queryset, self.check = self._checked_queries()

    def _model(self) -> tuple[Stage, Stage]:
        model = self.experiment.model
        if model.base.startswith("testbed:"):
            name = model.base.removeprefix("testbed:")
            if name not in testbed.BASES:
                raise ValueError(
                    f"{self.file}: model.base = {model.base!r}; "
                    f"expected one of {[f'testbed:{n}' for n in testbed.BASES]}"
                )
            tokenizer = Stage(TokenizerRecipe(), "tokenizer")
            recipe = BaseModelRecipe(replace(testbed.BASES[name], seed=model.seed))
            return Stage(recipe, "base model", {"tokenizer": tokenizer}), tokenizer
        folder = Path(model.base)
        if folder.is_dir():
            local = LocalModelRecipe(tree_digest(folder))
            external = Stage(local, "base model", path=folder.resolve())
        elif model.revision is None:
            raise ValueError(
                f"{self.file}: model.base = {model.base!r} without revision; expected the hash of "
                "a commit for a hub model, a local folder, or 'testbed:small'"
            )
        else:
            external = Stage(HubModelRecipe(model.base, model.revision), "base model")
        return external, external

    def data(
        self, recipe: type[PoolRecipe | QuerySetRecipe], config: DataConfig, label: str
    ) -> Stage:
        """The stage of a data set."""
        max_tokens = self.experiment.train.max_tokens
        parents = {"tokenizer": self.tokenizer}
        if not config.local:
            return Stage(recipe(config, max_tokens), label, parents)
        path = locate(config.dataset, self.file)
        return Stage(recipe(config, max_tokens, tree_digest(path)), label, parents, path.resolve())

    def _checked_queries(self) -> tuple[Stage | None, overlap.Check | None]:
        """The query set as it is used, and its comparison with the tasks."""
        query = self.experiment.query
        if query is None:
            return None, None
        rows = self.data(QuerySetRecipe, query, "query set")
        check = overlap.compare(QUERY, rows, self.item_roles, query.overlap, None)
        return (rows if check is None else check.used), check

    def _items(self, task: str) -> Stage:
        parents = {"tokenizer": self.tokenizer}
        template = self.experiment.pool.template
        path = None
        recipe: Recipe
        if task in self.file_tasks:
            if task in (POOL, QUERY):
                raise ValueError(
                    f"{self.file}: task {task!r} has the name of another data set; expected "
                    "another name, so that overlaps can be told apart"
                )
            entry = self.file_tasks[task]
            path = locate(entry.data, self.file).resolve()
            columns = entry.prompt, entry.answer, entry.id
            recipe = FileItemsRecipe(tree_digest(path), *columns, entry.kind, template)
        elif task in BENCHMARKS:
            if self.task_data is not None:
                path = find_file(benchmark(task), self.task_data).resolve()
            file = None if path is None else tree_digest(path)
            recipe = BenchmarkItemsRecipe(task, task_digest(task), template, file)
        elif task in testbed.TASKS:
            evaluate = self.experiment.evaluate
            recipe = BuiltinItemsRecipe(task, evaluate.items, evaluate.seed)
        else:
            tasks = [*testbed.TASKS, *BENCHMARKS, *self.file_tasks]
            raise ValueError(
                f"{self.file}: evaluate.tasks holds {task!r}; expected one of {tasks} "
                "(a local file becomes a task with a [[task]] table)"
            )
        return Stage(recipe, f"items of {task}", parents, path)

    def answer_kind(self, task: str) -> AnswerKind:
        """How a task's answers are graded."""
        if task in self.file_tasks:
            return self.file_tasks[task].kind or "plain"
        return benchmark(task).kind if task in BENCHMARKS else "plain"

    def token_limit(self, task: str) -> int:
        """Tokens of a response to a task at most."""
        entry = self.file_tasks.get(task)
        limit = (entry and entry.max_tokens) or self.experiment.evaluate.max_tokens
        if limit is None:
            limit = benchmark(task).max_tokens if task in BENCHMARKS else LIMIT
        return limit

    @property
    def item_roles(self) -> dict[str, Stage]:
        """The items of every task under the role that they have among parents."""
        return {f"{overlap.ITEMS}{task}": items for task, items in self.items.items()}

    def samples(self, model: Stage, seed: int, label: str) -> dict[str, Stage]:
        """One stage per task over `model`, a checkpoint or the base."""
        evaluate = self.experiment.evaluate
        stages = {}
        for task, items in self.items.items():
            kind = self.answer_kind(task)
            recipe = SamplesRecipe(
                task=task,
                yaml=task_digest(task),
                max_tokens=self.token_limit(task),
                decodes=evaluate.decodes,
                temperature=evaluate.temperature,
                engine=self.engine,
                threads=self.experiment.train.threads,
                seed=seed if evaluate.temperature > 0 else None,
                answer_kind=kind,
                grader=None if kind == "plain" else GRADER,
            )
            stages[task] = Stage(recipe, f"{task} of {label}", {"model": model, "items": items})
        return stages

    def answers(self, model: Stage, label: str) -> Stage:
        """The query set answered by `model`."""
        assert self.queryset is not None
        assert self.experiment.query is not None
        limit = self.experiment.evaluate.max_tokens or max(map(self.token_limit, self.items))
        query = self.experiment.query
        recipe = AnswersRecipe(limit, self.engine, query.decodes, query.temperature)
        parents = {"model": model, "queryset": self.queryset}
        return Stage(recipe, f"query answers {label}", parents)


class ArmStages:
    """The stages of one variant of the pool."""

    def __init__(self, shared: SharedStages, arm: ArmConfig, rows: tuple[Row, ...]) -> None:
        self.shared = shared
        self.experiment = shared.experiment
        self.name = arm.name
        self.rows = {row.row: row for row in rows}
        config = PoolConfig.model_validate({**self.experiment.pool.model_dump(), **arm.pool})
        label = "pool" if arm.name == MAIN else f"pool of {arm.name}"
        pool = shared.data(PoolRecipe, config, label)
        others = dict(shared.item_roles)
        if shared.queryset is not None:
            others["queryset"] = shared.queryset
        self.check = overlap.compare(POOL, pool, others, config.overlap, arm.name)
        self.pool = pool if self.check is None else self.check.used
        self.proof: Stage | None = None
        if config.testbed is not None:
            label = f"proof that the data sets are disjoint ({arm.name})"
            self.proof = Stage(DisjointRecipe(), label, {"pool": self.pool, **others})
        self.selectors: dict[str, Selector] = {
            row.row: plugins.build(row.selector, row.params)
            for row in rows
            if row.selector is not None
        }
        names = {row.selector for row in rows if row.selector is not None}
        self.code = {name: plugins.code_hash(name) for name in names}
        self._open: list[str] = []
        self._results: dict[rq.Request[Any], Stage] = {}
        self._scores: dict[str, Stage] = {}

    def _label(self, what: str, row: str) -> str:
        return f"{what} of {'' if self.name == MAIN else f'{self.name}:'}{row}"

    def checkpoint(self, subset: Stage, seed: int, cell: str) -> Stage:
        """The base fine-tuned on `subset`, for the cell `row@fraction#seed`."""
        recipe = CheckpointRecipe(self.experiment.train, seed)
        parents = {"subset": subset, "model": self.shared.base, "pool": self.pool}
        return Stage(recipe, self._label("checkpoint", cell), parents)

    @cached_property
    def reference(self) -> Stage:
        """The base fine-tuned on the whole pool with the first seed: row `full`'s own."""
        seed = self.experiment.grid.seeds[0]
        return self.checkpoint(self.subset("full", 1.0, seed), seed, f"full@1#{seed}")

    @cached_property
    def answered_queries(self) -> Mapping[str, Stage]:
        """The query set and its answers before and after fine-tuning."""
        return {
            "queryset": self._queryset,
            "before": self.shared.answers(self.shared.base, "before"),
            "after": self.shared.answers(self.reference, f"after ({self.name})"),
        }

    @property
    def _queryset(self) -> Stage:
        if self.shared.queryset is None:
            raise ValueError(
                f"{self.shared.file}: a selector needs a query set; expected a [query] table"
            )
        return self.shared.queryset

    def subset(self, row: str, fraction: float, seed: int) -> Stage:
        """The stage that chooses examples for a row."""
        if row not in self.selectors:
            return self._control(row, fraction, seed)
        if row in self._open:
            raise ValueError(
                f"{self.shared.file}: rows {[*self._open, row]} ask for each other's subsets"
            )
        self._open.append(row)
        try:
            return self._selected(row, fraction, seed)
        finally:
            self._open.pop()

    def _control(self, row: str, fraction: float, seed: int) -> Stage:
        if row not in ("full", "oracle", "anti-oracle"):
            raise ValueError(f"{self.shared.file}: row {row!r} chooses no examples")
        drawn = None if row == "full" else seed
        recipe = ControlRecipe(row, fraction, drawn)  # type: ignore[arg-type]
        suffix = "" if drawn is None else f"#{seed}"
        label = self._label("subset", f"{row}@{fraction:g}{suffix}")
        return Stage(recipe, label, {"pool": self.pool})

    def _selected(self, row: str, fraction: float, seed: int) -> Stage:
        selector, name = self.selectors[row], self.rows[row].selector
        assert name is not None
        stochastic = selector.stochastic
        values: dict[str, Any] = {
            "selector": name,
            "params": self.rows[row].params,
            "code": self.code[name],
            "seed": seed if stochastic else None,
            "row": row if stochastic else None,
        }
        query = self.experiment.query
        if query is not None and query.decodes > 1 and rq.QueryAnswers() in selector.requests():
            values["rule"] = query.rule
        parents = {"pool": self.pool}
        for request in selector.requests():
            parents |= self._requested(request, fraction, seed)
        suffix = f"#{seed}" if stochastic else ""
        label = self._label("subset", f"{row}@{fraction:g}{suffix}")
        if not isinstance(selector, ScoreSelector):
            return Stage(SetRecipe(**values, fraction=fraction), label, parents)
        scores = Stage(ScoresRecipe(**values), self._label("scores", f"{row}{suffix}"), parents)
        # The same object for all fractions and seeds, so that its key is computed once.
        scores = self._scores.setdefault(scores.label, scores)
        return Stage(TopRecipe(fraction), label, {"pool": self.pool, "scores": scores})

    def _requested(
        self, request: rq.Request[Any], fraction: float, seed: int
    ) -> Mapping[str, Stage]:
        """The stages behind a request, by the roles that `role_of` gives them."""
        if isinstance(request, rq.QueryAnswers):
            return self.answered_queries
        if isinstance(request, rq.ChosenBy):
            if request.row not in self.rows:
                raise ValueError(
                    f"{self.shared.file}: a selector asks for the subset of row {request.row!r}; "
                    f"expected one of {list(self.rows)}"
                )
            return {role_of(request): self.subset(request.row, fraction, seed)}
        if request not in self._results:
            self._results[request] = self._result(request)
        return {role_of(request): self._results[request]}

    def _result(self, request: rq.Request[Any]) -> Stage:
        base, pool = self.shared.base, self.pool
        match request:
            case rq.BaseModel():
                return base
            case rq.ReferenceModel():
                return self.reference
            case rq.Tokenizer():
                return self.shared.tokenizer
            case rq.QuerySet():
                return self._queryset
            case rq.Features(of):
                parents = {"model": base, "data": pool if of == "pool" else self._queryset}
                return Stage(FeaturesRecipe(), self._label("features", of), parents)
            case rq.Decodes(k, temperature):
                recipe = DecodesRecipe(k, temperature, self.shared.engine)
                label = self._label("decodes", "the pool")
                return Stage(recipe, label, {"model": base, "pool": pool})
            case rq.FittedCurvature(options):
                parents = {"pool": pool, "reference": self.reference}
                label = self._label("curvature", options.kind)
                return Stage(CurvatureRecipe(options), label, parents)
            case rq.InfluenceTable(curvature):
                query = self.experiment.query
                rule = query.rule if query is not None and query.decodes > 1 else "majority"
                parents = {"pool": pool, "reference": self.reference, **self.answered_queries}
                fitted = rq.FittedCurvature(curvature)
                parents["curvature"] = self._requested(fitted, 1.0, 0)[role_of(fitted)]
                label = self._label("influence", curvature.kind)
                return Stage(InfluenceRecipe(request, rule), label, parents)
            case rq.Trajectory():
                first = self.experiment.grid.seeds[0]
                label = self._label("trajectory", f"{request.checkpoints} checkpoints")
                run = TrajectoryRecipe(self.experiment.train, request, first)
                return Stage(run, label, {"model": base, "pool": pool})
        raise ValueError(
            f"{self.shared.file}: unknown request {request!r}; "
            "expected one of harness.selection.requests"
        )


def role_of(request: rq.Request[Any]) -> str:
    """The role of a request's result among the parents of a selection."""
    match request:
        case rq.BaseModel():
            return "model"
        case rq.ReferenceModel():
            return "reference"
        case rq.Tokenizer():
            return "tokenizer"
        case rq.QuerySet() | rq.QueryAnswers():
            return "queryset"
        case rq.ChosenBy(row):
            return f"row:{row}"
        case rq.Features(of):
            return f"features:{of}"
    # A selector may have several requests of one class.
    return f"{type(request).__name__}:{digest(plain(request))[:8]}"
