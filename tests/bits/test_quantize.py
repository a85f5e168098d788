"""The quantiser: known codes, known gradients, a slow twin."""

import math
import shutil
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.quantize import num_levels_slow, quantize_slow
from torch import nn

from scrimp.bits import quantize
from scrimp.bits.fused import compiled_on_gpu
from scrimp.bits.quantize import codes_and_scales
from scrimp.errors import NoEffectWarning

LN2 = math.log(2)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(seed=0, shape=(6, 3, 3), channel_dim=0, bits=(0.3, 1.0, 1.7, 2.5, 4.0, 8.0)):
    channels = shape[channel_dim]
    depths = torch.tensor(bits[:channels], dtype=torch.float64).requires_grad_()
    exponent = (draw(seed + 1, channels) * 0.3 - 1).requires_grad_()
    return draw(seed, *shape).requires_grad_(), depths, exponent


def test_known_values():
    weight = torch.tensor([[-3.0, -0.6, -0.5, 0.0, 0.5, 0.75, 1.5, 9.0]])
    result = quantize(weight, torch.tensor([3.0]), torch.tensor([-1.0]))
    # steps of 1/2, codes -4..3; -0.6 is -1.2 steps, 0.75 is 1.5 steps and goes to the even code
    assert result.tolist() == [[-2.0, -0.5, -0.5, 0.0, 0.5, 1.0, 1.5, 1.5]]


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (0.01, 2), (1.0, 2), (1.58, 2), (1.59, 4), (2.0, 4), (2.32, 4), (2.33, 6), (2.81, 8), (3.0, 8), (3.18, 10),
        (8.0, 256),
    ],
)  # fmt: skip
def test_number_of_levels(bits, levels):
    """A real depth has more codes than 2^bits: thresholds are at log2 of the odd numbers."""
    sweep = torch.linspace(-600, 600, 240_001)[None]
    assert len(quantize(sweep, torch.tensor([bits]), torch.zeros(1)).unique()) == levels
    assert num_levels_slow(bits) == levels


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (0.5, 1), (1.0, 1), (1.01, 3), (1.58, 3), (2.0, 3), (2.01, 5), (2.58, 5), (2.59, 7), (3.0, 7), (3.01, 9),
        (4.0, 15), (8.0, 255),
    ],
)  # fmt: skip
def test_number_of_symmetric_levels(bits, levels):
    """As many below zero as above; thresholds are at log2 of the even numbers, and one bit is nothing."""
    sweep = torch.linspace(-600, 600, 240_001)[None]
    codes = quantize(sweep, torch.tensor([bits]), torch.zeros(1), symmetric=True).unique()
    assert len(codes) == levels
    assert torch.equal(codes, -codes.flip(0))
    assert num_levels_slow(bits, symmetric=True) == levels


def test_one_symmetric_bit_is_nothing_and_gets_no_gradient():
    weight = draw(0, 3, 50).float().requires_grad_()
    bits, exponent = torch.tensor([1.0, 0.4, -7.0]).requires_grad_(), torch.zeros(3).requires_grad_()
    result = quantize(weight, bits, exponent, symmetric=True)
    assert torch.equal(result.view(torch.int32), torch.zeros(3, 50, dtype=torch.int32))  # no -0.0
    (result * draw(1, 3, 50).float()).sum().backward()
    assert all(not tensor.grad.any() for tensor in (weight, bits, exponent))


def test_no_bits_are_exact_positive_zeros_without_any_gradient():
    weight = draw(0, 3, 50).float().requires_grad_()
    bits, exponent = torch.tensor([0.0, -0.1, -7.0]).requires_grad_(), torch.zeros(3).requires_grad_()
    result = quantize(weight, bits, exponent)
    assert torch.equal(result.view(torch.int32), torch.zeros(3, 50, dtype=torch.int32))  # no -0.0
    (result * draw(1, 3, 50).float()).sum().backward()
    assert all(not tensor.grad.any() for tensor in (weight, bits, exponent))


