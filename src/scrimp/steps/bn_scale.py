"""Batch norms with a fixed scale, and the biases that then learn in its place."""

import warnings

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp._core.param_groups import Rule
from scrimp.errors import ConfigError, NoEffectWarning


def freeze_bn_scale_(model: nn.Module, value: float = 1.0) -> int:
    """Set the scale of every batch norm to ``value`` and freeze it; biases stay trainable.

    A scale that is trained hardly moves from where it started, and what it does move to is mostly noise. Frozen, it
    takes no gradient and no optimizer state; biases want a larger learning rate then: ``bias_rule``.

    Call it before ``scrimp.param_groups``, which leaves frozen parameters out. It also sets the zero that some residual
    networks give the last norm of a branch; leave those networks alone, or set that back.

    Returns: how many scales are frozen now. Called again, it sets the new value. Raises: ConfigError - a value that is
        not positive. Warns: NoEffectWarning - no batch norm with a scale.
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", "frozen batch norm scales"; kept by his successors.
    """
    if not 0 < value < float("inf"):
        raise ConfigError(f"freeze_bn_scale_: value is {value}; a scale has to be positive and finite")
    scales = [module.weight for module in model.modules() if isinstance(module, _BatchNorm) and module.affine]
    for scale in scales:
        with torch.no_grad():
            scale.fill_(value)
        scale.requires_grad_(False)
        scale.grad = None
    if not scales:
        warnings.warn(
            f"freeze_bn_scale_ found no batch norm with a scale in {type(model).__name__}",
            NoEffectWarning,
            stacklevel=2,
        )
    return len(scales)


def bias_rule(scale: float = 64.0) -> Rule:
    """A rule for ``scrimp.param_groups``: biases of batch norms learn ``scale`` times as fast, decayed as before.

    Their weight decay is divided by ``scale``, so that learning rate times decay, and with it how fast a bias forgets,
    stays as it was. 64 is Page's value; ``absorb_bn_scale_`` says what follows from a scale exactly.

    Raises: ConfigError - a scale that is not positive.
    """
    if not 0 < scale < float("inf"):
        raise ConfigError(f"bias_rule: scale is {scale}; it has to be positive and finite")
    options = {"lr_scale": scale, "weight_decay_scale": 1 / scale}
    return Rule(
        f"batch norm biases x{scale:g}",
        lambda name, _p, owner: isinstance(owner, _BatchNorm) and name.rpartition(".")[2] == "bias",
        options,
    )
