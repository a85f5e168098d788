"""How fast bits and exponents learn."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from scrimp._core.param_groups import Rule
from scrimp._core.param_groups import param_groups as core_param_groups
from scrimp.bits.quantizer import Quantizer
from scrimp.bits.size_plan import Objective
from scrimp.errors import ConfigError

_EXPONENT_SCALE = 0.1  # of the rate of bits; the exponent has the task's gradient alone, and follows the weights


def rule(
    *, rate: float = 0.5, optimizer: type[Optimizer] = torch.optim.Adam, objective: Objective = Objective.BITS
) -> Rule:
    """The rule for ``scrimp.param_groups`` that lets bits learn at a pace which gamma decides.

    A channel that the task does not need loses about ``rate * gamma`` bits per step (0.7 to 1 times as much; with Adam
    divided by ``1 + gamma``), whatever the size of its layer and of the model. With the default, 8 bits are gone after
    about a thousand steps at gamma 0.02.

    The gradient of the size is tiny, about 1 / (channels of the model), which Adam's usual epsilon of 1e-8 would
    normalise away: bits would fall by the learning rate at any gamma. Here epsilon is what a layer's bits have as
    gradient at gamma = 1, so that smaller ones act in proportion and larger ones are bounded by ``rate`` per step. For
    optimizers that do not normalise (SGD), the learning rate is divided by it and momentum is off. Exponents learn a
    tenth as fast as the bits of a layer in the middle: the task's gradient is all they have, which is not smaller in
    small layers, and a rate that is made for the bits of these makes their weights jump. None of them decays, because
    that would push bits to zero and scales to one for no reason.

    Numbers are rounded up to powers of the root of 2, so that few groups arise. Source: the settings are ours; what
    others use (Adam with a rate of 0.5 and an epsilon of 1e-3) is the same for layers like those of ResNet-9.

    Args: optimizer - its class; those that normalise gradients are told by their option ``eps``.
    Raises: ConfigError - a rate that is not positive.
    """
    if not rate > 0:
        raise ConfigError(f"bits.rule: rate is {rate}; it has to be positive")
    normalises = "eps" in _options_of(optimizer)

    def options(name: str, _parameter: nn.Parameter, owner: nn.Module) -> dict[str, Any]:
        assert isinstance(owner, Quantizer)
        scale = owner.rate_scale(name.rpartition(".")[2])
        speed = rate * (_EXPONENT_SCALE if scale is None else scale)
        slope = (owner.usual_slopes if scale is None else owner.slopes)[objective]
        slope = 2.0 ** (math.ceil(2 * math.log2(slope)) / 2)
        told: dict[str, Any] = {"lr": speed, "eps": slope} if normalises else {"lr": speed / slope}
        if not normalises and "momentum" in _options_of(optimizer):
            told["momentum"] = 0.0
        return {**told, "weight_decay": 0.0}

    return Rule("bits", lambda _name, _parameter, owner: isinstance(owner, Quantizer), options)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    rate: float = 0.5,
    optimizer: type[Optimizer] = torch.optim.Adam,
    rules: Sequence[Rule] = (),
    **defaults: Any,
) -> list[dict[str, Any]]:
    """``scrimp.param_groups`` with ``rule(rate=rate, optimizer=optimizer)`` before ``rules``.

    Give the class of the optimizer that the groups are for: ``SGD(param_groups(model, lr=0.1, optimizer=SGD))``.
    """
    mine = rule(rate=rate, optimizer=optimizer)
    return core_param_groups(model, lr=lr, weight_decay=weight_decay, rules=[mine, *rules], **defaults)


def _options_of(optimizer: type[Optimizer]) -> frozenset[str]:
    return frozenset(inspect.signature(optimizer).parameters)
