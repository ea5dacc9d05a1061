"""Rows of a data set, checked and tokenised: from a local file, the hub, or the testbed.

Nothing is dropped in silence. Every row that cannot be used is counted with its number and its
reason; by default that stops the run, and `invalid = "drop"` leaves those rows out and says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.grading import extract
from harness.data.items import numbered_lines
from harness.data.pool import IGNORED, Pool
from harness.experiment.settings import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""Value of `template` that asks for the tokenizer's own chat template."""
PLAIN_TEMPLATE = "Question: {prompt}\nAnswer:\n"
"""For tokenizers without a chat template; ends in a newline so that no token spans the seam."""
SHOWN = 10

Row = dict[str, Any]


@dataclass
class Report:
    """What was read, and which rows (numbered from 1) could not be used, by reason."""

    source: str
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    problems: dict[str, list[int]] = field(default_factory=dict)

    def add(self, problem: str, row: int) -> None:
        """Note that `row` has `problem`."""
        self.problems.setdefault(problem, []).append(row)

    @property
    def invalid(self) -> set[int]:
        """Numbers of all rows that cannot be used."""
        return {row for rows in self.problems.values() for row in rows}

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.invalid)} of {self.rows} rows cannot be used"
            if self.problems
            else f"{self.source}: all {self.rows} rows can be used"
        ]
        for problem, rows in self.problems.items():
            numbers = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
            lines.append(f"  {problem}: {len(rows)} (row {numbers})")
        if self.truncated:
            lines.append(f"  responses cut at the token limit (kept): {self.truncated}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For the store and for reports."""
        return {
            "source": self.source,
            "rows": self.rows,
            "kept": self.kept,
            "truncated": self.truncated,
            "problems": {name: {"count": len(r), "rows": r} for name, r in self.problems.items()},
        }


def read(config: DataConfig, path: Path | None) -> tuple[list[Row | None], Report]:
    """Raw rows of a file or of a hub data set; None where a line is not a JSON object.

    Args:
        config: which data set; `config.dataset` is a hub name where `path` is None.
        path: the file behind `config.dataset`, where it is one.
    """
    if path is None:
        return _read_hub(config)
    rows, report = read_rows(path)
    return _checked_columns(rows, config, report)


def read_rows(path: Path) -> tuple[list[Row | None], Report]:
    """Rows of a .jsonl or .parquet file as they stand; None where a line is not a JSON object."""
    report = Report(path.name)
    rows: list[Row | None] = []
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows += pq.read_table(path).to_pylist()
    else:
        for number, line in numbered_lines(path, errors="replace"):
            rows.append(_parse(line))
            if rows[-1] is None:
                report.add("not a JSON object", number)
    report.rows = len(rows)
    return rows, report


def rows_in_memory(
    rows: Iterable[Mapping[str, Any]], config: DataConfig
) -> tuple[list[Row | None], Report]:
    """Rows that are in memory, checked as `read` checks those of a file; numbered from 1."""
    copies: list[Row | None] = [dict(row) if isinstance(row, Mapping) else None for row in rows]
    report = Report("rows", rows=len(copies))
    for number, row in enumerate(copies, 1):
        if row is None:
            report.add("not a mapping", number)
    return _checked_columns(copies, config, report)


def _parse(line: str) -> Row | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _read_hub(config: DataConfig) -> tuple[list[Row | None], Report]:
    import datasets

    data = datasets.load_dataset(config.dataset, revision=config.revision, split=config.split)
    report = Report(f"{config.dataset}@{config.revision}", rows=len(data))
    return _checked_columns(list(data), config, report)


def _checked_columns(
    rows: list[Row | None], config: DataConfig, report: Report
) -> tuple[list[Row | None], Report]:
    if not rows:
        raise ValueError(f"{report.source}: no rows; expected at least one")
    columns = {name: None for row in rows if row is not None for name in row}
    for key in ("prompt", "response", "answer", "id"):
        column = getattr(config, key)
        if column is not None and column not in columns:
            raise ValueError(
                f"{report.source}: no column {column!r} ({key} = {column!r}); "
                f"expected one of: {', '.join(columns)}"
            )
    return rows, report


def render(
    prompts: Iterable[str], template: str | None, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Prompts as the model sees them; the response follows directly.

    `template` is a text with `{prompt}` in it, `"chat"` for the tokenizer's own chat template, or
    None: chat where the tokenizer has a template, else `PLAIN_TEMPLATE`.
    """
    if template is None:
        template = CHAT if getattr(tokenizer, "chat_template", None) else PLAIN_TEMPLATE
    if template == CHAT:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        options = {"tokenize": False, "add_generation_prompt": True}
        return [str(tokenizer.apply_chat_template(chat, **options)) for chat in chats]
    if "{prompt}" not in template:
        raise ValueError(f"template = {template!r}; expected 'chat' or a text with '{{prompt}}'")
    return [template.replace("{prompt}", prompt) for prompt in prompts]


def tokenise(
    rows: list[Row | None],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    report: Report,
    invalid: str = "refuse",
) -> Pool:
    """Tokenise once: prompt tokens masked, then response tokens and the end-of-text token.

    `report` is completed in place. Rows that cannot be used raise ValueError (`refuse`) or are
    left out (`drop`). A response that passes `max_tokens` is cut and marked in `Pool.truncated`.
    """
    texts = _texts(rows, config, report)
    chat = (config.template or CHAT) == CHAT and getattr(tokenizer, "chat_template", None)
    prompts = render((t["prompt"] for t in texts.values()), config.template, tokenizer)
    starts = tokenizer(prompts, add_special_tokens=not chat)["input_ids"] if prompts else []
    responses = [t["response"] for t in texts.values()]
    ends = tokenizer(responses, add_special_tokens=False)["input_ids"] if responses else []
    kept: list[int] = []
    input_ids, labels, truncated = [], [], []
    for number, start, end in zip(texts, starts, ends, strict=True):
        if len(start) >= max_tokens:
            report.add(f"prompt longer than {max_tokens} tokens", number)
            continue
        full = [*start, *end, tokenizer.eos_token_id]
        kept.append(number)
        truncated.append(len(full) > max_tokens)
        input_ids.append(np.array(full[:max_tokens], dtype=np.int32))
        labels.append(input_ids[-1].copy())
        labels[-1][: len(start)] = IGNORED
    report.kept, report.truncated = len(kept), sum(truncated)
    if report.problems and invalid == "refuse":
        raise ValueError(f'{report}\nexpected usable rows only; fix them or set invalid = "drop"')
    if not kept:
        raise ValueError(f"{report}\nexpected at least one usable row")
    return Pool(
        ids=tuple(texts[n]["id"] for n in kept),
        input_ids=tuple(input_ids),
        labels=tuple(labels),
        columns=_columns([texts[n] for n in kept]),
        truncated=tuple(truncated),
    )


def _texts(rows: list[Row | None], config: DataConfig, report: Report) -> dict[int, Row]:
    """Usable rows by number, with the columns under the pool's own names."""
    texts: dict[int, Row] = {}
    ids = [_identity(row, config, number) for number, row in enumerate(rows, 1)]
    counts = Counter(ids)
    for (number, row), name in zip(enumerate(rows, 1), ids, strict=True):
        if row is None:
            continue
        problem = _problem(row, config)
        if problem is None and name is None:
            problem = f"empty or missing {config.id!r}"
        if problem is None and counts[name] > 1:
            problem = "duplicate id"
        if problem is not None:
            report.add(problem, number)
            continue
        response = row[config.response]
        answer = extract(response).text if config.answer is None else row.get(config.answer)
        renamed = (config.prompt, config.response, config.id or "id")
        texts[number] = {
            **{column: value for column, value in row.items() if column not in renamed},
            "id": name,
            "prompt": row[config.prompt],
            "response": response,
            "answer": None if answer is None else str(answer),
        }
    return texts


def _identity(row: Row | None, config: DataConfig, number: int) -> str | None:
    if config.id is None:
        return f"row-{number:06d}"
    value = (row or {}).get(config.id)
    return None if value is None or value == "" else str(value)


def _problem(row: Mapping[str, Any], config: DataConfig) -> str | None:
    for column in (config.prompt, config.response):
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"empty or missing {column!r}"
        if not isinstance(value, str):
            return f"{column!r} is not text"
    return None


def _columns(texts: list[Row]) -> dict[str, tuple[Any, ...]]:
    names = dict.fromkeys(name for text in texts for name in text if name != "id")
    reserved = {"truncated", "input_ids", "labels"}
    return {name: tuple(t.get(name) for t in texts) for name in names if name not in reserved}


def items_from_file(
    path: Path, columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """Items of an evaluation task in a local file: id, question, rendered prompt, answer.

    Raises:
        ValueError: a row without prompt or answer, or an id that repeats; every one is named.
    """
    config = DataConfig(
        dataset=path.name,
        prompt=columns["prompt"],
        response=columns["answer"],
        id=columns.get("id"),
    )
    rows, report = read(config, path)
    texts = _texts(rows, config, report)
    if report.problems:
        raise ValueError(f"{report}\nexpected a prompt, an answer and an own id in every row")
    prompts = render((t["prompt"] for t in texts.values()), columns.get("template"), tokenizer)
    return [
        {
            "id": text["id"],
            "question": text["prompt"],
            "prompt": prompt,
            "answer": extract(text["response"]).text or text["response"],
        }
        for text, prompt in zip(texts.values(), prompts, strict=True)
    ]
