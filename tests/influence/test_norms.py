import pytest
import torch
from torch import nn

from harness.influence.layers import fused_norms


class OddRMSNorm(nn.Module):
    """Gemma's: the weight counts from 1."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = 1e-6

    def forward(self, inputs):
        scale = torch.rsqrt(inputs.square().mean(-1, keepdim=True) + self.eps)
        return inputs * scale * (1 + self.weight)


def llama_norm(width=12, epsilon=1e-3, dtype=torch.float32):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(width, eps=epsilon)
    generator = torch.Generator().manual_seed(3)
    norm.weight.data = torch.randn(width, generator=generator)
    return norm.to(dtype)


def close(actual, expected):
    atol = 2e-6 * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=atol)


def is_fused(module):
    return "forward" in vars(module)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 40.0])  # 1e-2: epsilon weighs as much as the inputs
def test_gradients_are_those_of_autograd(scale):
    """Oracle: autograd through the formula, in double precision."""
    norm = llama_norm()
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    gradient = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    exact = inputs.clone().requires_grad_()
    root = (exact.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    expected = norm.weight.detach().double() * exact / root
    x = inputs.float().requires_grad_()
    with fused_norms(norm):
        assert is_fused(norm)
        actual = norm(x)
    slopes = torch.autograd.grad(actual, x, gradient.float())[0]
    wanted = torch.autograd.grad(expected, exact, gradient)[0]
    close(actual.detach(), expected.detach())
    close(slopes, wanted)
    assert not is_fused(norm)


def test_the_weight_of_the_moment_counts():
    norm = llama_norm()
    inputs = torch.linspace(-1, 1, 12)[None]
    with fused_norms(norm):
        before = norm(inputs)
        with torch.no_grad():
            norm.weight.mul_(3)
        torch.testing.assert_close(norm(inputs), 3 * before)


def test_what_is_no_plain_norm_in_single_precision_stays():
    hooked = llama_norm()
    hooked.forward = hooked.forward
    modules = nn.ModuleList(
        [llama_norm(), OddRMSNorm(8), nn.LayerNorm(8), llama_norm(dtype=torch.float64), hooked]
    )
    own = hooked.forward
    with fused_norms(modules):
        assert [is_fused(module) for module in modules] == [True, False, False, False, True]
        assert hooked.forward is own
    assert [is_fused(module) for module in modules] == [False, False, False, False, True]


def test_a_norm_is_given_back_after_an_error():
    norm = llama_norm()
    with pytest.raises(ArithmeticError), fused_norms(norm):
        raise ArithmeticError
    assert not is_fused(norm)


def test_a_whole_model_runs_by_it(make_model):
    """Every norm of a Qwen2, and gradients through the whole model against plain autograd's."""
    model = make_model()
    ids = torch.arange(14).view(2, 7) % 24
    embeddings = model.get_input_embeddings()(ids).detach()
    actual = []
    for fused in (False, True):
        x = embeddings.clone().requires_grad_()
        if fused:
            with fused_norms(model):
                norms = [m for m in model.modules() if type(m).__name__ == "Qwen2RMSNorm"]
                assert len(norms) == 5
                assert all(map(is_fused, norms))
                loss = model(inputs_embeds=x, use_cache=False).logits.square().sum()
        else:
            loss = model(inputs_embeds=x, use_cache=False).logits.square().sum()
        actual.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(
        actual[1], actual[0], rtol=1e-4, atol=1e-4 * float(actual[0].abs().max())
    )
