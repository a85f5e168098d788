"""Pooling moved before activations: the same function to the last bit, wherever the two are found."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import pool_early_
from scrimp.train.models.convnets import resnet9

MONOTONE = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.ELU(), nn.CELU(0.3), nn.SELU(), nn.Softplus(), nn.Sigmoid(), nn.Tanh(),
    nn.Hardtanh(), nn.Hardsigmoid(), nn.Softsign(), nn.LogSigmoid(),
]  # fmt: skip


def images(batch=4, channels=3, side=8):
    return torch.randn(batch, channels, side, side, generator=generator(0, "images"))


def order(model):
    return [type(module).__name__ for module in model]


def in_a_row(activation):
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), activation, nn.MaxPool2d(2), nn.Flatten())


class OneAfterTheOther(nn.Module):
    """Modules called in forward, and an activation inside of a block before a pooling outside of it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.outer_pool = nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        x = self.pool(self.act(self.stem(x)))
        return self.outer_pool(self.block(x)).flatten(1)


@pytest.mark.parametrize("activation", MONOTONE, ids=lambda a: type(a).__name__)
def test_same_function_and_gradients(activation):
    model = in_a_row(activation)
    late = copy.deepcopy(model)
    assert pool_early_(model, images()) == 1
    assert order(model) == ["Conv2d", "BatchNorm2d", "MaxPool2d", type(activation).__name__, "Flatten"]
    torch.testing.assert_close(model(images()), late(images()), rtol=0, atol=1e-6)
    for net in (model, late):
        net(images()).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, late[0].weight.grad)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.LeakyReLU(-0.1), nn.PReLU()])
def test_what_is_not_monotone_stays(activation):
    model = in_a_row(activation)
    with pytest.warns(NoEffectWarning, match="no max pooling behind a monotone activation in Sequential"):
        assert pool_early_(model) == 0
    assert order(model)[2:4] == [type(activation).__name__, "MaxPool2d"]


def test_those_that_stay_would_change_the_function():
    """The guard has a reason."""
    late, early = in_a_row(nn.GELU()), in_a_row(nn.GELU())
    early.load_state_dict(late.state_dict())
    early[2], early[3] = early[3], early[2]
    assert not torch.allclose(late(images()), early(images()), atol=1e-3)


def test_modules_called_one_after_the_other_trade_places():
    model = OneAfterTheOther()
    late, names = copy.deepcopy(model), list(model.state_dict())
    assert pool_early_(model, images()) == 2
    assert isinstance(model.act, nn.MaxPool2d)
    assert isinstance(model.pool, nn.ReLU)
    assert order(model.block) == ["Conv2d", "BatchNorm2d", "AdaptiveMaxPool2d"]
    assert isinstance(model.outer_pool, nn.ReLU)
    assert torch.equal(model.eval()(images()), late.eval()(images()))
    assert list(model.state_dict()) == names


def test_resnet9_equals_the_network_built_early():
    """The library's own network, late, made early by the function, is the one that its option builds."""
    late = resnet9(num_classes=10, in_channels=3, width=4)
    early = resnet9(num_classes=10, in_channels=3, width=4, pool_early=True)
    early.load_state_dict(late.state_dict())
    assert pool_early_(late, images(side=16), before_norm=True) == 6
    assert list(late.layer1._modules) == list(early.layer1._modules) == ["conv", "pool", "norm", "act"]
    assert torch.equal(late(images(side=16)), early(images(side=16)))


def test_before_the_norm_is_asked_for_and_another_function():
    model = in_a_row(nn.ReLU())
    late = copy.deepcopy(model)
    assert pool_early_(model, images(), before_norm=True) == 2
    assert order(model) == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Flatten"]
    assert list(model.state_dict()) == list(late.state_dict())
    assert not torch.allclose(model(images()), late(images()), atol=1e-2)


def test_a_second_call_does_nothing():
    model = in_a_row(nn.ReLU())
    pool_early_(model)
    before = order(model)
    with pytest.warns(NoEffectWarning, match="is it early already"):
        assert pool_early_(model) == 0
    assert order(model) == before


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2, return_indices=True), nn.AvgPool2d(2), nn.FractionalMaxPool2d(2, output_size=3)]
)
def test_other_poolings_stay(pool):
    model = nn.Sequential(nn.ReLU(), pool)
    with pytest.warns(NoEffectWarning):
        pool_early_(model)
    assert order(model)[0] == "ReLU"


class TakesParts(nn.Module):
    """Uses what lies between the activation and the pooling of a Sequential."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        middle = self.features[:2](x)
        return self.features[2](middle).mean() + middle.mean()


def test_a_model_that_would_change_is_refused_and_left_as_it_was():
    model = TakesParts()
    expected = model(images())
    with pytest.raises(ConfigError, match="the outputs change"):
        pool_early_(model, images())
    assert order(model.features) == ["Conv2d", "ReLU", "MaxPool2d"]
    assert torch.equal(model(images()), expected)
    assert model.training


class UsedTwice(nn.Module):
    """An activation used twice, one that others read as well, functions, and a shared module: all stay."""

    def __init__(self):
        super().__init__()
        self.act, self.pool, self.act2, self.pool2 = nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.act(x - 1))
        x = self.act(x)
        y = self.act2(x)
        return self.pool2(y).sum() + y.sum() + functional.max_pool2d(functional.relu(x), 2).sum()


def test_what_is_used_twice_stays():
    model = UsedTwice()
    with pytest.warns(NoEffectWarning):
        pool_early_(model, images())
    assert isinstance(model.act, nn.ReLU)
    assert isinstance(model.act2, nn.ReLU)


class HangsTwice(nn.Module):
    """Called once, but hanging in two places: which of them the forward pass reads is not known."""

    def __init__(self):
        super().__init__()
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.alias = self.act

    def forward(self, x):
        return self.pool(self.alias(x))


def test_what_hangs_in_two_places_stays():
    model = HangsTwice()
    with pytest.warns(NoEffectWarning):
        pool_early_(model, images())
    assert isinstance(model.act, nn.ReLU)
    assert model.alias is model.act


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        return self.features(x) if x.sum() > 0 else x


def test_sequentials_of_an_untraceable_model_are_found():
    model = Untraceable()
    assert pool_early_(model, images()) == 1
    assert order(model.features) == ["MaxPool2d", "ReLU"]


class OtherWayInTraining(nn.Module):
    """Only in evaluation is the pooling behind the activation; trading places would be wrong in training."""

    def __init__(self):
        super().__init__()
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        x = self.act(x)
        return self.pool(x) if not self.training else x.sum()


def test_a_way_that_depends_on_the_mode_is_left_alone():
    model = OtherWayInTraining()
    with pytest.warns(NoEffectWarning):
        pool_early_(model)
    assert isinstance(model.act, nn.ReLU)
