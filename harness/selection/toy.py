"""A made-up pool, query set and model that offer a selector everything that a context has.

Small enough for a test of behaviour in a second; what is chosen on it means nothing.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.pool import IGNORED, Pool
from harness.data.queries import Answers, Queries
from harness.selection.influence_table import compute_influence
from harness.selection.requests import (
    BaseModel,
    ChosenBy,
    Decodes,
    Features,
    FittedCurvature,
    InfluenceTable,
    QueryAnswers,
    QuerySet,
    ReferenceModel,
    Request,
    Tokenizer,
    Trajectory,
)

SIZE = 48
ALPHABET = "?abcdefghijklmnopqrstuvwxyz0123456789+-*= #."
PAD, EOS = 0, 1


class Fixture:
    """Results of everything that a selector may request, on made-up data."""

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def load(self, request: Request[Any], pool: Pool, budget: int) -> Any:
        """The result of one request for a run on `pool`; other rows chose at random."""
        key = (request, pool.ids, budget if isinstance(request, ChosenBy) else None)
        if key not in self._results:
            self._results[key] = _result(request, pool, budget)
        return self._results[key]


def _result(request: Request[Any], pool: Pool, budget: int) -> Any:
    from harness.influence import fit
    from harness.selection.features import compute_features

    match request:
        case BaseModel():
            return models()[0]
        case ReferenceModel():
            return models()[1]
        case Tokenizer():
            return tokenizer()
        case QuerySet():
            return make_queries().pool
        case QueryAnswers():
            return make_queries()
        case Features(of):
            of_pool = pool if of == "pool" else make_queries().pool
            return compute_features(models()[0], of_pool, batch_size=SIZE)
        case Decodes(k):
            return _decodes(pool, k)
        case FittedCurvature(options):
            return fit(models()[1], pool, options)
        case InfluenceTable():
            return compute_influence(request, models()[1], pool, make_queries())[0]
        case Trajectory():
            return trajectory()
        case ChosenBy(row):
            seed = [len(row), *row.encode()]
            drawn = np.random.default_rng(seed).choice(SIZE, budget, replace=False)
            return tuple(sorted(pool.ids)[p] for p in drawn)
    raise ValueError(f"{request!r} is no known request; expected one of harness.selection.requests")


def _encode(text: str) -> list[int]:
    return [ALPHABET.index(character) + 2 for character in text]


def _tokenised(prompt: str, response: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    first, second = _encode(prompt), [*_encode(response), EOS]
    ids = np.array([*first, *second], dtype=np.int32)
    return ids, np.array([IGNORED] * len(first) + second, dtype=np.int32)


def _examples(n: int, name: str, seed: int) -> Pool:
    """Small sums with rambling answers; all response lengths are different."""
    rng = np.random.default_rng(seed)
    rambling = rng.permutation(n)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("prompt", "response", "answer", "steps", "source")
    }
    tokens = []
    for row in range(n):
        x, y = (int(v) for v in rng.integers(10, 50, 2))
        filler = "".join(rng.choice(list("abcdefghij "), int(rambling[row])))
        values: tuple[Any, ...] = (
            f"{x}+{y}=?",
            f"{filler}. {x}+{y}={x + y} #### {x + y:03d}",
            f"{x + y:03d}",
            float(rambling[row]) / 2,
            ["book", "web", "exam"][row % 3],
        )
        for key, value in zip(columns, values, strict=True):
            columns[key].append(value)
        tokens.append(_tokenised(values[0], values[1]))
    return Pool(
        ids=tuple(f"{name}-{row:02d}" for row in range(n)),
        input_ids=tuple(ids for ids, _ in tokens),
        labels=tuple(labels for _, labels in tokens),
        columns={key: tuple(values) for key, values in columns.items()},
    )


def make_pool() -> Pool:
    """The pool of 48 examples, with columns prompt, response, answer, steps and source."""
    return _examples(SIZE, "example", 1)


@cache
def make_queries() -> Queries:
    """Eight queries: three put right by fine-tuning, two spoiled, three unchanged."""
    pool = _examples(8, "query", 2)
    right = tuple(labels[labels != IGNORED] for labels in pool.labels)
    wrong = tuple(np.array([*_encode(" #### 000"), EOS], dtype=np.int32) for _ in range(8))
    before = np.array([0, 0, 0, 1, 1, 1, 0, 1], dtype=bool)
    after = np.array([1, 1, 1, 0, 0, 1, 0, 1], dtype=bool)

    def chosen(correct: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], ...]:
        return tuple(right[q] if correct[q] else wrong[q] for q in range(8))

    def answers(correct: npt.NDArray[np.bool_]) -> Answers:
        tokens = chosen(correct)
        texts = tuple(("".join(ALPHABET[t - 2] for t in ids[:-1]),) for ids in tokens)
        return Answers(texts, tuple((ids,) for ids in tokens), correct[:, None])

    return Queries(pool, answers(before), answers(after))


def _decodes(pool: Pool, k: int) -> npt.NDArray[np.bool_]:
    """Correctness drawn per example from its id, so that it moves with the example."""
    rows = [np.random.default_rng(list(name.encode())) for name in pool.ids]
    return np.stack([rng.random(k) < rng.random() for rng in rows])


@cache
def models() -> tuple[Any, Any]:
    """A random two-layer Qwen2 of width 32 and a second one near it, in eval mode."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(ALPHABET) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base, reference = Qwen2ForCausalLM(config).eval(), Qwen2ForCausalLM(config).eval()
        with torch.no_grad():
            for ours, other in zip(reference.parameters(), base.parameters(), strict=True):
                ours.copy_(other + 0.01 * torch.randn_like(other))
    return base, reference


@cache
def trajectory() -> tuple[Any, ...]:
    """The two models as checkpoints of one run, with made-up moments."""
    from harness.influence import Checkpoint

    return tuple(
        Checkpoint(4 * (k + 1), rate, partial(models().__getitem__, k), partial(_moments, k))
        for k, rate in enumerate((2e-3, 1e-3))
    )


@cache
def _moments(k: int) -> Any:
    import torch

    from harness.influence import Moments

    generator = torch.Generator().manual_seed(k)
    weights = dict(models()[k].named_parameters())

    def drawn(scale: float) -> dict[str, Any]:
        return {n: scale * torch.randn(w.shape, generator=generator) for n, w in weights.items()}

    second = {name: values.square() for name, values in drawn(1e-2).items()}
    return Moments(drawn(1e-3), second, 4 * (k + 1))


@cache
def tokenizer() -> Any:
    """One token per character of the alphabet."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<eos>": EOS, **{c: i + 2 for i, c in enumerate(ALPHABET)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
