"""One step of a run as data: a recipe, the stages it builds on, and a label for people.

A recipe holds everything that decides the bytes of an artefact, and nothing else; a stage's key is
the hash of its recipe and of its parents' keys. A file's path is not part of it, so moving a folder
changes nothing. A new kind of stage is one recipe class with its builder and its cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from harness.experiment.store import digest


@dataclass(frozen=True)
class Cost:
    """What a stage is expected to take: `seconds` is a first guess, sizes are in bytes."""

    seconds: float
    memory: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of one kind of artefact; its fields must be plain data.

    `version` is raised by hand when the builder's code gives other results for the same inputs.
    `builder` is the function that writes the files, as "module:function". A stage that
    `needs_engine` is built in a process that keeps an inference engine; an `external` one lies
    outside the store (a model folder or a hub snapshot) and is never built.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    builder: ClassVar[str] = ""
    needs_engine: ClassVar[bool] = False
    external: ClassVar[bool] = False
    seconds: ClassVar[float] = 3.0
    """First guess of the time to build one, replaced by what a run measures."""

    @property
    def worker_threads(self) -> int:
        """Threads that building one may use; part of the recipe where that changes the bytes."""
        return 1

    @property
    def tasks(self) -> int:
        """Tasks that an engine answers for it, each with its own time limit."""
        return 1

    def inputs(self) -> dict[str, Any]:
        """The fields as plain data, without those that are None."""
        return {f.name: plain(v) for f in fields(self) if (v := getattr(self, f.name)) is not None}

    def cost(self, parameters: int | None) -> Cost:
        """Expected cost, given the base model's number of parameters (None where unknown)."""
        return Cost(self.seconds)


def plain(value: Any) -> Any:
    """Settings as plain JSON data: dataclasses and pydantic models as dicts without Nones."""
    if hasattr(value, "model_dump"):  # pydantic's, which takes long to import
        return value.model_dump(mode="json", exclude_none=True)
    if is_dataclass(value):
        values = {f.name: getattr(value, f.name) for f in fields(value)}
        return {name: plain(v) for name, v in values.items() if v is not None}
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


@dataclass(frozen=True)
class Stage:
    """A step of a run; equal recipes and parents, equal key.

    `parents` are the stages it builds on, by role; `path` is the file or folder that it reads from
    outside the store.
    """

    recipe: Recipe
    label: str
    parents: Mapping[str, Stage] = field(default_factory=dict)
    path: Path | None = None

    @property
    def kind(self) -> str:
        """The kind of artefact."""
        return self.recipe.kind

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the key is the hash of."""
        return {
            "kind": self.kind,
            "version": self.recipe.version,
            "inputs": self.recipe.inputs(),
            "parents": {role: parent.key for role, parent in self.parents.items()},
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the manifest."""
        return digest(self.manifest)

    def ancestry(self) -> Iterator[Stage]:
        """This stage and everything it depends on, parents first, each once."""
        return iter(with_ancestors([self]).values())


def with_ancestors(stages: Iterable[Stage]) -> dict[str, Stage]:
    """All stages and their ancestors by key, parents before children."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in ordered:
            return
        for parent in stage.parents.values():
            visit(parent)
        ordered[stage.key] = stage

    for stage in stages:
        visit(stage)
    return ordered
