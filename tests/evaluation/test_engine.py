"""Engines kept for many checkpoints: adapters, swaps behind their guard, memory, held weights."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.evaluation.engine import Engine, EnginePool
from harness.evaluation.environment import vllm_build
from harness.evaluation.settings import (
    SEQUENCES,
    Decoding,
    Limits,
    Settings,
    context_too_long,
    out_of_memory,
)
from harness.evaluation.weights import StaleWeightsError, check_held, weights_digest
from harness.experiment.store import file_digest
from harness.training.checkpoint import ADAPTER

torch = pytest.importorskip("torch")
needs_vllm = pytest.mark.skipif(vllm_build() is None, reason="no vLLM build is installed")
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
GREEDY = Decoding(max_tokens=24)
SETTINGS = Settings("vllm", 96)
PROMPTS = [[5 + n, 9, 12 + n % 7, 6] for n in range(12)]


@pytest.fixture(scope="module")
def base(checkpoint) -> Path:
    return checkpoint


@pytest.fixture(scope="module")
def other(base, tmp_path_factory) -> Path:
    """Another checkpoint of the same architecture."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("changed") / "other"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def answers(engine: Engine):
    return [completion.ids for [completion] in engine.generate(PROMPTS, GREEDY)]


def fresh(folder: Path):
    """The answers of an engine of the checkpoint's own."""
    with Engine(folder, SETTINGS) as engine:
        return answers(engine)


@pytest.fixture(scope="module")
def others_answers(other):
    return fresh(other)


@needs_vllm
def test_on_a_cpu_every_checkpoint_gets_an_engine_of_its_own(base, other, others_answers) -> None:
    pool = EnginePool()
    first = pool.engine(base, SETTINGS)
    assert first.weights == file_digest(base / "model.safetensors")
    known = answers(first)
    recorded = first.record()
    assert (recorded["sequences"], recorded["batched_tokens"]) == (512, 4096)
    assert not recorded["chunked_prefill"]
    assert not recorded["prefix_caching"]
    assert (recorded["dtype"], recorded["eager"], recorded["max_length"]) == ("float32", True, 96)
    assert pool.engine(base, replace(SETTINGS, max_length=64)) is first
    second = pool.engine(other, SETTINGS)
    assert pool.started == 2
    assert second.weights == file_digest(other / "model.safetensors")
    assert answers(second) == others_answers != known
    pool.close()


@needs_vllm
def test_a_swap_that_is_not_whole_is_noticed(base, other, others_answers, capsys) -> None:
    """vLLM's CPU build reloads some weights and not others, and says nothing."""
    with Engine(base, SETTINGS) as engine:
        with pytest.raises(StaleWeightsError, match="cannot be compared with a file"):
            engine.swap(other)
        assert engine.weights == ""
        assert answers(engine) != others_answers

    class OnGpu(Engine):
        """Says that it is on a GPU, where the host tries to swap."""

        def __init__(self, folder, settings, verbose=False, on_progress=None):
            super().__init__(folder, replace(settings, device="cpu"), verbose, on_progress)
            self.settings = replace(self.settings, device="cuda")

    pool = EnginePool(OnGpu)
    on_gpu = replace(SETTINGS, device="cuda", sequences=SEQUENCES["vllm", "cpu"])
    pool.engine(base, on_gpu)
    second = pool.engine(other, on_gpu)
    assert pool.started == 2
    assert "weights are not swapped in place (StaleWeightsError" in capsys.readouterr().err
    assert answers(second) == others_answers
    pool.engine(base, on_gpu)
    assert pool.started == 3
    assert "not swapped" not in capsys.readouterr().err  # said once
    pool.close()


class Scripted:
    """An engine without a model: its answers are its folder's name."""

    def __init__(self, folder, settings, verbose=False, on_progress=None):
        self.folder, self.settings, self.verbose = folder, settings, verbose
        self.requested_length = settings.max_length
        self.closed = False

    def close(self):
        self.closed = True

    def swap(self, folder):
        self.folder = folder

    def generate(self, prompts, decoding):
        from harness.evaluation.settings import Completion

        return [[Completion("", tuple(map(ord, self.folder.name)))] for _ in prompts]


def folders(tmp_path: Path, count: int) -> list[Path]:
    made = []
    for n in range(count):
        folder = tmp_path / f"m{n}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"hidden_size": 8, "_name_or_path": str(n)}))
        made.append(folder)
    return made


def test_a_proved_swap_is_used_from_then_on(tmp_path) -> None:
    pool = EnginePool(Scripted)
    settings = Settings("vllm", 64, device="cuda")
    engines = [pool.engine(folder, settings) for folder in folders(tmp_path, 5)]
    assert pool.started == 2  # the first, and the one that the proof needs
    assert engines[1] is engines[4]
    assert engines[4].folder.name == "m4"
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"hidden_size": 16}')
    assert pool.engine(odd, settings).folder == odd
    assert pool.started == 3
    assert engines[4].closed


