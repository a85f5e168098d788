import warnings

import pytest
import torch
from torch import nn

from scrimp._core.param_groups import Rule, no_decay_rule, param_groups
from scrimp.errors import ConfigError, NoEffectWarning


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


def bias_rule(scale: float) -> Rule:
    options = {"lr_scale": scale, "weight_decay_scale": 1 / scale}
    return Rule(
        "norm bias", lambda name, p, owner: isinstance(owner, nn.BatchNorm2d) and name.endswith("bias"), options
    )


def facts(groups):
    return [(g["name"], g["param_names"], g["lr"], g["weight_decay"]) for g in groups]


def test_first_match_wins_and_each_parameter_is_in_one_group():
    net = Net()
    groups = param_groups(net, lr=0.1, weight_decay=0.5, rules=[bias_rule(64), no_decay_rule()], momentum=0.9)
    assert facts(groups) == [
        ("default", ["embed.weight", "conv.weight"], 0.1, 0.5),
        ("norm bias", ["norm.bias"], 6.4, 0.5 / 64),
        ("no decay", ["conv.bias", "norm.weight", "head.bias"], 0.1, 0.0),
    ]
    named = dict(net.named_parameters())
    for group in groups:
        assert group["momentum"] == 0.9
        assert all(p is named[name] for p, name in zip(group["params"], group["param_names"], strict=True))
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_torch_takes_the_groups_and_stores_them():
    net = Net()
    optimizer = torch.optim.AdamW(param_groups(net, lr=0.1, weight_decay=0.5, rules=[bias_rule(2), no_decay_rule()]))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.05]
    again = torch.optim.AdamW(param_groups(net, lr=1.0, weight_decay=0.5, rules=[bias_rule(2), no_decay_rule()]))
    again.load_state_dict(optimizer.state_dict())
    assert facts(again.param_groups) == facts(optimizer.param_groups)


def test_equal_options_share_a_group():
    rules = [
        Rule("a", lambda name, p, owner: name == "conv.bias", {"weight_decay": 0}),
        Rule("b", lambda name, p, owner: name == "norm.bias", {"weight_decay_scale": 0}),
        Rule("c", lambda name, p, owner: name == "norm.weight", {"weight_decay": 0.5}),
    ]
    groups = param_groups(Net(), lr=0.1, weight_decay=0.5, rules=rules)
    assert [(group["name"], group["param_names"]) for group in groups] == [
        ("default + c", ["embed.weight", "conv.weight", "head.bias", "norm.weight"]),
        ("a + b", ["conv.bias", "norm.bias"]),
    ]


def test_options_may_depend_on_the_parameter():
    rule = Rule("by size", lambda *_: True, lambda name, p, owner: {"lr": 1 / p.shape[0], "eps": 1e-3})
    groups = param_groups(Net(), lr=0.1, rules=[rule], eps=1e-8)
    assert [(g["lr"], g["eps"], g["param_names"]) for g in groups] == [
        (1 / 7, 1e-3, ["embed.weight", "head.bias"]),
        (1 / 4, 1e-3, ["conv.weight", "conv.bias", "norm.weight", "norm.bias"]),
    ]


def test_frozen_parameters_are_left_out_and_embeddings_can_be_undecayed():
    net = Net()
    net.conv.requires_grad_(False)
    groups = param_groups(net, lr=0.1, weight_decay=0.5, rules=[no_decay_rule(embeddings=True)])
    assert facts(groups) == [("no decay", ["embed.weight", "norm.weight", "norm.bias", "head.bias"], 0.1, 0.0)]
    net.requires_grad_(False)
    with pytest.raises(ConfigError, match="Net has no parameter with requires_grad=True"):
        param_groups(net, lr=0.1)


def test_a_rule_without_effect_warns():
    with pytest.warns(NoEffectWarning, match="the rule 'norm bias' decides for no trainable parameter of Linear"):
        param_groups(nn.Linear(2, 2), lr=0.1, rules=[bias_rule(2)])
    with pytest.warns(NoEffectWarning, match="a rule before it takes them"):
        param_groups(Net(), lr=0.1, rules=[no_decay_rule(), bias_rule(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_groups(Net(), lr=0.1, rules=[bias_rule(2), no_decay_rule()])


@pytest.mark.parametrize(
    ("options", "rule_options", "message"),
    [
        ({"lr": 0.0}, {}, "lr = 0.0; it must be positive"),
        ({"lr": float("nan")}, {}, "lr = nan"),
        ({"lr": -1.0}, {}, "lr = -1"),
        ({"lr": 0.1, "weight_decay": -0.1}, {}, "weight_decay = -0.1"),
        ({"lr": 0.1, "momentun": 0.9}, {}, r"param_groups\(\) gives an unknown option 'momentun'; did you mean"),
        ({"lr": 0.1, "lr_scale": 2}, {}, "unknown option 'lr_scale'"),
        ({"lr": 0.1}, {"lr_scale": 0}, "the rule 'x' for 'weight' gives lr = 0.0"),
        ({"lr": 0.1}, {"weight_decay": -1}, "weight_decay = -1"),
        ({"lr": 0.1}, {"lr_scal": 2}, "did you mean 'lr_scale'"),
        ({"lr": 0.1}, {"qqqq": 2}, "known are"),
        ({"lr": 0.1}, {"lr_scale": 2, "lr": 1.0}, "gives both 'lr' and 'lr_scale'"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options, rule_options, message):
    with pytest.raises(ConfigError, match=message):
        param_groups(nn.Linear(2, 2), **options, rules=[Rule("x", lambda *_: True, rule_options)])
