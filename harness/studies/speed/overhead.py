"""What evaluation costs beyond decoding: ours through lm-eval, beside vLLM's own generate.

In turns on one engine in one process. The model has random weights and never ends an answer by
itself, so that both sides make the same number of tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from harness.evaluation.environment import engine_version, vllm_build
from harness.studies.speed.machine import load, machine
from harness.studies.speed.measure import medians, order
from harness.studies.speed.phases import DISTRIBUTIONS, clocked
from harness.studies.speed.workload import DATA, TOKENIZER

TASK = "gsm8k"
FILE = "gsm8k_test.jsonl"
MODEL = {"layers": 2, "hidden": 128, "intermediate": 512, "heads": 4}
WARM = 64
"""Prompts of a first round on both sides that is not timed."""
TARGET = 0.15
Answers = dict[tuple[int, ...], tuple[int, ...]]
"""Token ids of an answer by those of its prompt."""
PARTS = ("tasks", "tokenising", "generate", "grading", "table", "rest")
MEANING = {
    "tasks": "tasks and their items",
    "tokenising": "tokenising",
    "generate": "vLLM's generate",
    "grading": "grading",
    "table": "the table of rows",
    "rest": "lm-eval: requests, logged samples",
}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides by repetition, and the parts of ours."""
    if vllm_build() is None:
        raise ValueError("no vLLM build is installed; expected one: its generate is the measure")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    data, tokenizer = _data(asked.data), _tokenizer(asked.tokenizer)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        items = _items(data, tokenizer, asked.items)
        parameters = _save_model(tokenizer, folder / "model")
        found = _in_turns(folder, items, asked.tokens, asked.threads, asked.repeats)
    report = {
        "what": asked.what,
        "machine": machine(DISTRIBUTIONS) | {"vllm": engine_version("vllm")},
        "threads": asked.threads,
        "repeats": asked.repeats,
        "prompts": len(items),
        "tokens": asked.tokens,
        "model": {**MODEL, "kind": "Llama, random weights", "parameters": parameters},
        **found,
        "summary": summary(found["repetitions"]),
    }
    return {**report, "problems": problems(report)}


