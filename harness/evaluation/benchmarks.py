"""Evaluation tasks: frozen files, one for each, that say how its items are asked and graded.

The files in `tasks/` are lm-eval's, and readable without it. Those in `tasks/benchmarks/` also say
where the items come from (a hub data set at one commit), how many there are, the instruction after
each question, the token limit and the kind of the answers.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.grading import Kind

TASKS = Path(__file__).parent / "tasks"
HOOK = re.compile(rb"!function [\w.]+\.(\w+)")
"""A function that a task file names. Keys hold it under its first module, wherever it lives now."""
LOCAL = "local"
"""The task file of tasks that have none of their own."""
BENCHMARKS = tuple(sorted(path.stem for path in (TASKS / "benchmarks").glob("*.yaml")))
LETTERS = "ABCDEFGHIJ"
SUFFIXES = (".jsonl", ".parquet", ".csv")

Row = Mapping[str, Any]


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
    files = sorted(TASKS.rglob("*.yaml"), key=lambda path: path.stem)
    first_lines = {file.stem: file.read_text(encoding="utf-8").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ").partition(". Frozen")[0] for name, line in first_lines.items()}


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    `sizes`: items of the hub's copy, then of other published copies; `files`: names of local
    copies; `question`, `answer`: names that their columns have in one copy or another; `wrong`:
    columns of the wrong choices.
    """

    name: str
    title: str
    version: str
    kind: Kind
    sizes: tuple[int, ...]
    max_tokens: int
    hub: str
    split: str
    revision: str
    question: tuple[str, ...]
    answer: tuple[str, ...]
    instruction: str
    config: str | None = None
    wrong: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@functools.cache
def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; ValueError with those there are."""
    if name not in BENCHMARKS:
        raise ValueError(f"task {name!r} is no benchmark; expected one of {', '.join(BENCHMARKS)}")
    content = _read(name)
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in content["metadata"].items()
    }
    facts["version"] = str(facts["version"])
    facts["sizes"] = facts.pop("items")
    facts["files"] = (name, *facts.get("files", ()))
    limit = content["generation_kwargs"]["max_gen_toks"]
    return Benchmark(name=name, max_tokens=limit, **facts)


def _read(name: str) -> dict[str, Any]:
    """A task file without lm-eval: names of functions are left as they stand."""
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Plain.add_constructor("!function", lambda loader, node: str(node.value))
    content: dict[str, Any] = yaml.load(task_file(name).read_text(encoding="utf-8"), Plain)
    return content


def find_file(task: Benchmark, folder: Path) -> Path:
    """The task's file in `folder`; FileNotFoundError with the names that would do."""
    names = [f"{stem}{suffix}" for stem in task.files for suffix in SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder}: no file for the task {task.name!r}; expected one of {', '.join(names)}"
    )


def make_items(task: Benchmark, path: Path | None) -> list[dict[str, str]]:
    """Every item with `id`, `question` (choices included), `prompt` and reference `answer`.

    `prompt` is the question with the task's instruction, before any chat template.

    Raises:
        ValueError: the number of items is not the benchmark's, or an item lacks question or answer.
    """
    rows = _from_hub(task) if path is None else _from_file(path)
    source = f"{task.hub}@{task.revision}" if path is None else str(path)
    if len(rows) not in task.sizes:
        sizes = " or ".join(map(str, task.sizes))
        raise ValueError(
            f"{source}: {len(rows)} items; expected the {sizes} of {task.title} (part of a "
            "benchmark, or one of your own, becomes a task with a [[task]] table)"
        )
    return [_item(task, source, number, row) for number, row in enumerate(rows, 1)]


def _item(task: Benchmark, source: str, number: int, row: Row) -> dict[str, str]:
    question = str(_field(task.question, source, number, row)).strip()
    answer = _field(task.answer, source, number, row)
    if isinstance(answer, list | np.ndarray):
        answer = ", ".join(map(str, answer))
    answer = str(answer).strip()
    if task.wrong:
        wrong = [str(_field((name,), source, number, row)).strip() for name in task.wrong]
        question, answer = _choices(question, answer, wrong)
    return {
        "id": f"{task.name}-{number:04d}",
        "question": question,
        "prompt": f"{question}\n\n{task.instruction}",
        "answer": answer,
    }


def _field(names: Sequence[str], source: str, number: int, row: Row) -> Any:
    for name in names:
        if row.get(name) is not None and str(row[name]).strip():
            return row[name]
    raise ValueError(
        f"{source}: item {number} has none of {list(names)}; its columns are {sorted(row)}"
    )


def _choices(question: str, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """The question with its choices in an order that follows from its text; the right letter."""
    choices = [right, *wrong]
    seed = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "little")
    order = np.random.default_rng(seed).permutation(len(choices))
    lines = [f"{letter}) {choices[i]}" for letter, i in zip(LETTERS, order, strict=False)]
    return "\n".join([question, "", *lines]), LETTERS[int(np.flatnonzero(order == 0)[0])]


def _from_hub(task: Benchmark) -> list[Row]:
    import datasets

    try:
        data = datasets.load_dataset(
            task.hub, task.config, revision=task.revision, split=task.split
        )
    except Exception as error:
        # Whatever it is (no network, no access, no such commit), a local copy is the way round it.
        raise RuntimeError(
            f"task {task.name!r}: {task.hub} at {task.revision[:12]} cannot be read from the hub "
            f"({type(error).__name__}: {error}); expected access to it, or --task-data DIR with "
            f"{task.files[-1]}.jsonl"
        ) from error
    return list(data)


def _from_file(path: Path) -> list[Row]:
    import pandas as pd

    if path.suffix == ".csv":
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    from harness.data.dataset import read_rows

    rows, report = read_rows(path)
    if report.problems:
        raise ValueError(f"{report}\nexpected a JSON object in every line")
    return [row for row in rows if row is not None]
