import pytest
import torch

from harness.influence.choice import METHODS, choose, chosen, operations


def test_costs_rise_with_directions_as_the_methods_do():
    assert operations("central", 1) == 2  # two forward passes, by definition
    assert operations("central", 5) == 10
    for method in METHODS:
        assert operations(method, 9) > operations(method, 8)
    assert operations("ghost", 64) < operations("forward", 2)


@pytest.mark.parametrize("directions", [1, 2, 64])
def test_plain_attention_is_scored_exactly(make_model, directions):
    choice = choose(make_model(), directions)
    assert choice.method == "ghost"
    assert choice.operations == operations("ghost", directions)
    assert f"{directions} direction" in choice.reason
    assert f"forward-mode derivatives {operations('forward', directions):.1f}" in choice.reason


def test_kernels_without_forward_mode(make_model):
    fused = make_model(kernel="sdpa")
    one, many = choose(fused, 1), choose(fused, 2)
    assert (one.method, many.method) == ("central", "ghost")
    assert "'sdpa' has no forward mode" in one.reason
    half = choose(make_model(dtype=torch.bfloat16, kernel="sdpa"), 1)
    assert half.method == "ghost"
    assert "too coarse" in half.reason


def test_what_was_asked_for(make_model):
    assert chosen(make_model(), "forward", 3).reason == "asked for"
    with pytest.raises(ValueError, match="method is 'magic'; expected one of 'auto', 'forward'"):
        chosen(make_model(), "magic", 1)