def summary(repetitions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians; overhead: of our median over that of bare vLLM, and pair by pair."""
    bare, ours = (median(run[side] for run in repetitions) for side in ("bare_s", "ours_s"))
    return {
        "bare_s": bare,
        "ours_s": ours,
        "overhead": ours / bare - 1,
        "overheads": [run["ours_s"] / run["bare_s"] - 1 for run in repetitions],
        "parts": medians([run["parts"] for run in repetitions]),
    }


def problems(report: Mapping[str, Any]) -> list[str]:
    """What makes the two sides incomparable, in sentences; speed is none of it."""
    found = []
    for number, run in enumerate(report["repetitions"]):
        if run["short"]:
            found.append(
                f"repetition {number}: {run['short']} answers are not {report['tokens']} "
                "tokens long; expected every one to be"
            )
        if run["different"]:
            found.append(f"repetition {number}: {run['different']} answers differ between sides")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Both sides, the overhead, and where ours takes longer."""
    about, found, model = report["machine"], report["summary"], report["model"]
    loads = [value for run in report["repetitions"] for value in run["load"]]
    lines = [
        f"{about['processor']}, {about['cores']} cores, threads: {report['threads']}, vLLM "
        f"{about['vllm']}, torch {about['torch']}, lm-eval {about['lm_eval']}; medians of "
        f"{report['repeats']} repetitions, both sides in turns on one engine (its start, "
        f"{report['engine_start_s']:.1f} s, apart); load {min(loads):.1f} to {max(loads):.1f}, of "
        f"which the measurement is {report['threads']}.",
        "",
        f"{report['prompts']:,} prompts of GSM8K ({report['prompt_tokens']:,} tokens), "
        f"{report['tokens']} new tokens each, {model['kind']}, {model['layers']} layers, "
        f"{model['parameters']:,} parameters.",
        "",
        "| | seconds |",
        "|:--|--:|",
        f"| bare `LLM.generate` on token ids | {found['bare_s']:.2f} |",
        f"| `Engine.evaluate`, through lm-eval, graded | {found['ours_s']:.2f} |",
    ]
    lines += [f"| … {MEANING[part]} | {found['parts'][part]:.2f} |" for part in PARTS]
    every = ", ".join(f"{value:.1%}" for value in found["overheads"])
    different = sum(run["different"] for run in report["repetitions"])
    lines += [
        "",
        f"- overhead {found['overhead']:.1%} (by repetition {every}; target at most {TARGET:.0%}), "
        f"{(found['ours_s'] - found['bare_s']) / report['prompts'] * 1000:.2f} ms per prompt",
        f"- answers that differ between the two sides: {different}",
    ]
    return "\n".join(lines) + "\n"


def _data(asked: Path | None) -> Path:
    folder = os.environ.get(DATA)
    path = asked or (Path(folder) / FILE if folder else None)
    if path is None or not path.is_file():
        raise ValueError(
            f"--data is {None if path is None else str(path)!r}; expected GSM8K's test set, a file "
            f"of JSON lines with question and answer (or a folder with {FILE} in {DATA})"
        )
    return path


def _tokenizer(asked: Path | None) -> Any:
    from transformers import AutoTokenizer

    folder = asked or os.environ.get(TOKENIZER)
    if not folder or not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(
            f"--tokenizer is {None if folder is None else str(folder)!r}; expected a folder with "
            f"tokenizer.json (or one in {TOKENIZER}), of a model for real text such as Pythia's: "
            "the testbed's own knows only its chains"
        )
    return AutoTokenizer.from_pretrained(folder)


def _items(data: Path, tokenizer: Any, count: int | None) -> list[dict[str, str]]:
    """What a run would ask: question, instruction, template; bare reference answers."""
    from harness.data.dataset import render
    from harness.data.grading import Grader
    from harness.evaluation.benchmarks import benchmark, make_items

    rows = make_items(benchmark(TASK), data)[:count]
    grader = Grader(benchmark(TASK).kind)
    prompts = render([row["prompt"] for row in rows], None, tokenizer)
    made = [
        {"id": row["id"], "prompt": prompt, "answer": grader.reference(row["answer"])}
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    grader.close()
    return made


def _save_model(tokenizer: Any, folder: Path) -> int:
    """A Llama with random weights that never writes the end of text; its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=MODEL["hidden"],
        intermediate_size=MODEL["intermediate"],
        num_hidden_layers=MODEL["layers"],
        num_attention_heads=MODEL["heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # its logit is 0, the largest is above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _in_turns(
    folder: Path, items: Sequence[Mapping[str, str]], tokens: int, threads: int, repeats: int
) -> dict[str, Any]:
    from harness.data.items import write_items
    from harness.evaluation.benchmarks import benchmark
    from harness.evaluation.engine import Engine
    from harness.evaluation.lm_eval_bridge import Task
    from harness.evaluation.settings import Decoding, Settings

    decoding = Decoding(max_tokens=tokens)
    kind = benchmark(TASK).kind
    whole, some = folder / "items.jsonl", folder / "some.jsonl"
    for path, rows in ((whole, items), (some, items[:WARM])):
        write_items(path, rows)
    start = time.monotonic()
    with Engine(folder / "model", Settings("vllm", 1024, threads)) as engine:
        found: dict[str, Any] = {"engine_start_s": time.monotonic() - start}
        found["settings"] = engine.record()
        texts = [item["prompt"] for item in items]
        ids: list[list[int]] = engine._model.encode(texts)
        found["prompt_tokens"] = sum(map(len, ids))
        # lm-eval asks for the longest first; so does the bare side.
        sequence = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), texts[i]))
        longest_first = [ids[i] for i in sequence]
        _bare(engine, longest_first[:WARM], tokens)
        engine.evaluate([Task(TASK, some, kind, tokens)], decoding)
        runs: list[dict[str, Any]] = [{} for _ in range(repeats)]
        for number, side in order(["bare", "ours"], repeats):
            run = runs[number]
            run.setdefault("load", []).append(load())
            if side == "bare":
                run["bare_s"], answers = _bare(engine, longest_first, tokens)
                continue
            run["ours_s"], run["parts"], frame, own = _ours(
                engine, Task(TASK, whole, kind), decoding
            )
            run["short"] = int((frame["tokens"] != tokens).sum())
            run["different"] = sum(own.get(ids) != made for ids, made in answers.items())
    found["repetitions"] = runs
    return found


def _bare(engine: Any, prompts: list[list[int]], tokens: int) -> tuple[float, Answers]:
    """Seconds of vLLM by itself, and what it answered."""
    from vllm import SamplingParams

    llm = engine._model.model
    start = time.monotonic()
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(temperature=0.0, max_tokens=tokens),
        use_tqdm=False,
    )
    return time.monotonic() - start, _answers(outputs)


def _answers(outputs: Any) -> Answers:
    return {tuple(made.prompt_token_ids): tuple(made.outputs[0].token_ids) for made in outputs}


def _ours(engine: Any, task: Any, decoding: Any) -> tuple[float, dict[str, float], Any, Answers]:
    """Seconds of an evaluation, those of its parts, its rows, and what was answered."""
    from harness.data.grading import Grader
    from harness.evaluation import lm_eval_bridge

    model = type(engine._model)
    names = {
        "_lm_eval_tasks": (lm_eval_bridge, "tasks"),
        "tok_encode": (model, "tokenising"),
        "_model_generate": (model, "generate"),
        "grade": (Grader, "grading"),
        "_frame": (lm_eval_bridge, "table"),
    }
    seconds: dict[str, float] = {}
    outputs: list[Any] = []
    with ExitStack() as stack:
        for name, (owner, _) in names.items():
            look = outputs.extend if name == "_model_generate" else _ignore
            stack.enter_context(clocked(owner, name, seconds, look))
        start = time.monotonic()
        frame = engine.evaluate([task], decoding)
        whole = time.monotonic() - start
    parts = {part: seconds.get(name, 0.0) for name, (_, part) in names.items()}
    return whole, parts | {"rest": whole - sum(parts.values())}, frame, _answers(outputs)


def _ignore(result: Any) -> None:
    """Nobody looks."""
