"""Where task files are, and what identifies them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

TASKS = Path(__file__).parent
HOOK = re.compile(rb"!function [\w.]+\.(\w+)")
"""A function that a task file names. Keys hold it under its first module, wherever it lives now."""
LOCAL = "local"
"""The task file of tasks that have none of their own."""


def task_file(name: str) -> Path:
    """The file of a task; a task over a file of one's own has the one called `local`."""
    for folder in (TASKS, TASKS / "benchmarks"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    return TASKS / f"{LOCAL}.yaml"


def task_digest(name: str) -> str:
    """SHA-256 of the task's file: how its items are asked and scored."""
    text = HOOK.sub(rb"!function harness.evaluate.\1", task_file(name).read_bytes())
    return hashlib.sha256(text).hexdigest()


def titles() -> dict[str, str]:
    """Every task's name with what the first line of its file says of it."""
    found = {}
    for path in sorted(TASKS.rglob("*.yaml"), key=lambda path: path.stem):
        with path.open(encoding="utf-8") as lines:
            found[path.stem] = next(lines).strip().lstrip("# ").partition(". Frozen")[0]
    return found
