"""All bits moved together until a model has a size."""

import pytest
import torch
from torch import nn

import scrimp
from scrimp.bits import BitsExponent, BitsRange, StepRange, fit_size_, quantized_layers
from scrimp.errors import ConfigError


def net(quantizer=BitsRange):
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    scrimp.self_compress_(model, torch.zeros(2, 3, 8, 8), quantizer=quantizer)
    with torch.no_grad():
        for layer in quantized_layers(model).values():
            bits, exponent = (tensor.clone() for tensor in layer.quantizer.learned())
            some = 1 + 6 * torch.rand(bits.shape, generator=draws)
            some[3] = 0.0
            layer.quantizer.set_(some, exponent + bits - some)
    return model


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
@pytest.mark.parametrize("factor", [0.5, 0.8, 0.97, 1.04, 1.6])
def test_the_file_has_the_size_within_half_a_percent(tmp_path, quantizer, factor):
    model = net(quantizer)
    dead = {name: layer.dead.clone() for name, layer in quantized_layers(model).items()}
    reach = {name: layer.quantized_weight().detach().abs().amax() for name, layer in quantized_layers(model).items()}
    target = round(factor * scrimp.size_report(model).packed_bytes)
    told = fit_size_(model, target)
    assert told == pytest.approx(target, rel=0.005)
    for name, layer in quantized_layers(model).items():
        assert torch.equal(layer.dead, dead[name])
        assert layer.quantized_weight().abs().amax() <= 1.7 * reach[name]
    scrimp.bits.finalize_(model)
    assert scrimp.pack(model, tmp_path / "m.scrimp").packed_bytes == told
    assert (tmp_path / "m.scrimp").stat().st_size == told


def test_a_size_that_no_bits_give_is_neared_as_far_as_can_be():
    model = net()
    least = fit_size_(model, 10)
    assert 10 < least < 10_000
    assert quantized_layers(model)["6"].bits.amin() >= 2.0  # the output keeps what it has to keep
    assert not quantized_layers(model)["3"].dead[:3].any()
    assert fit_size_(model, 10**9) > 5 * least


@pytest.mark.parametrize("number_of_sizes", [0, 3])
def test_what_fails_leaves_the_model_as_it_was(monkeypatch, number_of_sizes):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def failing(*args, **kwargs):
        seen.append(1)
        if len(seen) > number_of_sizes:
            raise KeyboardInterrupt
        return scrimp.size_report(*args, **kwargs)

    monkeypatch.setattr("scrimp.bits.fit_size.size_report", failing)
    with pytest.raises(KeyboardInterrupt):
        fit_size_(model, 5000)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_of_the_size_stays_bit_by_bit():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settled = net()
    scrimp.bits.finalize_(settled)
    fit_size_(model, scrimp.size_report(settled).packed_bytes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_impossible_values_are_refused():
    with pytest.raises(ConfigError, match="target_bytes=0"):
        fit_size_(net(), 0)


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent])
def test_whole_exponents_move_by_whole_bits_so_that_ranges_stay(quantizer):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    scrimp.self_compress_(model, torch.zeros(2, 1, 8, 8), quantizer=quantizer, integer_exponent=True)
    before = {name: [one.clone() for one in layer.quantizer.used()] for name, layer in quantized_layers(model).items()}
    size = scrimp.size_report(model).packed_bytes
    assert fit_size_(model, round(0.8 * size)) < 0.9 * size
    for name, layer in quantized_layers(model).items():
        bits, exponent = layer.quantizer.used()
        assert torch.equal(bits + exponent, sum(before[name]))
        assert not torch.equal(bits, before[name][0])