def test_a_swap_that_answers_otherwise_than_a_new_engine_is_not_trusted(tmp_path, capsys) -> None:
    class Liar(Scripted):
        def swap(self, folder):
            self.folder, self.lies = folder, True

        def generate(self, prompts, decoding):
            made = super().generate(prompts, decoding)
            return made[:-1] if getattr(self, "lies", False) else made

    pool = EnginePool(Liar)
    settings = Settings("vllm", 64, device="cuda")
    for folder in folders(tmp_path, 4):
        engine = pool.engine(folder, settings)
        assert engine.folder == folder
        assert not hasattr(engine, "lies")
    assert pool.started == 4
    assert "not answered as by a new engine" in capsys.readouterr().err


@needs_vllm
@needs_peft
def test_adapters_share_one_engine_and_never_mix(base, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    checkpoints = []
    for n in range(3):
        folder = tmp_path / f"lora{n}"
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(n)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        adapted.save_pretrained(folder / ADAPTER)
        shutil.copytree(base, folder, dirs_exist_ok=True)
        adapted.merge_and_unload().save_pretrained(folder)
        checkpoints.append(folder)
    pool = EnginePool()
    served = []
    for folder in [*checkpoints, checkpoints[0]]:
        engine = pool.engine(folder, SETTINGS, base=base)
        served.append(answers(engine))
        assert engine.weights == weights_digest(base, folder / ADAPTER)
    assert pool.started == 1
    pool.close()
    assert served[3] == served[0]
    assert len({str(rows) for rows in served}) == 3
    for folder, rows in zip(checkpoints, served, strict=False):
        assert rows == fresh(folder)  # the merged weights, in an engine of their own


def test_the_check_knows_merged_and_padded_parameters(tmp_path) -> None:
    from safetensors.torch import save_file

    q, k, v = (torch.randn(4, 4) for _ in range(3))
    rows = torch.randn(5, 4)
    files = {"a.q_proj.weight": q, "a.k_proj.weight": k, "a.v_proj.weight": v, "e.weight": rows}
    save_file(files, tmp_path / "model.safetensors")

    def model(merged, embeddings):
        module = torch.nn.Module()
        module.a, module.e = torch.nn.Module(), torch.nn.Module()
        module.a.qkv_proj = torch.nn.Module()
        module.a.qkv_proj.weight = torch.nn.Parameter(merged)
        module.e.weight = torch.nn.Parameter(embeddings)
        return module

    padded = torch.cat([rows, torch.zeros(3, 4)])
    assert check_held(model(torch.cat([q, k, v]), padded), tmp_path) == 2
    assert check_held(model(torch.empty(0), padded), tmp_path) == 1  # repacked: nothing to see
    with pytest.raises(StaleWeightsError, match=r"qkv_proj\.weight cannot be compared"):
        check_held(model(torch.empty(0), padded), tmp_path, every=True)
    with pytest.raises(StaleWeightsError, match=r"engine's a\.qkv_proj\.weight is not that of"):
        check_held(model(torch.cat([k, q, v]), padded), tmp_path)
    with pytest.raises(StaleWeightsError, match="none of the engine's parameters"):
        check_held(model(torch.empty(0), torch.empty(0)), tmp_path)


def test_out_of_memory_is_tried_with_fewer_sequences(base, monkeypatch, capsys) -> None:
    from harness.evaluation import engine as module

    real, opened = module.open_model, []

    def open_model(folder, settings, verbose=False):
        opened.append(settings.sequences)
        if settings.sequences > 10:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(folder, settings, verbose)

    monkeypatch.setattr(module, "open_model", open_model)
    settings = Settings("hf", 96, sequences=64)
    with Engine(base, settings) as engine:
        assert opened == [64, 16, 4]
        assert engine.settings.sequences == 4
        assert engine.settings.record()["sequences"] == 4
        assert len(answers(engine)) == len(PROMPTS)
    assert "out of memory with 64 sequences at once; trying 16" in capsys.readouterr().err

    def too_small(folder, settings, verbose=False):
        raise MemoryError

    monkeypatch.setattr(module, "open_model", too_small)
    with pytest.raises(MemoryError, match="even with one sequence .* set a larger --engine-memory"):
        Engine(base, settings)


def test_out_of_memory_between_answers_loses_none(base, monkeypatch) -> None:
    with Engine(base, Settings("hf", 96)) as engine:
        known = answers(engine)
        before = engine._model

        def broken(*_):
            raise MemoryError("out of memory")

        monkeypatch.setattr(before, "complete", broken)
        assert answers(engine) == known
        assert engine._model is not before


def test_errors_of_memory_are_told_from_others() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(ValueError("prompt 3 has 120 tokens"))
    vllm = (
        "To serve at least one request with the model's max seq len (4096), 2.0 GiB KV "
        "cache is needed, which is larger than the available KV cache memory (1.0 GiB)."
    )
    assert context_too_long(ValueError(vllm))
    assert not context_too_long(MemoryError())


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Limits(memory=1.5), r"engine memory = 1.5; expected a share"),
        (lambda: Limits(sequences=0), "engine sequences = 0; expected at least 1"),
        (lambda: Limits(seconds=0.0), "task limit = 0.0 s"),
        (lambda: Settings("hf", 8, batch_invariant=True), "expected vLLM on a GPU"),
        (lambda: Settings("vllm", 8, batch_invariant=True), "expected vLLM on a GPU"),
    ],
)
def test_settings_are_checked(make, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
