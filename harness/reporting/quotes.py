"""Texts beside the records: examples of the pool, and the questions with their right answers.

A report can quote what stands here and nothing else. Of the testbed, which is made here, every text
is kept; of any other data set only what a page shows, each text up to `LIMIT` characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

LIMIT = 2000
"""Characters of a text that results and pages hold at most."""
QUESTIONS = "questions.parquet"
EXAMPLE_COLUMNS = ("prompt", "response")
QUESTION_COLUMNS = ("question", "answer")
UNQUOTED = frozenset({"gpqa_diamond"})
"""Tasks whose authors ask that no question appears in plain text on the web (arXiv 2311.12022)."""


@dataclass(frozen=True)
class Text:
    """A text as far as it was kept, and how many characters it has in full."""

    kept: str
    length: int

    @property
    def cut(self) -> bool:
        """Whether a part is missing."""
        return len(self.kept) < self.length


def shortened(text: str, limit: int = LIMIT) -> Text:
    """The first `limit` characters of a text."""
    return Text(text[:limit], len(text))


def examples_file(arm: str) -> str:
    """Name of the file that holds the texts of an arm's pool."""
    return "examples.parquet" if arm == "main" else f"examples-{arm}.parquet"


def examples(frame: pd.DataFrame, shown: Sequence[str] | None) -> pd.DataFrame:
    """What is kept of a pool's `id`, `prompt` and `response`; `shown`: only these, shortened."""
    chosen = frame[["id", *EXAMPLE_COLUMNS]]
    if shown is not None:
        chosen = chosen[chosen["id"].isin(set(shown))]
    return _measured(chosen, EXAMPLE_COLUMNS, whole=shown is None)


def questions(frame: pd.DataFrame, shown: Sequence[tuple[str, str]] | None) -> pd.DataFrame:
    """What is kept of `task`, `item`, `question` and `answer`; `shown`: only these, shortened."""
    chosen = frame[["task", "item", *QUESTION_COLUMNS]]
    chosen = chosen[~chosen["task"].isin(UNQUOTED)]
    if shown is not None:
        wanted = set(shown)
        pairs = zip(chosen["task"], chosen["item"], strict=True)
        chosen = chosen[[pair in wanted for pair in pairs]]
    return _measured(chosen, QUESTION_COLUMNS, whole=shown is None)


def _measured(frame: pd.DataFrame, columns: Sequence[str], whole: bool) -> pd.DataFrame:
    """Texts, cut unless `whole`, and beside each the characters that it has in full."""
    found = frame.reset_index(drop=True)
    for name in columns:
        values = [str(value) for value in found[name]]
        found[name] = values if whole else [value[:LIMIT] for value in values]
        found[f"{name}_length"] = [len(value) for value in values]
    return found


def read_examples(folder: Path, arm: str) -> Mapping[str, tuple[Text, Text]]:
    """Prompt and response by id; empty where texts were not kept."""
    path = folder / examples_file(arm)
    if not path.is_file():
        return {}
    return _pairs(pd.read_parquet(path), "id", EXAMPLE_COLUMNS)


def read_questions(folder: Path) -> Mapping[tuple[str, str], tuple[Text, Text]]:
    """Question and right answer by task and item; empty where texts were not kept."""
    path = folder / QUESTIONS
    if not path.is_file():
        return {}
    frame = pd.read_parquet(path)
    frame["key"] = list(zip(frame["task"], frame["item"], strict=True))
    return _pairs(frame, "key", QUESTION_COLUMNS)


def _pairs(frame: pd.DataFrame, key: str, columns: tuple[str, str]) -> dict[Any, tuple[Text, Text]]:
    """Both texts of every line, each cut to `LIMIT`, by the line's key."""
    sides = []
    for name in columns:
        lengths = frame[f"{name}_length"]
        pairs = zip(frame[name], lengths, strict=True)
        sides.append([Text(str(text)[:LIMIT], int(length)) for text, length in pairs])
    return dict(zip(frame[key], zip(*sides, strict=True), strict=True))
