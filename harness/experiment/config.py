"""Experiments as files: strict TOML into frozen models, and errors that name file, key and value.

Only what a run depends on stands here; anything unknown is refused, because a misspelt key that is
silently ignored is a result under the wrong heading.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from harness.experiment.paths import EXPERIMENTS
from harness.experiment.settings import (
    TESTBED_CONTROLS,
    ArmConfig,
    EvaluateConfig,
    GridConfig,
    Model,
    ModelConfig,
    PoolConfig,
    ProtocolConfig,
    QueryConfig,
    Row,
    SelectorConfig,
    TaskConfig,
    TrainingRecipe,
)


class Experiment(Model):
    """A whole experiment, as its file says."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    description: str = ""
    discover: bool = False
    pool: PoolConfig
    model: ModelConfig = ModelConfig()
    train: TrainingRecipe
    query: QueryConfig | None = None
    evaluate: EvaluateConfig
    grid: GridConfig
    selector: tuple[SelectorConfig, ...] = ()
    task: tuple[TaskConfig, ...] = ()
    arm: tuple[ArmConfig, ...] = ()
    protocol: ProtocolConfig = ProtocolConfig()

    @model_validator(mode="after")
    def _together(self) -> Experiment:
        if self.query is not None:
            self._check_query(self.query)
        names = [row.row for row in self.rows()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rows {twice!r} occur more than once; expected distinct names")
        if self.protocol.reference not in names:
            raise ValueError(
                f"protocol.reference = {self.protocol.reference!r}; expected a row: {names}"
            )
        arms = ["main", *(arm.name for arm in self.arm)]
        if len(set(arms)) != len(arms):
            raise ValueError(f"arm names {arms!r} repeat; expected distinct names, not 'main'")
        return self

    def _check_query(self, query: QueryConfig) -> None:
        tasks = {_plain(task.data): task.name for task in self.task}
        tasks |= {_plain(name): name for name in self.evaluate.tasks}
        if _plain(query.dataset) in tasks:
            raise ValueError(
                f"query.dataset = {query.dataset!r} is also the evaluation task "
                f"{tasks[_plain(query.dataset)]!r}; expected a query set that is not evaluated on"
            )
        if query.testbed not in (None, "queries"):
            raise ValueError(f"query.dataset = {query.dataset!r}; expected 'testbed:queries'")

    def rows(self, discovered: tuple[str, ...] = ()) -> tuple[Row, ...]:
        """Every row of the table; `discovered` adds selectors that the file does not list."""
        listed = [
            Row(row=row_name(entry.name, params), selector=entry.name, params=_unnamed(params))
            for entry in self.selector
            for params in entry.rows
        ]
        if not any(row.row == "random" for row in listed):
            listed.insert(0, Row(row="random", selector="random"))
        names = {row.selector for row in listed}
        if self.discover:
            listed += [Row(row=name, selector=name) for name in discovered if name not in names]
        controls = ["base", "full"]
        if self.pool.testbed is not None:
            controls += TESTBED_CONTROLS
        return tuple(listed + [Row(row=name) for name in controls])


def _unnamed(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "name"}


def row_name(selector: str, params: dict[str, Any]) -> str:
    """`selector` or `selector/variant`; the variant is `name`, else what the parameters say."""
    if "name" in params:
        return f"{selector}/{params['name']}"
    parts = [v if isinstance(v, str) else f"{key}={v}" for key, v in params.items()]
    variant = "-".join(parts)
    return f"{selector}/{variant}" if variant else selector


def _plain(name: str) -> str:
    """The bare name of a data set: no owner, folder, ending, dash or underscore."""
    last = re.split(r"[/:\\]", name)[-1].lower()
    return re.sub(r"[-_]", "", re.sub(r"\.(jsonl|parquet)$", "", last))


def find(experiment: str, folder: Path = EXPERIMENTS) -> Path:
    """The file of an experiment given by name or path; ValueError lists the names that exist."""
    path = Path(experiment)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ValueError(f"experiment file {experiment!r} does not exist")
    path = folder / f"{experiment}.toml"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise ValueError(f"experiment {experiment!r} does not exist; expected one of: {have}")
    return path


def load(path: Path) -> Experiment:
    """Read and check one experiment file; ValueError names file, key, value and expectation."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    try:
        experiment = Experiment.model_validate(_tuples(raw))
    except ValidationError as error:
        lines = "\n".join(f"{path}: {line}" for line in explain(error, Experiment))
        raise ValueError(lines) from None
    _check_files(experiment, path)
    return experiment


def _check_files(experiment: Experiment, path: Path) -> None:
    data = [("pool.dataset", experiment.pool), ("query.dataset", experiment.query)]
    files = [(key, config.dataset) for key, config in data if config is not None and config.local]
    files += [(f"task[{i}].data", task.data) for i, task in enumerate(experiment.task)]
    for key, name in files:
        if not locate(name, path).is_file():
            raise ValueError(f"{path}: {key} = {name!r}: no such file; expected a .jsonl/.parquet")


def locate(name: str, experiment_file: Path) -> Path:
    """A data file of an experiment: relative to the working folder, else beside the experiment."""
    here = Path(name)
    return here if here.is_absolute() or here.exists() else experiment_file.parent / name


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which strict models expect; parameters of rows stay as they are."""
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return value


def explain(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line per problem of a file read into `root`: key, value and what was expected."""
    problems = error.errors(include_url=False)
    for problem in problems:
        loc, value, kind = problem["loc"], problem["input"], problem["type"]
        deeper = any(o["loc"][: len(loc)] == loc and len(o["loc"]) > len(loc) for o in problems)
        if deeper:  # the entry inside is the cause; "too short" is only its echo
            continue
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
        where = where.lstrip(".")
        text = "a table" if isinstance(value, dict) else repr(value)
        if kind == "extra_forbidden":
            yield f"{where} = {text}: unknown key; expected {_expected_keys(loc, root)}"
        elif kind == "missing":
            yield f"{where}: missing; expected a value"
        elif kind == "value_error":
            cause = str(problem["ctx"]["error"])
            yield f"{where}: {cause}" if where else cause
        else:
            message = problem["msg"].removeprefix("Input should ").removeprefix("be ")
            yield f"{where} = {text}: expected {message[:1].lower()}{message[1:]}"


def _expected_keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """The keys of the table that holds the unknown one, the closest first."""
    model: Any = root
    for part in loc[:-1]:
        if isinstance(part, str):
            kinds = get_args(model.model_fields[part].annotation)
            kinds = kinds or (model.model_fields[part].annotation,)
            model = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    hint = f"{close[0]!r}? Known keys: " if close else "one of: "
    return hint + ", ".join(names)
