"""Examples from a file or from rows in memory, tokenised as a pool or a query set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import dataset
from harness.data.pool import Pool
from harness.experiment.config import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 2048


def examples(
    rows: str | Path | Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str = "prompt",
    response: str = "response",
    id: str | None = None,
    template: str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Pool:
    """Tokenise prompts and responses; the loss stands on the response and the end-of-text token.

    Args:
        rows: a .jsonl or .parquet file, or dictionaries.
        prompt: column of the prompts; `response` and `id` likewise. Without `id`, rows are called
            row-000001 and so on.
        template: a text with `{prompt}` in it, "chat" for the tokenizer's chat template, or None:
            chat where the tokenizer has one, else "Question: {prompt}\\nAnswer:\\n".
        max_tokens: longer responses are cut, longer prompts refused.

    Raises:
        ValueError: a missing column, or rows that cannot be used: all of them, by number and
            reason.
    """
    if max_tokens < 2:
        raise ValueError(f"max_tokens is {max_tokens!r}; expected at least 2")
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError("the tokenizer has no end-of-text token; expected eos_token to be set")
    columns: dict[str, Any] = {"prompt": prompt, "response": response, "id": id}
    columns["template"] = template
    if isinstance(rows, str | Path):
        path = Path(rows)
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"{path}: expected a file ending in .jsonl or .parquet")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a .jsonl or .parquet file")
        config = DataConfig(dataset=path.name, **columns)
        found, report = dataset.read(config, path)
    else:
        config = DataConfig(dataset="rows.jsonl", **columns)
        found, report = dataset.given(rows, config)
    return dataset.tokenise(found, config, tokenizer, max_tokens, report)
