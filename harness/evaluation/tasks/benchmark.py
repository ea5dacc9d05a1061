"""Public benchmarks: what their task files say of items, prompt, limit and grading."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from harness.data.grading.extraction import Kind
from harness.evaluation.tasks.files import TASKS, task_file

BENCHMARKS = tuple(sorted(path.stem for path in (TASKS / "benchmarks").glob("*.yaml")))


@dataclass(frozen=True)
class Benchmark:
    """One public benchmark.

    `sizes`: items of the hub's copy, then of other published copies; `question`, `answer`: names
    that their columns have in one copy or another; `wrong`: columns of the wrong choices.
    """

    name: str
    title: str
    version: str
    kind: Kind
    sizes: tuple[int, ...]
    max_tokens: int
    hub: str
    config: str | None
    split: str
    revision: str
    files: tuple[str, ...]
    question: tuple[str, ...]
    answer: tuple[str, ...]
    wrong: tuple[str, ...]
    instruction: str

    @property
    def items(self) -> int:
        """Items of the hub's copy."""
        return self.sizes[0]


@functools.cache
def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; ValueError with those there are."""
    if name not in BENCHMARKS:
        raise ValueError(f"task {name!r} is no benchmark; expected one of {', '.join(BENCHMARKS)}")
    content = _read(name)
    facts = content["metadata"]
    return Benchmark(
        name=name,
        title=facts["title"],
        version=str(facts["version"]),
        kind=facts["kind"],
        sizes=tuple(facts["items"]),
        max_tokens=content["generation_kwargs"]["max_gen_toks"],
        hub=facts["hub"],
        config=facts.get("config"),
        split=facts["split"],
        revision=facts["revision"],
        files=(name, *facts.get("files", ())),
        question=tuple(facts["question"]),
        answer=tuple(facts["answer"]),
        wrong=tuple(facts.get("wrong", ())),
        instruction=facts["instruction"],
    )


def _read(name: str) -> dict[str, Any]:
    """A task file without lm-eval: names of functions are left as they stand."""
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Plain.add_constructor("!function", lambda loader, node: str(node.value))
    content: dict[str, Any] = yaml.load(task_file(name).read_text(encoding="utf-8"), Plain)
    return content