def test_a_zero_code_is_positive_zero():
    result = quantize(torch.tensor([[-0.2, -1.0, 0.2]]), torch.tensor([4.0]), torch.zeros(1))
    assert result.view(torch.int32)[0, 0] == 0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("shape", "channel_dim"), [((6, 3, 3), 0), ((4, 6, 2, 2), 1), ((6, 5), 0)])
def test_agrees_with_the_slow_twin(shape, channel_dim, symmetric):
    fast, slow = inputs(0, shape, channel_dim), inputs(0, shape, channel_dim)
    results = (
        quantize(*fast, channel_dim, symmetric=symmetric), quantize_slow(*slow, channel_dim, symmetric=symmetric),
    )  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-14, atol=0)
    direction = draw(9, *shape)
    for result in results:
        (result * direction).sum().backward()
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 12), st.floats(-8, 3), st.booleans())
def test_gradients_are_those_of_the_slow_twin_everywhere(seed, bits, exponent, symmetric):
    grads = []
    for function in (quantize, quantize_slow):
        weight = draw(seed, 1, 7).requires_grad_()
        depth, power = (torch.tensor([value], dtype=torch.float64).requires_grad_() for value in (bits, exponent))
        total = (function(weight, depth, power, symmetric=symmetric) * draw(seed + 1, 1, 7)).sum()
        if total.requires_grad:  # the twin's zeros have no gradient
            total.backward()
        grads.append([torch.zeros_like(one) if one.grad is None else one.grad for one in (weight, depth, power)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradients_by_hand():
    """Inside: 1 to the weight, the rounding error to the exponent. Outside: the bound, to bits and exponent."""
    weight = torch.tensor([[0.3, 5.0, -5.0]], dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    exponent = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    rows = torch.autograd.functional.jacobian(quantize, (weight, bits, exponent))
    assert torch.equal(rows[0][0, :, 0], torch.eye(3, dtype=torch.float64) * torch.tensor([1, 0, 0]))
    step, half = 0.5, 4
    assert rows[1][0, :, 0].tolist() == pytest.approx([0.0, step * half * LN2, -step * half * LN2])
    assert rows[2][0, :, 0].tolist() == pytest.approx([LN2 * (0.5 - 0.3), LN2 * step * 3, LN2 * step * -4])


def test_gradients_are_the_numerical_ones_of_the_surrogate():
    """With the rounding error held fixed, 2^e * (clamp(w / 2^e) + error) is differentiable, and has our gradients."""
    tensors = [tensor.detach() for tensor in inputs(5, (6, 30))]
    weight, bits, exponent = tensors
    step = 2 ** exponent[:, None]
    bound = 2 ** (bits[:, None] - 1)
    error = codes_and_scales(*tensors)[0] - (weight / step).clamp(-bound, bound - 1)
    direction = draw(6, 6, 30)

    def surrogate(weight, bits, exponent):
        step, bound = 2 ** exponent[:, None], 2 ** (bits[:, None] - 1)
        return (step * ((weight / step).clamp(-bound, bound - 1) + error) * direction).sum()

    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    (quantize(*leaves) * direction).sum().backward()
    for number, leaf in enumerate(leaves):
        numerical = torch.zeros_like(leaf)
        for position in range(leaf.numel()):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = [tensor.clone() for tensor in tensors]
                moved[number].view(-1)[position] += shift
                ends.append(surrogate(*moved))
            numerical.view(-1)[position] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(leaf.grad, numerical, rtol=1e-6, atol=1e-7)


def test_sixteen_bits_are_the_most():
    weight = draw(0, 1, 9).float()
    bits = torch.tensor([40.0], requires_grad=True)
    result = quantize(weight, bits, torch.tensor([-20.0]))
    assert torch.equal(result, quantize(weight, torch.tensor([16.0]), torch.tensor([-20.0])))
    result.sum().backward()
    assert bits.grad.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    weight = draw(0, 4, 100).to(dtype).requires_grad_()
    bits, exponent = torch.full((4,), 16.0), torch.full((4,), -13.0)
    result = quantize(weight, bits, exponent)
    assert result.dtype == dtype
    assert torch.equal(result, quantize(weight.float(), bits, exponent).to(dtype))
    result.sum().backward()
    assert weight.grad.dtype == dtype


def test_autocast_changes_nothing():
    weight, bits, exponent = (tensor.detach().float() for tensor in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inner = quantize(weight, bits, exponent)
    assert inner.dtype == torch.float32
    assert torch.equal(inner, quantize(weight, bits, exponent))


def test_memory_format_is_kept():
    weight = draw(0, 8, 4, 3, 3).float().to(memory_format=torch.channels_last).requires_grad_()
    result = quantize(weight, torch.full((8,), 4.0), torch.zeros(8))
    assert result.is_contiguous(memory_format=torch.channels_last)
    result.sum().backward()
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_times_scales_are_the_weights_bit_by_bit(symmetric):
    weight, bits, exponent = (tensor.detach().float() for tensor in inputs(3, (6, 40)))
    codes, scales = codes_and_scales(weight, bits, exponent, symmetric=symmetric)
    assert torch.equal(codes, codes.round())
    assert torch.equal(codes.int().float() * scales[:, None], quantize(weight, bits, exponent, symmetric=symmetric))


@pytest.mark.parametrize("symmetric", [False, True])
def test_quantising_again_changes_nothing(symmetric):
    weight, bits, exponent = (tensor.detach().float() for tensor in inputs(4, (6, 400)))
    once = quantize(weight, bits, exponent, symmetric=symmetric)
    assert torch.equal(quantize(once, bits, exponent, symmetric=symmetric), once)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from tracing an autograd function
def test_it_works_under_compile_of_the_whole_layer():
    layer = nn.Linear(5, 4)
    bits, exponent = torch.full((4,), 3.0), torch.full((4,), -3.0)

    def forward(inputs):
        return nn.functional.linear(inputs, quantize(layer.weight, bits, exponent), layer.bias)

    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    example = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compiled(example), forward(example))


def both_ways(fused, device="cpu", channel_dim=0, *, symmetric=False):
    weight, bits, exponent = (
        one.detach().float().to(device).requires_grad_() for one in inputs(3, (6, 6, 3, 3), channel_dim)
    )
    result = quantize(weight, bits, exponent, channel_dim, symmetric=symmetric, fused=fused)
    result.backward(draw(5, 6, 6, 3, 3).float().to(device))
    return result.detach(), weight.grad, bits.grad, exponent.grad


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.filterwarnings("default")  # torch's own, from its compiler
@pytest.mark.parametrize("symmetric", [False, True])
def test_compiled_it_is_the_same(symmetric):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        fused, plain = both_ways(True, symmetric=symmetric), both_ways(None, symmetric=symmetric)
        assert torch.equal(fused[0].view(torch.int32), plain[0].view(torch.int32))
        assert torch.equal(fused[1], plain[1])
        torch.testing.assert_close(fused[2:], plain[2:], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_is_the_same():
    fused, plain = both_ways(None, "cuda"), both_ways(False, "cuda")
    assert torch.equal(fused[0], plain[0])
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


def test_where_it_cannot_be_compiled_it_runs_all_the_same(monkeypatch):
    def cannot(function, **_options):
        def run(*_tensors):
            raise RuntimeError("no Triton\nand more")

        return run

    monkeypatch.setattr(torch, "compile", cannot)
    double = compiled_on_gpu(lambda tensor: (tensor * 2,))
    with pytest.warns(NoEffectWarning, match=r"could not be compiled \(RuntimeError: no Triton\)"):
        assert double(torch.ones(2), fused=True)[0].tolist() == [2, 2]
    assert double(torch.ones(2), fused=True)[0].tolist() == [2, 2]
