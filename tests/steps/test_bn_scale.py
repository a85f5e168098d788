"""Frozen scales of batch norms, and the rule for their biases."""

import pytest
from torch import nn

import scrimp
from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import bias_rule, freeze_bn_scale_
from scrimp.train.models.convnets import resnet9


def test_freezes_all_scales_and_no_bias():
    model = resnet9(num_classes=10, in_channels=3, width=4)
    assert freeze_bn_scale_(model, 0.25) == 8
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 0.25).all() and not norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
    names = [name for group in scrimp.param_groups(model, lr=0.1) for name in group["param_names"]]
    assert not any(name.endswith("norm.weight") for name in names)
    assert freeze_bn_scale_(model) == 8  # again, with another value
    assert (norms[0].weight == 1).all()


def test_the_bias_rule():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4))
    freeze_bn_scale_(model)
    groups = scrimp.param_groups(model, lr=0.5, weight_decay=0.64, rules=[bias_rule(64)])
    assert [(g["name"], g["param_names"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("default", ["0.weight", "0.bias", "2.weight", "2.bias"], 0.5, 0.64),
        ("batch norm biases x64", ["1.bias"], 32.0, 0.01),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda m: freeze_bn_scale_(m, 0.0), lambda m: freeze_bn_scale_(m, float("inf")), lambda m: bias_rule(-1),
        lambda m: bias_rule(float("inf")),
    ],
)  # fmt: skip
def test_bad_scales_are_refused(call):
    with pytest.raises(ConfigError, match="has to be positive"):
        call(nn.BatchNorm2d(2))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)])
def test_nothing_to_freeze_warns(model):
    with pytest.warns(NoEffectWarning, match="found no batch norm with a scale"):
        freeze_bn_scale_(model)
