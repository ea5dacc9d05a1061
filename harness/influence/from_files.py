"""Influence from files: a model, a pool and queries in, a table of scores out.

Everything that a killed run has finished is in a folder beside the output, `<out>.partial`: the
curvature, and the shards of the scores. The same command continues there; the folder is removed
once the table is written.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import dataset
from harness.data.pool import Pool
from harness.experiment.settings import DataConfig
from harness.influence.options import METHODS, CurvatureOptions

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from harness.influence.batches import Progress
    from harness.influence.curvature.base import Curvature

SUFFIXES = (".parquet", ".csv", ".jsonl")
PRECISIONS = ("float32", "bfloat16")
FITTED = "fit.json"
LISTED = 5
"""Examples at either end of the order that a summary names."""
MAX_TOKENS = 2048
Note = Callable[[str], None]


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
    """Tokenise prompts and responses; the loss is on the response and the end-of-text token.

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
        _check_file(path)
        config = DataConfig(dataset=path.name, **columns)
        records, report = dataset.read(config, path)
    else:
        config = DataConfig(dataset="rows.jsonl", **columns)
        records, report = dataset.rows_in_memory(rows, config)
    return dataset.tokenise(records, config, tokenizer, max_tokens, report)


def _check_file(path: Path) -> None:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: expected a file ending in .jsonl or .parquet")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .jsonl or .parquet file")


@dataclass(frozen=True)
class Request:
    """One call of `cotsieve influence`; see its options."""

    model: str
    pool: Path
    queries: Path
    out: Path
    options: CurvatureOptions | None = None
    prompt: str = "prompt"
    response: str = "response"
    id: str | None = None
    template: str | None = None
    max_tokens: int = MAX_TOKENS
    aggregate: str = "mean"
    per_query: bool = False
    method: str = "auto"
    revision: str | None = None
    tokenizer: str | None = None
    precision: str = "float32"
    device: str | None = None
    save_curvature: Path | None = None
    use_curvature: Path | None = None

    def __post_init__(self) -> None:
        if self.out.suffix not in SUFFIXES:
            expected = ", ".join(SUFFIXES)
            raise ValueError(f"--out {str(self.out)!r}; expected a name ending in {expected}")
        if self.aggregate not in ("mean", "sum"):
            raise ValueError(f"--aggregate {self.aggregate!r}; expected mean or sum")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--dtype {self.precision!r}; expected {' or '.join(PRECISIONS)}")
        if self.use_curvature is not None and self.options is not None:
            raise ValueError(
                "--use-curvature with options of a fit; expected none: the curvature has its own"
            )
        if self.use_curvature is not None and self.save_curvature is not None:
            raise ValueError("--use-curvature with --save-curvature; expected one of them")


def run(request: Request, progress: Progress, note: Note) -> dict[str, Any]:
    """Write the table that `request` asks for; return what the summary shows."""
    import torch

    from harness.influence.score_table import scores

    _check_inputs(request)
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(request, device)
    pool, queries = (
        examples(
            path,
            tokenizer,
            prompt=request.prompt,
            response=request.response,
            id=request.id,
            template=request.template,
            max_tokens=request.max_tokens,
        )
        for path in (request.pool, request.queries)
    )
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = f"{type(model).__name__} of {millions:.1f}M parameters"
    note(f"{len(pool)} examples, {len(queries)} queries; {size} on {device}")
    partial = request.out.with_name(f"{request.out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _warnings_as(note):
        start = time.perf_counter()
        curvature, origin = _fitted(request, partial, model, pool, progress)
        fit_seconds = time.perf_counter() - start
        note(
            f"curvature {curvature.options.kind}, fitted on {curvature.examples} examples: "
            + (f"found in {origin}" if origin else f"{fit_seconds:.1f} s")
        )
        table = scores(
            model,
            curvature,
            pool,
            queries,
            aggregate=None if request.per_query else request.aggregate,
            method=request.method,
            progress=progress,
            shards=partial / "scores",
        )
    facts = table.attrs
    if request.per_query:
        total = table.mean(axis=1) if request.aggregate == "mean" else table.sum(axis=1)
        table.insert(0, "score", total)
    _write(table, request.out, facts)
    shutil.rmtree(partial)
    return _summary(request, table, facts, None if origin else fit_seconds)


def _check_inputs(request: Request) -> None:
    """Before a model is loaded."""
    for path in (request.pool, request.queries):
        _check_file(path)
    if request.use_curvature is not None:
        path = request.use_curvature / "curvature.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected what --save-curvature wrote")


