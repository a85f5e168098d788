"""The changes of a model that the settings of a run ask for, in the order in which they go together."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrimp.errors import ConfigError
from scrimp.steps import (
    EarlyFreeze,
    Normalize,
    freeze_bn_scale_,
    ghost_batch_norm_,
    pool_early_,
    replace_activation_,
    whiten_input_,
)
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset
from scrimp.train.job import Seams

_NUM_WHITENED = 5000  # images: more change the filters by less than a percent


def change_model_(
    config: TrainConfig, model: nn.Module, images: Float[Tensor, "samples channels height width"] | None
) -> nn.Conv2d | None:
    """Give a model that was just built the structure of ``config``; returns the whitening convolution if there is one.

    ``images``, normalised, decide the whitening filters; any will do when weights are loaded afterwards. Structure
    comes before values, and all of it before what holds parameters: optimizers, averages, wrappers.
    """
    if config.pool_early != "no":
        pool_early_(model, before_norm=config.pool_early == "norm")
    if config.celu is not None:
        alpha = config.celu
        replace_activation_(model, lambda _old: nn.CELU(alpha))
    if config.ghost_batch is not None:
        ghost_batch_norm_(model, config.ghost_batch)
    if config.freeze_bn_scale:
        freeze_bn_scale_(model)
    if not config.whiten:
        return None
    assert images is not None
    return whiten_input_(model, images, epsilon=config.whiten_epsilon, prepend=True, seed=config.seed)


def images_to_whiten(config: TrainConfig, dataset: Dataset) -> Tensor | None:
    """The normalised training images whose patches decide the whitening filters; ``None`` if ``config`` has none."""
    if not config.whiten:
        return None
    return Normalize(dataset.mean, dataset.std).apply(dataset.train.inputs[:_NUM_WHITENED], None)


def with_bias_freeze(
    config: TrainConfig, seams: Seams, optimizer: torch.optim.Optimizer, whitening: nn.Conv2d | None
) -> tuple[Seams, EarlyFreeze | None]:
    """``seams`` that freeze the bias behind the whitening filters after as many epochs as ``config`` says, if it does.

    Epochs are those of this run: pruned ones are short, and count as one. Raises: ConfigError - there is no such bias.
    """
    num_epochs = config.whiten_bias_epochs
    if whitening is None or num_epochs is None:
        return seams, None
    bias = [parameter for name, parameter in whitening.named_parameters() if name == "bias"]
    if not bias:
        raise ConfigError(
            "--whiten-bias-epochs: the whitening convolution of this model has no bias to freeze; leave the flag out"
        )
    freeze = EarlyFreeze(optimizer, bias, stop_backward=True)
    was_frozen = False

    def before_step(progress: float) -> None:
        if progress * config.num_epochs >= num_epochs:
            freeze.freeze()

    def has_changed() -> bool:
        nonlocal was_frozen
        is_new, was_frozen = freeze.is_frozen and not was_frozen, freeze.is_frozen  # a parameter less has a gradient
        return seams.has_changed() or is_new

    added = dataclasses.replace(
        seams, before_step=(*seams.before_step, before_step), has_changed=has_changed,
        state={**seams.state, "whitening_bias": freeze},
    )  # fmt: skip
    return added, freeze


def whitening_facts(conv: nn.Conv2d, epsilon: float) -> dict[str, Any]:
    """For the record: the filters (without those of the other sign) and the eigenvalues of their patch components."""
    size = conv.weight[0].numel()
    filters = conv.weight.detach()[:size].double().cpu()
    # a filter is a unit vector divided by the root of eigenvalue + epsilon
    eigenvalues = 1 / filters.flatten(1).square().sum(dim=1) - epsilon
    rounded = [float(f"{value:.6g}") for value in eigenvalues.clamp(min=0).tolist()]
    return {"filters": filters.mul(1e5).round().div(1e5).tolist(), "eigenvalues": rounded}
