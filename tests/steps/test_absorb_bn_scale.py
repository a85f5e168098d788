"""The reparametrisation behind frozen scales: the same training, to the last bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import scrimp
from scrimp._core.rng import generator
from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import absorb_bn_scale_, freeze_bn_scale_, pool_early_
from scrimp.train.models.convnets import Residual, resnet9


class Scale(nn.Module):
    def forward(self, x):
        return x * 0.125


def page_net(activation):
    """A small network in the shape of Page's: a residual, poolings, a linear head times 1/8; conv biases as well."""

    def block(i, o, bias=False):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=bias), nn.BatchNorm2d(o), activation())

    return nn.Sequential(
        block(3, 4), block(4, 6, bias=True), nn.MaxPool2d(2), Residual(nn.Sequential(block(6, 6), block(6, 6))),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), Scale(),
    )  # fmt: skip


def train(model, groups, num_steps):
    """Logits of every training step and of an evaluation at the end, in float64."""
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    draws, seen = generator(0, "data"), []
    for _ in range(num_steps):
        images = torch.randn(8, 3, 8, 8, generator=draws, dtype=torch.float64)
        labels = torch.randint(5, (8,), generator=draws)
        logits = model.train()(images)
        seen.append(logits.detach())
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        seen.append(model.eval()(images))
    return torch.stack(seen)


@pytest.mark.parametrize(
    "activation", [lambda: nn.CELU(0.075), lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.1)]
)
@pytest.mark.parametrize("pooled_early", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_absorbing_a_scale_changes_nothing_at_all_in_thirty_steps(activation, pooled_early, frozen):
    """Page: scale 1/4, CELU(0.075), learning rate b of biases == scale 1, CELU(0.3), 16 b. Difference: 0.0."""
    quarter = page_net(activation).double()
    freeze_bn_scale_(quarter, 0.25)
    if pooled_early:
        pool_early_(quarter)
    one = copy.deepcopy(quarter)
    for norm in one.modules():
        if isinstance(norm, nn.BatchNorm2d) and not frozen:
            norm.weight.requires_grad_(True)
    for norm in quarter.modules():
        if isinstance(norm, nn.BatchNorm2d) and not frozen:
            norm.weight.requires_grad_(True)
    rule = absorb_bn_scale_(one)
    assert (one[0][1].weight == 1).all()
    if isinstance(one[0][2], nn.CELU):
        assert one[0][2].alpha == pytest.approx(0.3)
    groups = scrimp.param_groups(one, lr=0.02, weight_decay=0.03125, rules=[rule])
    by_name = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["param_names"]}
    assert by_name["0.1.bias"] == (0.02 * 16, 0.03125 / 16)
    assert by_name["6.weight"] == (0.02 / 16, 0.03125 * 16)
    assert by_name["3.inner.0.0.weight"] == (0.02, 0.03125)
    expected = train(quarter, scrimp.param_groups(quarter, lr=0.02, weight_decay=0.03125), 30)
    result = train(one, groups, 30)
    assert (result - expected).abs().max().item() == 0.0
    assert expected[0].abs().max() > 0.01


def test_the_rule_is_needed():
    quarter = page_net(nn.ReLU).double()
    freeze_bn_scale_(quarter, 0.25)
    one = copy.deepcopy(quarter)
    absorb_bn_scale_(one)
    expected = train(quarter, scrimp.param_groups(quarter, lr=0.02), 3)
    result = train(one, scrimp.param_groups(one, lr=0.02), 3)
    assert torch.equal(result[0], expected[0])  # the same function
    assert (result[-1] - expected[-1]).abs().max() > 1e-5  # on another course


def test_absorbing_twice_ends_where_it_began():
    model = resnet9(num_classes=10, in_channels=3, width=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4, 3, 16, 16, generator=generator(0))
    expected = model.eval()(x)
    absorb_bn_scale_(model, 4.0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    absorb_bn_scale_(model, 1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_to_absorb_warns():
    for model in (nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))):
        with pytest.warns(NoEffectWarning, match="changed nothing in"):
            absorb_bn_scale_(model)


class Meets(nn.Module):
    """A norm's output meets one that no norm was in front of."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head((x + self.norm(x)).mean((2, 3)))


class Adds(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.norm, self.head, self.change = nn.BatchNorm1d(3), nn.Linear(3, 3), change

    def forward(self, x):
        return self.head(self.change(self.norm(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (page_net(nn.GELU), "GELU.*no form that is the same at another scale"),
        (page_net(nn.ELU), "ELU"),
        (Meets(), "branches of different scale"),
        (nn.Sequential(nn.BatchNorm1d(3)), "no linear layer"),
        (Adds(lambda x: x + 1), "add keeps proportions is not known"),
        (Adds(lambda x: x * x), "mul keeps proportions is not known"),
        (Adds(lambda x: 1 / x), "truediv keeps proportions"),
        (Adds(torch.sigmoid), "sigmoid keeps proportions"),
        (Adds(lambda x: x if x.sum() > 0 else -x), "cannot trace"),
    ],
)
def test_what_cannot_be_absorbed_is_refused_and_nothing_changes(model, message):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        absorb_bn_scale_(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.eps == 1e-5 for module in model.modules() if hasattr(module, "eps"))


def test_bad_scales_are_refused():
    with pytest.raises(ConfigError, match="has to be positive"):
        absorb_bn_scale_(nn.BatchNorm2d(2), 0)


def test_unequal_scales_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[1] = 2
    with pytest.raises(ConfigError, match="unequal or non-positive scales"):
        absorb_bn_scale_(model)
