"""Evaluation through lm-eval: frozen task files over JSON lines, one row per item and decode.

The task files in `tasks/` name functions of this module: `documents` reads the items, `score`
grades every decode (lm-eval's default looks at the first only). Prompts are used as they stand,
answers end at the end-of-text token and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from harness.engine import Completion, Decoding, EngineName, open_model
from harness.environment import engine_version, vllm_build
from harness.grade import extract, is_correct
from harness.traces import generators_kept, quiet, swapped

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Completion",
    "Decoding",
    "Engine",
    "Task",
    "default_engine",
    "engine_version",
    "resolve_engine",
    "task_digest",
]

TASKS = Path(__file__).parent / "tasks"
LOCAL = "local"
"""The task file of tasks that have none of their own."""
COLUMNS = ("task", "item", "decode", "correct", "answer", "response", "tokens")
FIELDS = ("id", "prompt", "answer")


def default_engine() -> EngineName:
    """`vllm` where a vLLM build is installed, else `hf`."""
    return "hf" if vllm_build() is None else "vllm"


def resolve_engine(name: str) -> EngineName:
    """The engine that `auto`, `vllm` or `hf` stands for on this machine."""
    if name == "auto":
        return default_engine()
    if name not in ("vllm", "hf"):
        raise ValueError(f"engine {name!r} is unknown; expected 'auto', 'vllm' or 'hf'")
    engine_version(name)
    return "vllm" if name == "vllm" else "hf"


def _task_file(name: str) -> Path:
    own = TASKS / f"{name}.yaml"
    return own if own.is_file() else TASKS / f"{LOCAL}.yaml"


def task_digest(name: str) -> str:
    """SHA-256 of the task's file: how its items are asked and scored."""
    return hashlib.sha256(_task_file(name).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Task:
    """An evaluation task: the task file of that name over a JSON-lines file of items."""

    name: str
    data: Path

    def key(self) -> str:
        """SHA-256 over task file and items; paths do not matter."""
        items = hashlib.sha256(Path(self.data).read_bytes()).hexdigest()
        return hashlib.sha256(f"{task_digest(self.name)}\n{items}".encode()).hexdigest()


class Engine:
    """A checkpoint that can answer: lm-eval's vLLM or Hugging Face class; close it after use.

    Args:
        folder: checkpoint in the Hugging Face layout, tokenizer included.
        name: `vllm` or `hf`.
        max_length: tokens of the longest prompt and its answer; cut to what the model has.
        threads: processor threads of the engine; the process gets its own back at the end.
        device: `cpu` (float32) or `cuda` (bfloat16).
        memory: share of the GPU's memory that vLLM takes.
        verbose: show logs and progress bars of the packages behind it.
    """

    def __init__(
        self,
        folder: Path,
        name: EngineName,
        max_length: int,
        threads: int = 1,
        device: str = "cpu",
        memory: float = 0.85,
        verbose: bool = False,
    ) -> None:
        self.name = name
        self.version = engine_version(name)
        self.verbose = verbose
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.max_length = min(max_length, config.get("max_position_embeddings", max_length))
        self._stack = ExitStack()
        opened = open_model(Path(folder), name, self.max_length, threads, device, memory, verbose)
        self._model: Any = self._stack.enter_context(opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and give its memory back; a second call does nothing."""
        self._model = None
        self._stack.close()

    def evaluate(self, tasks: Sequence[Task], decoding: Decoding) -> pd.DataFrame:
        """Answer and grade every item of every task, `decoding.decodes` times.

        Returns:
            One row per item and decode with the columns `COLUMNS`, in the order of the files.
        """
        if len({task.name for task in tasks}) != len(tasks) or not tasks:
            names = [task.name for task in tasks]
            raise ValueError(f"tasks {names!r}; expected at least one, and each name once")
        with quiet(self.verbose), generators_kept():
            built = _lm_eval_tasks(tasks, decoding)
            for task in built:
                texts = [doc["prompt"] for doc in task.eval_docs]
                self._check_lengths(task.task_name, texts, decoding)
            self._model.seeds = decoding.seeds if decoding.temperature > 0 else ()
            samples = _simple_evaluate(self._model, built)
        return _frame({t.name: samples[t.name] for t in tasks}, self._model, decoding)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[Completion]]:
        """Complete prompts given as token ids; `decoding.decodes` completions for each."""
        ids = [[int(token) for token in prompt] for prompt in prompts]
        if not ids:
            return []
        for position, prompt in enumerate(ids):
            self._check_length(f"prompt {position}", len(prompt), decoding)
        with quiet(self.verbose), generators_kept():
            made = self._model.complete(ids, decoding)
        end, tokenizer = self._model.eot_token_id, self._model.tokenizer
        texts = tokenizer.batch_decode(
            [row[:-1] if row[-1:] == [end] else row for row in made], skip_special_tokens=True
        )
        flat = [Completion(text, tuple(row)) for text, row in zip(texts, made, strict=True)]
        k = decoding.decodes
        return [flat[start : start + k] for start in range(0, len(flat), k)]

    def _check_lengths(self, task: str, prompts: list[str], decoding: Decoding) -> None:
        for position, ids in enumerate(_encode(self._model, prompts)):
            self._check_length(f"{task}: item {position}", len(ids), decoding)

    def _check_length(self, what: str, length: int, decoding: Decoding) -> None:
        # lm-eval would cut the prompt from the left and go on.
        if length == 0 or length + decoding.max_tokens > self.max_length:
            raise ValueError(
                f"{what} has {length} tokens and asks for {decoding.max_tokens} more; expected a "
                f"prompt, and at most {self.max_length} together"
            )


def _encode(model: Any, prompts: list[str]) -> list[list[int]]:
    """Token ids as the model's own lm-eval class makes them."""
    return [model.tok_encode(prompt) for prompt in prompts]


def _lm_eval_tasks(tasks: Sequence[Task], decoding: Decoding) -> list[Any]:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    files = {task.name: str(task.data) for task in tasks}
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"files": files})
    built = []
    for task in tasks:
        spec: Any = task.name
        if _task_file(task.name).stem == LOCAL:
            spec = {**load_yaml(_task_file(task.name)), "task": task.name}
            spec["dataset_kwargs"] = {"name": task.name}
        [loaded] = manager.load([spec])["tasks"].values()
        loaded.set_config("repeats", decoding.decodes)
        loaded.set_config("generation_kwargs", decoding.options)
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
    samples: Mapping[str, list[dict[str, Any]]], model: Any, decoding: Decoding
) -> pd.DataFrame:
    import pandas as pd

    seeds = decoding.seeds if decoding.temperature > 0 else (None,)
    rows = []
    for task, logged in samples.items():
        prompts = _encode(model, [sample["arguments"][0][0] for sample in logged])
        for sample, ids in zip(logged, prompts, strict=True):
            [responses] = sample["resps"]
            graded = zip(responses, sample["correct"], seeds, strict=True)
            for decode, (response, correct, seed) in enumerate(graded):
                tokens = model.lengths[tuple(ids), seed]
                answer = extract(response)
                item = sample["doc"]["id"]
                rows.append((task, item, decode, correct, answer, response, tokens))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds = dict.fromkeys(("task", "item", "answer", "response"), "str")
    return frame.astype(kinds | {"decode": "int16", "correct": "bool", "tokens": "int32"})


