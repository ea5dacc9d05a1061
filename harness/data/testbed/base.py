"""The testbed's tokenizer and base model, which can follow chains and has never seen a product.

Qwen2 architecture, so that transformers, peft and vLLM all run it. Problems are generated on the
fly, with + and - only, by a curriculum of growing length; without it a model of this size takes
several times as long to learn chains at all. Deterministic for a spec, thread count included.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.pool import IGNORED
from harness.data.testbed.chains import MARK, draw, draw_from, solution
from harness.experiment.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    # Padded tensors, and the share of the batch's trained tokens that they hold.
    Part = tuple[dict[str, torch.Tensor], float]

Example = tuple[list[int], list[int]]  # prompt, response
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ALPHABET = "\n 0123456789abcdefghijklmnopqrstuvwxyz+-*=,;?#"
CONTEXT = 256  # positions that a testbed model has
_BYTE_LEVEL = {"\n": "Ċ", " ": "Ġ"}  # how the byte-level alphabet writes white space
# Until this share of the steps, draw up to so many hops (n hops with a chance proportional to n).
_CURRICULUM = ((0.15, 2), (0.35, 3), (1.0, 6))
# A batch mixes lengths, or accuracy goes up and down with the length trained last; it is padded in
# this many parts, shorter and longer examples apart, to save work on padding.
_PARTS = 2


@dataclass(frozen=True)
class BaseSpec:
    """Shape and pre-training of a base model; `heads` of 32 dimensions are what vLLM runs."""

    layers: int = 3
    hidden: int = 96
    heads: int = 3
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int = 1


BASES = {
    "tiny": BaseSpec(layers=2, hidden=64, heads=2, steps=200),
    "small": BaseSpec(),
}


def build_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files: one token per character, and one for the answer mark.

    Transformers gives every checkpoint of Qwen2 architecture Qwen2's own way of splitting text,
    whatever class and splitting the tokenizer files name; a plain character tokenizer loses all its
    spaces there. So this is a Qwen2 tokenizer: byte level, without a single merge. It adds no
    special tokens and decodes to exactly the text it was given; characters outside of `ALPHABET`
    are an error of the caller, since byte-level tokenizers drop them.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    tokens = (PAD, EOS, UNKNOWN, MARK, *(_BYTE_LEVEL.get(c, c) for c in ALPHABET))
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.add_tokens([AddedToken(MARK, normalized=False, special=False)])
    tokenizer.save_pretrained(folder)


def train_base(spec: BaseSpec, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train the base model and write it to `folder` in the Hugging Face layout; return the log.

    `progress(iterable, description, total)` wraps the loop over steps.
    """
    import torch
    from transformers import AutoTokenizer

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = build_model(spec, tokenizer)
        losses = _fit(model, spec, _batches(spec, tokenizer), progress)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    log = {
        "spec": asdict(spec),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": float(np.mean(losses[-20:])),
        "losses": [round(loss, 5) for loss in losses],
    }
    (folder / "base_log.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def build_model(spec: BaseSpec, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return an untrained model of this shape; weights come from torch's global generator."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        intermediate_size=2 * spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=CONTEXT,
        # Slow rotation: a definition is found by its name, hardly by its distance.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.05,  # a narrow model: the usual 0.02 starts too slowly
        # One embedding for reading and writing: the model can copy `*`, a symbol that it never saw,
        # so that fine-tuning teaches products instead of a new symbol.
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config).float()


def _fit(
    model: Any, spec: BaseSpec, batches: "Iterator[list[Part]]", progress: Progress
) -> list[float]:
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, spec.steps // 20)
    model.train()
    losses = []
    for step in progress(range(spec.steps), "base model", spec.steps):
        factor = min((step + 1) / warmup, (spec.steps - step) / (spec.steps - warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * factor
        total = 0.0
        for part, share in next(batches):
            loss = model(**part, use_cache=False).loss * share
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    model.eval()
    return losses


def _batches(spec: BaseSpec, tokenizer: "PreTrainedTokenizerBase") -> "Iterator[list[Part]]":
    rng = np.random.default_rng([spec.seed, 5])
    for step in range(spec.steps):
        longest = next(hops for share, hops in _CURRICULUM if step < share * spec.steps)
        batch = [_example(rng, longest, tokenizer) for _ in range(spec.batch)]
        batch.sort(key=lambda example: len(example[0]) + len(example[1]))
        trained = sum(len(response) for _, response in batch)
        size = -(-len(batch) // _PARTS)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        yield [
            (_pad(part, tokenizer.pad_token_id), sum(len(r) for _, r in part) / trained)
            for part in parts
        ]


def _example(
    rng: np.random.Generator, longest: int, tokenizer: "PreTrainedTokenizerBase"
) -> Example:
    chances = np.arange(1, longest + 1) / (longest * (longest + 1) / 2)
    hops = 1 + int(rng.choice(longest, p=chances))
    problem = draw_from("pool", lambda: draw(rng, hops, operators="+-"))
    encode = tokenizer.backend_tokenizer.encode
    response = [*encode(solution(problem)).ids, tokenizer.eos_token_id]
    return encode(problem.prompt).ids, response


def _pad(examples: list[Example], pad_id: int) -> "dict[str, torch.Tensor]":
    """Padded at the right end, where causal attention never looks back on it."""
    import torch

    width = max(len(prompt) + len(response) for prompt, response in examples)
    ids, labels = [], []
    for prompt, response in examples:
        padding = width - len(prompt) - len(response)
        ids.append([*prompt, *response, *[pad_id] * padding])
        labels.append([*[IGNORED] * len(prompt), *response, *[IGNORED] * padding])
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
