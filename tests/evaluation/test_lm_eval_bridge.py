"""Evaluation on a briefly trained model: both engines, every decode, exact tokens, no traces."""

import gc
import importlib.metadata
import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness.data import testbed
from harness.data.grading import Grader, Verdict, extract
from harness.evaluation import lm_eval_bridge
from harness.evaluation.benchmarks import BENCHMARKS, TASKS, task_file
from harness.evaluation.engine import Engine
from harness.evaluation.environment import resolve_engine, vllm_build
from harness.evaluation.lm_eval_bridge import Task
from harness.evaluation.settings import Decoding, Settings, cache_bytes, item_seed

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

needs_vllm = pytest.mark.skipif(
    vllm_build() is None, reason="no vLLM build is installed on this machine"
)
ENGINES = [pytest.param("vllm", marks=needs_vllm), "hf"]
ITEMS = 100
GREEDY = Decoding(max_tokens=64)
LENGTH = 160


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[Task]:
    folder = tmp_path_factory.mktemp("items")
    made = []
    for name in ("chain_far", "chain_core"):
        path = folder / f"{name}.jsonl"
        rows = testbed.make_task(name, ITEMS, seed=0)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(Task(name, path))
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """What the pool is tokenised with: the tokenizer alone, no model beside it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    testbed.build_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def open_engine(checkpoint):
    """Engines of this module's checkpoint by name, each started once."""
    started: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in started:
            started[name] = Engine(checkpoint, Settings(name, LENGTH))
        return started[name]

    yield get
    for engine in started.values():
        engine.close()


@pytest.fixture(scope="module")
def greedy(open_engine, tasks):
    """Greedy samples by engine."""
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = open_engine(name).evaluate(tasks, GREEDY)
        return made[name]

    return get


@pytest.mark.parametrize("name", ENGINES)
def test_samples_have_a_row_for_each_item(name: str, greedy, tasks) -> None:
    frame = greedy(name)
    assert list(frame.columns) == list(lm_eval_bridge.COLUMNS)
    assert list(frame["task"].unique()) == ["chain_far", "chain_core"]
    rows = [json.loads(line) for task in tasks for line in task.data.read_text().splitlines()]
    assert list(frame["item"]) == [row["id"] for row in rows]
    assert (frame["decode"] == 0).all()
    marked = frame["response"].str.contains("####").to_numpy()
    by_hand = [
        response.rpartition("####")[2].strip() == row["answer"]
        for response, row in zip(frame["response"], rows, strict=True)
    ]
    assert marked.mean() > 0.5
    assert (frame["correct"].to_numpy() == by_hand)[marked].all()
    assert 0 < sum(by_hand) < len(by_hand)
    assert not frame["response"].str.contains("<").any()


@pytest.mark.parametrize("name", ENGINES)
def test_tokens_count_the_end_of_text(name: str, greedy, tokenizer) -> None:
    frame = greedy(name)
    written = np.array([len(tokenizer(text)["input_ids"]) for text in frame["response"]])
    ended = frame["tokens"].to_numpy() - written
    assert set(ended) <= {0, 1}
    assert (ended == (frame["tokens"] < GREEDY.max_tokens)).mean() > 0.99


@needs_vllm
def test_answers_end_at_a_token_and_not_at_its_text(open_engine, tasks, monkeypatch) -> None:
    engine = open_engine("vllm")
    seen = []
    real = engine._model.model.generate

    def generate(prompts, sampling_params, **options):
        seen.extend(params.stop for params in sampling_params)
        return real(prompts, sampling_params=sampling_params, **options)

    monkeypatch.setattr(engine._model.model, "generate", generate)
    frame = engine.evaluate(tasks[:1], GREEDY)
    assert seen == [[]] * ITEMS
    assert (~frame["truncated"]).sum() > ITEMS / 2
    assert not frame["response"].str.contains("<").any()


@needs_vllm
def test_engines_agree(greedy) -> None:
    vllm, hf = greedy("vllm"), greedy("hf")
    assert (vllm["response"] == hf["response"]).mean() >= 0.99
    assert (vllm["correct"] == hf["correct"]).mean() >= 0.99
    assert (vllm["tokens"] == hf["tokens"]).mean() >= 0.99


