"""One step of a run as data: what it is made from, and the key that follows from it.

A stage's key hashes its kind, the version of the code that builds that kind, its inputs and the
keys of its parents. Paths stand in `where`, which is not hashed, so moving a folder changes
nothing. The version of a kind is raised by hand when its code changes what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.experiment.store import Artefact, Store, digest

VERSIONS: Mapping[str, int] = {
    "tokenizer": 1,
    "base": 1,
    "model": 1,
    "pool": 1,
    "queryset": 1,
    "items": 1,
    "proof": 1,
    "overlap": 1,
    "answers": 1,
    "features": 1,
    "decodes": 1,
    "curvature": 1,
    "influence": 2,
    "trajectory": 1,
    "scores": 1,
    "subset": 1,
    "checkpoint": 1,
    "samples": 2,
    "noise": 1,
    "retraining": 1,
    "prediction": 1,
}
"""Raise the number of a kind whose code now gives other results for the same inputs."""

SIGNALS: Mapping[str, tuple[str, ...]] = {
    "features": ("features",),
    "decodes": ("decodes",),
    "curvature": ("curvature",),
    "influence": ("curvature", "influence"),
}
"""What a selector may need, and the kinds of shared artefacts that it is then given."""

EXTERNAL = frozenset({"model"})
"""Kinds that lie outside the store (a model folder or a hub snapshot) and are never built."""


@dataclass(frozen=True)
class Stage:
    """A step of the run; equal content, equal key."""

    kind: str
    label: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Stage] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """What the key is the hash of."""
        return {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "inputs": dict(self.inputs),
            "parents": {role: parent.key for role, parent in self.parents.items()},
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the recipe."""
        return digest(self.recipe)

    def ancestry(self) -> Iterator[Stage]:
        """This stage and everything it depends on, parents first, each once."""
        seen: set[str] = set()

        def walk(stage: Stage) -> Iterator[Stage]:
            if stage.key in seen:
                return
            seen.add(stage.key)
            for parent in stage.parents.values():
                yield from walk(parent)
            yield stage

        return walk(self)


def signal_versions(needs: Iterable[str]) -> dict[str, int]:
    """Versions of the shared artefacts behind `needs`, as part of the key of what is made of them.

    Version 1 goes without saying: keys from before a version was raised stay valid.
    """
    kinds = {kind for need in needs for kind in SIGNALS.get(need, ())}
    return {kind: VERSIONS[kind] for kind in sorted(kinds) if VERSIONS[kind] > 1}


def together(stages: Iterable[Stage]) -> dict[str, Stage]:
    """All stages and their ancestors by key, parents before children."""
    found: dict[str, Stage] = {}
    for stage in stages:
        for ancestor in stage.ancestry():
            found.setdefault(ancestor.key, ancestor)
    return found


def artefact(store: Store, stage: Stage) -> Artefact:
    """The finished artefact behind a stage."""
    found = store.get(stage.kind, stage.key)
    if found is None:
        raise RuntimeError(f"{stage.label} is not in the store")
    return found
