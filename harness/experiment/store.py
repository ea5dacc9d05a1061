"""Content-addressed artefacts on disk: atomic, locked, and the only state of a run.

An artefact is a folder `<root>/<stage>/<key>/` whose key is the hash of everything it depends on:
the stage, its version, its parameters and the keys of its parents; never a path, a host name or a
time. `meta.json` is written last, inside a temporary folder that is then renamed, so an artefact
either exists completely or not at all, whatever kills the process. A file lock per artefact lets
two processes share a store: the second waits, then finds it made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

META = "meta.json"
LOG = "log.txt"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """SHA-256 over the names and bytes of a file, or of every file of a folder."""
    if path.is_file():
        return file_digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest({p.relative_to(path).as_posix(): file_digest(p) for p in files})


@dataclass(frozen=True)
class Artefact:
    """One finished artefact: its folder and what `meta.json` says of it."""

    folder: Path
    meta: Mapping[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        """What the builder returned."""
        return dict(self.meta["info"])

    @property
    def seconds(self) -> float:
        """Wall time that building took."""
        return float(self.meta["seconds"])

    @property
    def outputs(self) -> dict[str, str]:
        """SHA-256 of every file, by name."""
        return dict(self.meta["outputs"])


class Keyed(Protocol):
    """What the store has to know of a stage."""

    @property
    def kind(self) -> str:
        """The kind of artefact, which names its folder."""
        ...

    @property
    def key(self) -> str:
        """The hash of everything that the artefact depends on."""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """What the key is the hash of."""
        ...


class Store:
    """The artefacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Keyed) -> Path:
        """Where an artefact is, or would be."""
        return self.root / stage.kind / stage.key[:32]

    def failure_folder(self, stage: Keyed) -> Path:
        """Where the log and the error of a failed build are kept until it succeeds."""
        return self.root / "failed" / f"{stage.kind}-{stage.key[:32]}"

    def get(self, stage: Keyed) -> Artefact | None:
        """The artefact, or None where it is not built yet."""
        path = self.folder(stage) / META
        try:
            return Artefact(path.parent, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def load(self, stage: Keyed) -> Artefact:
        """The artefact; RuntimeError where it is not built yet."""
        artefact = self.get(stage)
        if artefact is None:
            raise RuntimeError(f"{stage.kind} {stage.key[:12]} is not in the store {self.root}")
        return artefact

    def has(self, stage: Keyed) -> bool:
        """Whether the artefact is complete."""
        return (self.folder(stage) / META).exists()

    def make(
        self,
        stage: Keyed,
        build: Callable[[Path], Mapping[str, Any]],
        provenance: Callable[[], Mapping[str, Any]] = dict,
    ) -> Artefact:
        """Return the artefact, building it first where it is missing.

        `build` writes files into the folder it is given and returns facts worth keeping; an
        exception leaves nothing behind but its own traceback.
        """
        if artefact := self.get(stage):
            return artefact
        final = self.folder(stage)
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{stage.kind}-{stage.key[:32]}.lock"):
            if artefact := self.get(stage):
                return artefact
            work = self._work_folder(final)
            start = time.perf_counter()
            try:
                info = dict(build(work))
                outputs = {
                    p.relative_to(work).as_posix(): file_digest(p)
                    for p in sorted(work.rglob("*"))
                    if p.is_file() and p.name != LOG
                }
                meta = {
                    "stage": stage.kind,
                    "key": stage.key,
                    "inputs": stage.manifest,
                    "info": info,
                    "outputs": outputs,
                    "seconds": time.perf_counter() - start,
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "provenance": dict(provenance()),
                }
                (work / META).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
                if final.exists():  # left by a crash between two renames of an older version
                    shutil.rmtree(final)
                os.replace(work, final)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
        return self.load(stage)

    def _work_folder(self, final: Path) -> Path:
        """An empty folder beside the final one; what a killed process left there is removed."""
        work = final.parent / f".{final.name}.tmp"
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        return work

    def log(self, stage: Keyed) -> Path | None:
        """The log of an artefact, or of its last failed build."""
        for folder in (self.folder(stage), self.failure_folder(stage)):
            if (folder / LOG).exists():
                return folder / LOG
        return None
