"""Evaluation through lm-eval: frozen task files over JSON lines, one row per item and decode.

The task files in `tasks/` name functions of this module: `documents` reads the items, `score`
grades every decode (lm-eval's default looks at the first only). Prompts are used as they stand,
answers end at the end-of-text token and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.grading import KINDS, Grader, Kind, Verdict
from harness.data.items import FIELDS, read_items
from harness.evaluation.benchmarks import LOCAL, TASKS, task_file
from harness.evaluation.environment import swapped
from harness.evaluation.settings import Decoding
from harness.experiment.store import digest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "task", "item", "decode", "correct", "answer", "rule", "response", "tokens", "truncated",
    "weights",
)  # fmt: skip
"""`rule`: how the answer was found; `truncated`: at the limit of tokens; `weights`: their hash."""


@dataclass(frozen=True)
class Task:
    """An evaluation task: the task file of that name over a JSON-lines file of items.

    `kind` of its answers; `max_tokens`: its own limit, None for the decoding's.
    """

    name: str
    data: Path
    kind: Kind = "plain"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name}: kind {self.kind!r}; expected one of {KINDS}")

    def limit(self, decoding: Decoding) -> int:
        """Maximum tokens of a response."""
        return decoding.max_tokens if self.max_tokens is None else self.max_tokens


def evaluate_tasks(
    model: Any, tasks: Sequence[Task], decoding: Decoding, max_length: int
) -> pd.DataFrame:
    """Answer every item of every task with an lm-eval model and grade every decode.

    Returns:
        One row per item and decode with the columns `COLUMNS` but for `weights`.
    """
    if len({task.name for task in tasks}) != len(tasks) or not tasks:
        names = [task.name for task in tasks]
        raise ValueError(f"tasks {names!r}; expected at least one, and each name once")
    built = _lm_eval_tasks(tasks, decoding)
    encoded: dict[str, list[int]] = {}
    for task, loaded in zip(tasks, built, strict=True):
        texts = [doc["prompt"] for doc in loaded.eval_docs]
        for position, (text, ids) in enumerate(zip(texts, model.encode(texts), strict=True)):
            limit = task.limit(decoding)
            check_length(f"{task.name}: item {position}", len(ids), limit, max_length)
            encoded[text] = ids
    model.seeds = decoding.seeds
    with _graders():
        samples = _simple_evaluate(model, built)
    named = {task.name: samples[task.name] for task in tasks}
    return _frame(named, encoded, model.lengths, decoding)


def check_length(what: str, length: int, limit: int, max_length: int) -> None:
    """Refuse a prompt that lm-eval would cut from the left to make room for `limit` tokens."""
    if length == 0 or length + limit > max_length:
        raise ValueError(
            f"{what} has {length} tokens and asks for {limit} more; expected a prompt, and at most "
            f"{max_length} together (max_tokens under [evaluate] or [[task]] sets the limit)"
        )


def _lm_eval_tasks(tasks: Sequence[Task], decoding: Decoding) -> list[Any]:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {task.name: {"path": str(task.data), "kind": task.kind} for task in tasks}
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"files": files})
    built = []
    for task in tasks:
        spec: Any = task.name
        if task_file(task.name).stem == LOCAL:
            spec = {**load_yaml(task_file(task.name)), "task": task.name}
            spec["dataset_kwargs"] = {"name": task.name}
        [loaded] = manager.load([spec])["tasks"].values()
        loaded.set_config("repeats", decoding.decodes)
        loaded.set_config("generation_kwargs", decoding.lm_eval_options(task.limit(decoding)))
        built.append(loaded)
    return built


def _simple_evaluate(model: Any, tasks: list[Any]) -> Mapping[str, list[dict[str, Any]]]:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    # Every call would list installed packages and ask git for a commit, in seconds: provenance
    # is kept by this program itself.
    with (
        swapped(evaluator, "add_env_info", lambda storage: None),
        swapped(evaluator, "get_git_commit_hash", lambda: None),
    ):
        results = evaluator.simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=TaskManager(include_path=TASKS, include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=None,
        )
    samples: Mapping[str, list[dict[str, Any]]] = results["samples"]
    return samples


def _frame(
    samples: Mapping[str, list[dict[str, Any]]],
    encoded: Mapping[str, list[int]],
    lengths: Mapping[tuple[tuple[int, ...], int | None], tuple[int, bool]],
    decoding: Decoding,
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for task, logged in samples.items():
        for sample in logged:
            ids = encoded[sample["arguments"][0][0]]
            [responses] = sample["resps"]
            graded = zip(responses, sample["correct"], decoding.seeds, strict=True)
            for decode, (response, verdict, seed) in enumerate(graded):
                tokens, cut = lengths[tuple(ids), seed]
                grade = (verdict.correct, verdict.extracted, verdict.rule)
                rows.append((task, sample["doc"]["id"], decode, *grade, response, tokens, cut))
    frame = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    texts = dict.fromkeys(("task", "item", "rule", "response"), "str") | {"answer": "string"}
    numbers = {"decode": "int16", "correct": "bool", "tokens": "int32", "truncated": "bool"}
    return frame.astype(texts | numbers)


def documents(files: Mapping[str, Mapping[str, str]], name: str, **_: Any) -> Mapping[str, Any]:
    """Items of a task for lm-eval: `files` maps names to `path` (JSON lines) and `kind`."""
    import datasets

    if name not in files:
        raise ValueError(f"task {name!r} has no data file; expected one of {sorted(files)}")
    kind = files[name]["kind"]
    rows = [
        {field: item[field] for field in FIELDS} | {"kind": kind}
        for item in read_items(Path(files[name]["path"]))
    ]
    # Without a fingerprint of its own, the data set would hash the state of its Python objects.
    table = datasets.table.InMemoryTable.from_pylist(rows)
    return {"test": datasets.Dataset(table, fingerprint=digest(rows))}


def every_decode(responses: Iterable[list[str]], _: Iterable[Any]) -> Iterable[list[str]]:
    """Filter that keeps all responses of an item; lm-eval's default keeps the first."""
    return responses


_open: dict[str, Grader] = {}
"""Graders by kind, while an evaluation runs: lm-eval asks for a function, not for a method."""


@contextmanager
def _graders() -> Iterator[None]:
    try:
        yield
    finally:
        for grader in _open.values():
            grader.close()
        _open.clear()


def score(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, list[Verdict]]:
    """Grade every decode of one item by the kind of its task."""
    [responses] = results
    if doc["kind"] not in _open:
        _open[doc["kind"]] = Grader(doc["kind"])
    grader = _open[doc["kind"]]
    return {"correct": [grader.grade(response, doc["answer"]) for response in responses]}


def share(graded: Sequence[Sequence[Verdict]]) -> float:
    """Share of correct decodes over all items."""
    flat = [verdict.correct for verdicts in graded for verdict in verdicts]
    return sum(flat) / len(flat)