def test_greedy_answers_are_argmax(greedy, checkpoint, tokenizer, tasks) -> None:
    """Oracle: a plain loop over the model, without cache, padding or generate()."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    name = resolve_engine("auto")
    for line, response in zip(
        tasks[0].data.read_text().splitlines()[:5], greedy(name)["response"], strict=False
    ):
        ids = list(tokenizer(json.loads(line)["prompt"])["input_ids"])
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + GREEDY.max_tokens:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
        assert tokenizer.decode(ids[start:], skip_special_tokens=True) == response


@pytest.mark.parametrize("name", ENGINES)
def test_engine_sees_the_tokens_of_training(name, open_engine, tokenizer, tmp_path) -> None:
    prompts = ["a=1,b=a+2;b?", " a=3;a?", "a=1;a?\n", "a=1;a? \n\n", "sort ba?", "a=1;a? #### "]
    path = tmp_path / "items.jsonl"
    rows = [{"id": f"i{n}", "prompt": p, "answer": "1"} for n, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = open_engine(name)
    engine.evaluate([Task("seams", path)], Decoding(max_tokens=4))
    seen = {ids for ids, _ in engine._model.lengths}
    # In training the response follows the prompt directly, each tokenised by itself.
    assert seen == {tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts}
    assert [tokenizer.decode(ids) for ids in map(tokenizer.encode, prompts)] == prompts


@pytest.mark.parametrize("name", ENGINES)
def test_every_decode_is_sampled_and_scored(name, open_engine, tasks) -> None:
    engine = open_engine(name)
    decoding = Decoding(max_tokens=40, decodes=3, temperature=1.0, seed=7)
    frame = engine.evaluate(tasks[:1], decoding)
    answers = {
        row["id"]: row["answer"] for row in map(json.loads, tasks[0].data.read_text().splitlines())
    }
    assert len(frame) == 3 * ITEMS
    assert list(frame["decode"][:6]) == [0, 1, 2, 0, 1, 2]
    graded = [
        Grader("plain").grade(response, answers[item]).correct
        for response, item in zip(frame["response"], frame["item"], strict=True)
    ]
    assert list(frame["correct"]) == graded
    assert [extract(text).text for text in frame["response"]] == [
        None if pd.isna(a) else a for a in frame["answer"]
    ]
    # Decodes differ from each other, in which are right too: none is a copy of the first.
    wide = frame.pivot(index="item", columns="decode", values="response")
    assert (wide[0] != wide[1]).mean() > 0.5
    assert (wide[1] != wide[2]).mean() > 0.5
    right = frame.pivot(index="item", columns="decode", values="correct")
    assert (right[0] != right[1]).any()
    again = engine.evaluate(tasks[:1], decoding)
    assert list(again["response"]) == list(frame["response"])
    other = engine.evaluate(tasks[:1], Decoding(40, decodes=1, temperature=1.0, seed=8))
    assert (other["response"].to_numpy() != wide.loc[other["item"], 0].to_numpy()).mean() > 0.5


def _answering(model, seen, monkeypatch):
    """Let an engine answer from prompt and seed alone; `seen` gets both, as handed over."""
    end = model.eot_token_id

    def answer(prompt, seed):
        seen.append((tuple(prompt), seed))
        drawn = np.random.default_rng([seed or 0, *prompt])
        return [*drawn.integers(5, 15, 6).tolist(), end]

    def vllm(prompts, sampling_params, **_):
        made = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = answer(prompt["prompt_token_ids"], params.seed)
            text = model.tokenizer.decode(ids[:-1])
            one = SimpleNamespace(token_ids=ids, text=text, finish_reason="stop")
            made.append(SimpleNamespace(outputs=[one]))
        return made

    def hf(context, max_length, stop, seed=None, attention_mask=None, **_):
        made = []
        for ids, mask in zip(context, attention_mask.bool(), strict=True):
            prompt = ids[mask].tolist()
            made.append([*ids.tolist(), *answer(prompt, seed)])
            model.lengths[tuple(prompt), seed] = 7, False
        return torch.tensor(made)

    if hasattr(model.model, "llm_engine"):
        monkeypatch.setattr(model.model, "generate", vllm)
    else:
        monkeypatch.setattr(model, "_model_generate", hf)


@pytest.mark.parametrize("decoding", [GREEDY, Decoding(64, 2, temperature=1.0, seed=3)])
@pytest.mark.parametrize("name", ENGINES)
def test_another_order_gives_every_item_its_own_answers(
    name, decoding, open_engine, tasks, monkeypatch
) -> None:
    engine = open_engine(name)
    orders = {}
    frames = {}
    for order in (None, 1, 2, 1):
        seen: list = []
        with monkeypatch.context() as patch:
            _answering(engine._model, seen, patch)
            frame = engine.evaluate(tasks, decoding, order)
        orders.setdefault(order, seen)
        assert seen == orders[order]  # the seed says which order
        frames[order] = frame
    # The same requests; lm-eval's own order is by length, the others are not.
    lengths = [[len(prompt) for prompt, _ in orders[order]] for order in (None, 1, 2)]
    assert len({tuple(orders[order]) for order in orders}) == 3
    assert len({tuple(sorted(orders[order], key=str)) for order in orders}) == 1
    if name == "vllm" or decoding is GREEDY:  # transformers takes seed after seed
        assert lengths[0] == sorted(lengths[0], reverse=True)
    for mixed in lengths[1:]:
        assert mixed != sorted(mixed, reverse=True)
    for order in (1, 2):
        assert frames[order].equals(frames[None])
    assert frames[None]["response"].nunique() > ITEMS


@pytest.mark.parametrize("name", ENGINES)
def test_an_order_changes_no_batch_that_comes_after(name, open_engine, greedy, tasks) -> None:
    known = greedy(name)
    engine = open_engine(name)
    engine.reset_prefix_cache()
    mixed = engine.evaluate(tasks, GREEDY, order=3)
    assert list(mixed["item"]) == list(known["item"])
    assert (mixed["response"] == known["response"]).mean() >= 0.99
    assert engine.evaluate(tasks, GREEDY).equals(known)


@pytest.mark.parametrize("name", ENGINES)
def test_generate_completes_token_ids(name, open_engine, greedy, tokenizer, tasks) -> None:
    lines = tasks[0].data.read_text().splitlines()[:20]
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    completions = open_engine(name).generate(prompts, GREEDY)
    assert [len(row) for row in completions] == [1] * 20
    for [completion], response in zip(completions, greedy(name)["response"], strict=False):
        assert completion.text == response
        text, end = completion.ids[:-1], completion.ids[-1]
        assert len(completion.ids) <= GREEDY.max_tokens
        assert tokenizer.eos_token_id not in text
        if end == tokenizer.eos_token_id:
            assert tokenizer.decode(list(text)) == completion.text
    sampled = Decoding(max_tokens=24, decodes=4, temperature=1.0, seed=3)
    first = open_engine(name).generate(prompts, sampled)
    assert [len(row) for row in first] == [4] * 20
    assert all(len({c.ids for c in row}) > 1 for row in first)
    assert open_engine(name).generate(prompts, sampled) == first


def test_generate_of_nothing_is_nothing(open_engine) -> None:
    assert open_engine("hf").generate([], GREEDY) == []


@pytest.mark.parametrize("name", ENGINES)
def test_prompts_are_refused_rather_than_cut(name, open_engine, tmp_path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "a=1;a?" * 20, "answer": "1"}) + "\n")
    engine = open_engine(name)
    with pytest.raises(ValueError, match="long: item 0 has 120 tokens and asks for 64 more"):
        engine.evaluate([Task("long", path)], GREEDY)
    with pytest.raises(ValueError, match="prompt 0 has 120 tokens"):
        engine.generate([[5] * 120], GREEDY)
    with pytest.raises(ValueError, match="each name once"):
        engine.evaluate([], GREEDY)


@pytest.mark.parametrize("name", ENGINES)
def test_engine_leaves_no_traces(name, checkpoint, tasks) -> None:
    def held() -> int:
        gc.collect()
        return sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor)

    def once() -> None:
        with Engine(checkpoint, Settings(name, LENGTH)) as engine:
            assert torch.get_num_threads() == 1
            engine.evaluate(tasks[:1], Decoding(max_tokens=4))
        engine.close()

    once()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    set_threads, environment = torch.set_num_threads, dict(os.environ)
    numpy_state = np.random.get_state
    states = random.getstate(), torch.get_rng_state(), numpy_state()[1].tolist()
    cores, version = os.sched_getaffinity(0), importlib.metadata.version
    bytes_held, frozen = held(), gc.get_freeze_count()
    try:
        once()
        assert torch.get_num_threads() == 2
        assert torch.set_num_threads is set_threads
        assert dict(os.environ) == environment
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert numpy_state()[1].tolist() == states[2]
        assert os.sched_getaffinity(0) == cores
        assert importlib.metadata.version is version
        assert gc.get_freeze_count() == frozen
        assert held() <= bytes_held
    finally:
        torch.set_num_threads(threads)


def test_failed_start_leaves_no_traces(checkpoint, tmp_path, monkeypatch) -> None:
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    threads, environment, set_threads = (
        torch.get_num_threads(),
        dict(os.environ),
        torch.set_num_threads,
    )
    with pytest.raises(OSError, match="safetensors"):
        Engine(tmp_path, Settings("hf", LENGTH, threads=2))
    assert torch.get_num_threads() == threads
    assert torch.set_num_threads is set_threads
    assert dict(os.environ) == environment


def _scripted(texts: list[str]):
    from lm_eval.api.model import LM

    class Scripted(LM):
        """Answers from a list; one token per character."""

        def generate_until(self, requests, disable_tqdm=False):
            prompts = [request.args[0] for request in requests]
            assert all(request.args[1]["until"] == [] for request in requests)
            self.lengths = {
                (tuple(map(ord, p)), None): (len(t), len(t) == 8)
                for p, t in zip(prompts, texts, strict=True)
            }
            return texts

        def encode(self, prompts):
            return [list(map(ord, prompt)) for prompt in prompts]

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return Scripted()


def _scored(tmp_path: Path) -> list[bool]:
    path = tmp_path / "items.jsonl"
    rows = [{"id": f"i{n}", "prompt": f"p{n}?", "answer": str(n)} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = object.__new__(Engine)
    engine.verbose, engine.on_progress, engine.weights = False, None, "held"
    engine.settings = Settings("hf", 99)
    engine._model = _scripted(["x #### 0", "#### 2", "2.0", "nothing"])
    frame = engine.evaluate([Task("chain_core", path)], Decoding(max_tokens=8))
    assert list(frame["answer"].fillna("-")) == ["0", "2", "2.0", "-"]
    assert list(frame["tokens"]) == [8, 6, 3, 7]
    assert list(frame["rule"]) == ["####", "####", "last number", "none"]
    assert list(frame["truncated"]) == [True, False, False, False]
    assert set(frame["weights"]) == {"held"}
    return list(frame["correct"])


def test_scores_are_those_of_the_grader(tmp_path, monkeypatch) -> None:
    assert _scored(tmp_path) == [True, False, True, False]
    monkeypatch.setattr(
        Grader,
        "grade",
        lambda _, text, answer: Verdict(True, extract(text).text, extract(text).rule),
    )
    assert _scored(tmp_path) == [True] * 4  # a wrong grader shows


def test_task_files_neither_cut_nor_sample() -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    names = {path.stem for path in TASKS.rglob("*.yaml")}
    assert names == {*testbed.TASKS, *BENCHMARKS, "local"}
    for name in names:
        config = load_yaml(task_file(name))
        assert config["task"] == config["dataset_kwargs"]["name"] == name
        assert config["generation_kwargs"]["until"] == []
        assert config["generation_kwargs"]["do_sample"] is False
        assert config["target_delimiter"] == ""
        assert config["process_results"].__name__ == "score"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "a", "prompt": "p?", "answer": 1}', r"line 2: \['answer'\] missing or not text"),
        ('{"id": "x", "prompt": "p?", "answer": "1"}', "line 2: id 'x' again"),
    ],
)
def test_items_are_checked(tmp_path, line, problem) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"id": "x", "prompt": "p?", "answer": "1"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=problem):
        lm_eval_bridge.documents({"t": {"path": str(path), "kind": "plain"}}, "t")


def test_decoding_is_checked() -> None:
    with pytest.raises(ValueError, match="decodes = 2 with temperature = 0; expected"):
        Decoding(max_tokens=5, decodes=2)
    with pytest.raises(ValueError, match="max_tokens and decodes >= 1"):
        Decoding(max_tokens=0)
    assert Decoding(5).seeds == (None,)
    seeds = Decoding(5, decodes=3, temperature=1.0, seed=1).seeds
    assert len(set(seeds)) == 3
    assert item_seed(seeds[0], [1, 2]) != item_seed(seeds[0], [1, 3])
    assert 0 <= item_seed(seeds[0], [1, 2]) < 2**31


def test_engine_names(monkeypatch) -> None:
    with pytest.raises(ValueError, match="engine 'tgi' is unknown"):
        resolve_engine("tgi")
    monkeypatch.setattr("harness.evaluation.environment.vllm_build", lambda: None)
    assert resolve_engine("auto") == "hf"
    with pytest.raises(ValueError, match="no vLLM build is installed"):
        resolve_engine("vllm")


def test_cache_holds_every_sequence(tmp_path) -> None:
    config = {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # keys and values, 4 bytes, 3 layers, 128 wide, 512 sequences of 100 tokens in blocks of 32
    assert cache_bytes(tmp_path, 100, 512) == 2 * 4 * 3 * 128 * 160 * 512


def test_importing_evaluation_is_light() -> None:
    import subprocess

    code = (
        "import sys, harness.evaluation.lm_eval_bridge, harness.evaluation.environment\n"
        "import harness.data.grading\n"
        "print([m for m in ('torch','vllm','lm_eval','datasets','pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