def load(request: Request, device: str) -> tuple[Any, Any]:
    """Model and tokenizer: a folder, a folder with a peft adapter, or a hub name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(request.model)
    loader: Any = AutoModelForCausalLM
    if folder.is_dir():
        if request.revision is not None:
            raise ValueError(f"--revision with the folder {folder}; expected none")
        if (folder / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            loader = AutoPeftModelForCausalLM
        elif not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder}: neither config.json nor adapter_config.json; "
                "expected a folder of a transformers model or of a peft adapter"
            )
    elif request.revision is None:
        raise ValueError(
            f"model {request.model!r} is no folder here; expected one, or a hub name with "
            "--revision and the hash of a commit"
        )
    revision = {} if request.revision is None else {"revision": request.revision}
    model = loader.from_pretrained(
        request.model, dtype=request.precision, **_attention(request, device), **revision
    )
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # other kernels leave the cap out
    source = request.tokenizer or request.model
    if loader is not AutoModelForCausalLM and request.tokenizer is None:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if not (folder / "tokenizer_config.json").is_file():
            source = str(config["base_model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(source, **({} if request.tokenizer else revision))
    return model.to(device).eval(), tokenizer


def _attention(request: Request, device: str) -> dict[str, str]:
    """The attention kernel: the plain one where it is needed, else the choice of transformers.

    The plain one keeps tokens x tokens for every head. Forward mode has derivatives for no other;
    in single precision on a GPU gradients of fused kernels depend on the composition of the batch,
    and in 16 bits on a CPU there is nothing to gain.
    """
    usual = (device == "cpu") == (request.precision == "float32")
    return {} if usual and request.method != "forward" else {"attn_implementation": "eager"}


def _fitted(
    request: Request, partial: Path, model: Any, pool: Pool, progress: Progress
) -> tuple[Curvature, Path | None]:
    """The curvature, and the folder that it was found in, unless it was fitted now."""
    from harness.experiment.records import write_atomic
    from harness.influence.curvature.base import Curvature
    from harness.influence.curvature.fit import fit
    from harness.influence.score_table import weights_digest

    if request.use_curvature is not None:
        return Curvature.load(request.use_curvature), request.use_curvature
    options = request.options or CurvatureOptions()
    folder = request.save_curvature or partial / "curvature"
    made_from = {
        "options": dataclasses.asdict(options),
        "pool": pool.fingerprint,
        "weights": weights_digest(model),
    }
    path = folder / FITTED
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == made_from:
        return Curvature.load(folder), folder
    path.unlink(missing_ok=True)
    curvature = fit(model, pool, options, progress=progress)
    curvature.save(folder)
    write_atomic(path, json.dumps(made_from, indent=1).encode())  # last: now it is complete
    return curvature, None


def _write(table: pd.DataFrame, path: Path, facts: dict[str, Any]) -> None:
    """The table by suffix, under a temporary name first; parquet keeps what scores depend on."""
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".parquet":
        stored = table.reset_index()
        # Neither times nor interruptions: equal scores, equal bytes.
        stored.attrs = {k: v for k, v in facts.items() if k not in ("seconds", "shards")}
        stored.to_parquet(temporary, index=False)
    elif path.suffix == ".csv":
        table.to_csv(temporary)
    else:
        rows = table.reset_index().to_dict(orient="records")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _summary(
    request: Request, table: pd.DataFrame, facts: dict[str, Any], fit_seconds: float | None
) -> dict[str, Any]:
    ordered = table["score"].sort_values(ascending=False, kind="stable")
    seconds = {"fit": fit_seconds, **facts["seconds"]}
    return {
        **{name: value for name, value in facts.items() if name != "seconds"},
        "aggregate": request.aggregate,
        "per_query": request.per_query,
        "seconds": {name: value and round(value, 3) for name, value in seconds.items()},
        "top": {str(name): float(value) for name, value in ordered.head(LISTED).items()},
        "bottom": {str(name): float(value) for name, value in ordered.tail(LISTED).items()},
        "out": str(request.out),
    }


def lines(summary: dict[str, Any]) -> Iterator[str]:
    """The summary for people."""
    seconds, shards = summary["seconds"], summary["shards"]
    yield f"method {summary['method']}: {METHODS[summary['method']]}"
    if shards["found"]:
        yield f"continued: {shards['found']} of {shards['total']} shards were finished before"
    parts = [f"{name} {value:.1f} s" for name, value in seconds.items() if value is not None]
    yield f"seconds: {', '.join(parts)}"
    width = max(len(name) for side in ("top", "bottom") for name in summary[side])
    for side, meaning in (("top", "raises"), ("bottom", "lowers, or raises least,")):
        yield f"{side}: training more on these {meaning} the queries' log-probability"
        for name, value in summary[side].items():
            yield f"  {name:<{width}}  {value:+.6g}"
    yield f"{summary['examples']} scores written to {summary['out']}"


@contextmanager
def _warnings_as(note: Note) -> Iterator[None]:
    """Shows the warning about discarded shards as a plain line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", ".*starting anew", UserWarning)
        original = warnings.showwarning

        def show(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if "starting anew" in str(message):
                note(str(message))
            else:
                original(message, category, *rest, **more)

        warnings.showwarning = show
        yield
