"""How fast bits fall: in proportion to gamma, with any optimizer, in any layer."""

import pytest
import torch
from torch import nn

import scrimp
from scrimp.bits import BitsExponent, BitsRange, StepRange, param_groups, quantized_layers, rule, self_compress_
from scrimp.errors import ConfigError

GAMMAS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.05}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
}


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 4, 1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def compressed(**options):
    model = net()
    self_compress_(model, torch.zeros(2, 3, 8, 8), **options)
    return model


def fall(name, gamma, num_steps=5, quantizer=BitsRange):
    """Bits lost per step by each layer, without any task."""
    kind, options = OPTIMIZERS[name]
    model = compressed(quantizer=quantizer).double()  # float32 cannot count steps of 1e-6 from 8
    optimizer = kind(param_groups(model, lr=1e-3, optimizer=kind), lr=1e-3, **options)
    for _ in range(num_steps):
        (gamma * scrimp.size_penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([8 - layer.bits.double().mean() for layer in quantized_layers(model).values()]) / num_steps


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_bits_fall_in_proportion_to_gamma_over_four_decades(name, quantizer):
    """Without it, Adam lets them fall at one speed whatever gamma is (next test)."""
    rates = torch.stack([fall(name, gamma, quantizer=quantizer) for gamma in GAMMAS])
    per_gamma = rates / torch.tensor(GAMMAS).double()[:, None]
    for layer in range(per_gamma.shape[1]):
        assert per_gamma[:, layer].max() / per_gamma[:, layer].min() <= 1.10
    # near the documented 0.5 bits per gamma in every layer, small or large
    assert per_gamma.min() > 0.5 * 0.7 / 1.1
    assert per_gamma.max() <= 0.5


def test_with_the_usual_epsilon_gamma_has_no_effect():
    """The defect that the rule is there for can be seen by this measure."""
    rates = []
    for gamma in (1e-1, 1e-4):
        model = compressed()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(10):
            (gamma * scrimp.size_penalty(model)).backward()
            optimizer.step()
        rates.append(8 - quantized_layers(model)["3"].bits.mean().item())
    assert rates[0] == pytest.approx(rates[1], rel=0.05)


def test_rmsprop_is_in_proportion_too_where_steps_are_small():
    rates = torch.stack([fall("rmsprop", gamma) for gamma in (1e-3, 1e-2)])
    assert torch.allclose(rates[1] / rates[0], torch.full((4,), 10.0).double(), rtol=0.15)


def test_a_task_keeps_the_bits_that_it_needs_and_more_gamma_leaves_fewer():
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 12, generator=draws)
    targets = (inputs[:, :4] @ torch.randn(4, 3, generator=draws)).argmax(dim=1)
    sizes = []
    for gamma in (0.002, 0.02, 0.2):
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
        with torch.no_grad():
            start = torch.Generator().manual_seed(1)
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=start) * 0.3)
        self_compress_(model, inputs)
        optimizer = torch.optim.Adam(param_groups(model, lr=0.01))
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            (loss + gamma * scrimp.size_penalty(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
        sizes.append(scrimp.size_penalty(model, push=0).item())
        accuracy = (model(inputs).argmax(dim=1) == targets).float().mean().item()
        assert accuracy > 0.85
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < sizes[0] / 3


def test_bits_and_exponents_do_not_decay_and_have_groups_of_their_own():
    model = compressed()
    groups = param_groups(model, lr=1e-3, weight_decay=0.1, rules=[scrimp.no_decay_rule()])
    bits = {name for group in groups if group["name"] == "bits" for name in group["param_names"]}
    assert bits == {name for layer in quantized_layers(model).values() for name in layer.parameter_names}
    assert all(group["weight_decay"] == 0 for group in groups if group["name"] == "bits")
    assert {group["weight_decay"] for group in groups if group["name"] == "default"} == {0.1}
    assert len(groups) <= 2 + 2 * 4


def test_the_rule_goes_before_others_in_anybodys_list():
    model = compressed()
    groups = scrimp.param_groups(model, lr=0.1, rules=[rule(rate=0.2), scrimp.no_decay_rule()])
    depths = [group for group in groups if any("depth" in name for name in group["param_names"])]
    assert {group["lr"] for group in depths} == {0.2}
    ranges = [group for group in groups if any("log_span" in name for name in group["param_names"])]
    assert ranges
    assert [group["lr"] for group in ranges] == pytest.approx([0.02] * len(ranges))


def test_nesterov_and_other_momenta_stay_out_of_bits():
    groups = param_groups(compressed(), lr=0.1, optimizer=torch.optim.SGD)
    assert {group["momentum"] for group in groups if group["name"] == "bits"} == {0.0}
    assert "eps" not in groups[-1]


def test_a_rate_has_to_be_positive():
    with pytest.raises(ConfigError, match="rate"):
        rule(rate=0.0)
