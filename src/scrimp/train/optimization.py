"""Optimizer and learning-rate schedule of a run."""

import math
import warnings
from typing import Any

import torch
from torch import nn

from scrimp import bits
from scrimp._core.param_groups import no_decay_rule, param_groups
from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import Muon, bias_rule, split_filters
from scrimp.train.config import TrainConfig


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, or Muon with one of the two for what is no hidden weight.

    Biases and norms are not decayed, unless biases are sped up or ``config.decay_norms`` asks for it. Raises:
    ConfigError - Muon for a model without two groups of parameters, hidden weights and others, or ``muon``, which fixes
    norms, for linear layers.
    """
    kind = torch.optim.AdamW if config.optimizer.endswith("adamw") else torch.optim.SGD
    rules = [bits.rule(optimizer=kind)] if config.compress else []
    rules += [bias_rule(config.bias_scale)] if config.bias_scale != 1 else []
    rules += [] if config.decay_norms else [no_decay_rule()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # a model may well have neither biases nor norms
        groups = param_groups(model, lr=config.learning_rate, weight_decay=config.weight_decay, rules=rules)
    if config.optimizer == "sgd":
        return _sgd(config, groups)
    if config.optimizer == "muon":
        filters, rest = split_filters(model, groups)
        if any(parameter.dim() == 2 for parameter in filters[0]["params"]):
            raise ConfigError(
                "--optimizer muon fixes the norm of what it trains, which is for convolutions that a norm follows; for "
                "this model take --optimizer muon-adamw"
            )
        return Muon(
            filters, lr=config.muon_learning_rate, momentum=config.muon_momentum, num_iterations=3, renormalize=True,
            auxiliary=_sgd(config, rest),
        )  # fmt: skip
    if config.optimizer == "muon-adamw":
        hidden, rest = split_filters(model, groups)
        return Muon(
            hidden, lr=config.muon_learning_rate, momentum=config.muon_momentum, weight_decay=config.weight_decay,
            auxiliary=_adamw(config, rest),
        )  # fmt: skip
    return _adamw(config, groups)


def _sgd(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.SGD:
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0,
        fused=_are_on_cuda(groups) or None,  # also what reads a learning rate on the device, in a captured graph
    )  # fmt: skip


def _adamw(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    on_cuda = _are_on_cuda(groups)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.momentum, config.beta2), fused=on_cuda or None,
        capturable=on_cuda and config.graphs,
    )  # fmt: skip


def _are_on_cuda(groups: list[dict[str, Any]]) -> bool:
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


def learning_rate_factor(config: TrainConfig, progress: float) -> float:
    """The learning rate as a fraction of its peak, at ``progress`` from 0 (start) to 1 (end of training).

    It rises linearly from ``config.first_learning_rate`` over ``config.warmup``, then falls as ``config.decay`` says to
    ``config.final_learning_rate``, which it reaches ``config.cooldown`` before the end. Progress counts epochs and not
    steps, so it stays right when epochs have unequal lengths.
    """
    if progress < config.warmup:
        return config.first_learning_rate + (1 - config.first_learning_rate) * progress / config.warmup
    after_peak = min(1.0, (progress - config.warmup) / max(1e-12, 1 - config.warmup - config.cooldown))
    height = {
        "linear": 1 - after_peak,
        "cosine": (1 + math.cos(math.pi * after_peak)) / 2,
        "constant": 1.0,
    }[config.decay]
    return config.final_learning_rate + (1 - config.final_learning_rate) * max(0.0, height)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's ``initial_lr`` by ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