def documents(files: Mapping[str, str], name: str, **_: Any) -> Mapping[str, Any]:
    """Items of a task for lm-eval: `files` maps task names to JSON-lines files."""
    import datasets

    if name not in files:
        raise ValueError(f"task {name!r} has no data file; expected one of {sorted(files)}")
    path = Path(files[name])
    rows = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        missing = [field for field in FIELDS if not isinstance(row.get(field), str)]
        if missing or row["id"] in seen:
            problem = f"{missing} missing or not text" if missing else f"id {row['id']!r} again"
            raise ValueError(
                f"{path}: line {number}: {problem}; expected texts {list(FIELDS)}, ids unique"
            )
        seen.add(row["id"])
        rows.append({field: row[field] for field in FIELDS})
    if not rows:
        raise ValueError(f"{path}: no items; expected at least one line")
    return {"test": datasets.Dataset.from_list(rows)}


def every_decode(responses: Iterable[list[str]], _: Iterable[Any]) -> Iterable[list[str]]:
    """Filter that keeps all responses of an item; lm-eval's default keeps the first."""
    return responses


def score(doc: Mapping[str, str], results: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
    """Grade every decode of one item."""
    [responses] = results
    return {"correct": [is_correct(response, doc["answer"]) for response in responses]}


def share(graded: Sequence[Sequence[bool]]) -> float:
    """Share of correct decodes over all items."""
    flat = [correct for decodes in graded for correct in decodes]
    return sum(flat) / len(flat)
