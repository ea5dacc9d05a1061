"""The query set and its answers: which queries fine-tuning corrected, and which it broke.

One greedy answer flips by chance as well as by training. With several decodes of a query a rule
says whether it is right: by majority (more than half of the decodes are right; a tie is wrong), if
any decode is, or only if all are. Every decode is kept: influence is computed on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.pool import Pool, Tokens

ANSWERS = "answers.parquet"
RULES = ("majority", "any", "all")

Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Every decode of every query by one model, in the order of the query set.

    `texts[v][k]` and `tokens[v][k]`: decode k of query v, the token that ends the text included.
    `right`: whether it is right, bool [queries, decodes].
    """

    texts: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[Tokens, ...], ...]
    right: Flags

    def __post_init__(self) -> None:
        q, k = self.right.shape
        for name in ("texts", "tokens"):
            rows = getattr(self, name)
            if len(rows) != q or any(len(row) != k for row in rows):
                raise ValueError(f"answers: {name} are not {q} x {k}; expected one per decode")

    def correct(self, rule: str) -> Flags:
        """Whether each query is right by `rule`, bool [queries]."""
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; expected one of {', '.join(RULES)}")
        decodes = self.right.shape[1]
        needed = {"majority": decodes // 2 + 1, "any": 1, "all": decodes}[rule]
        correct: Flags = self.right.sum(axis=1) >= needed
        return correct

    def save(self, folder: Path, ids: Sequence[str]) -> None:
        """Write `answers.parquet`: a row per query and decode; one decode has no such column."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        k = self.right.shape[1]
        table = {
            "id": pa.array([name for name in ids for _ in range(k)]),
            "response": pa.array([text for row in self.texts for text in row]),
            "ids": pa.array(
                [list(map(int, tokens)) for row in self.tokens for tokens in row],
                pa.list_(pa.int32()),
            ),
            "correct": pa.array(self.right.ravel().tolist(), pa.bool_()),
        }
        if k > 1:
            table["decode"] = pa.array(list(range(k)) * len(ids), pa.int16())
        pq.write_table(pa.table(table), folder / ANSWERS, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """Read what `save` wrote."""
        import pyarrow.parquet as pq

        table = pq.read_table(folder / ANSWERS).to_pydict()
        k = max(table.get("decode", [0]), default=0) + 1
        starts = range(0, len(table["id"]), k)
        tokens = [np.asarray(row, np.int32) for row in table["ids"]]
        return cls(
            texts=tuple(tuple(table["response"][start : start + k]) for start in starts),
            tokens=tuple(tuple(tokens[start : start + k]) for start in starts),
            right=np.asarray(table["correct"], dtype=bool).reshape(-1, k),
        )


@dataclass(frozen=True)
class Queries:
    """The query set, answered before (base model) and after (reference) fine-tuning.

    `rule`: when a query with several decodes is right.
    """

    pool: Pool
    before: Answers
    after: Answers
    rule: str = "majority"

    def __post_init__(self) -> None:
        for when in ("before", "after"):
            answered = len(getattr(self, when).right)
            if answered != len(self.pool):
                raise ValueError(
                    f"answers {when} are for {answered} queries; expected {len(self.pool)}"
                )

    @property
    def correct_before(self) -> Flags:
        """Queries that the base model gets right."""
        return self.before.correct(self.rule)

    @property
    def correct_after(self) -> Flags:
        """Queries that the fine-tuned model gets right."""
        return self.after.correct(self.rule)

    @property
    def C(self) -> Positions:
        """Queries that fine-tuning corrected: wrong before, right after."""
        return np.flatnonzero(~self.correct_before & self.correct_after).astype(np.int64)

    @property
    def I(self) -> Positions:  # noqa: E743 - the literature's name
        """Queries that fine-tuning broke: right before, wrong after."""
        return np.flatnonzero(self.correct_before & ~self.correct_after).astype(np.int64)
