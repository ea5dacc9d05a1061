"""Items of evaluation tasks, and the one way in which JSON lines are read here.

A text may hold any character that Unicode calls a line end (U+2028, U+0085, ...): only the line
ends of the file itself separate its lines, so `str.splitlines` must never see them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ITEMS_FILE = "items.jsonl"
FIELDS = ("id", "prompt", "answer")


def numbered_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers from 1; `errors`: of decoding, as in `open`."""
    with path.open(encoding="utf-8-sig", errors=errors) as file:
        yield from enumerate(file, 1)


def read_items(path: Path) -> list[dict[str, str]]:
    """Items in the order of the file, with all their fields.

    Raises:
        ValueError: a line without the texts `FIELDS`, an id that repeats, or no item at all.
    """
    items: list[dict[str, str]] = []
    ids: set[str] = set()
    for number, line in numbered_lines(path):
        item = json.loads(line)
        missing = [field for field in FIELDS if not isinstance(item.get(field), str)]
        if missing or item["id"] in ids:
            problem = f"{missing} missing or not text" if missing else f"id {item['id']!r} again"
            raise ValueError(
                f"{path}: line {number}: {problem}; expected texts {list(FIELDS)}, ids unique"
            )
        ids.add(item["id"])
        items.append(item)
    if not items:
        raise ValueError(f"{path}: no items; expected at least one line")
    return items


def write_items(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write what `read_items` reads, in one step."""
    from harness.experiment.records import write_atomic

    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write_atomic(path, "".join(lines).encode())
