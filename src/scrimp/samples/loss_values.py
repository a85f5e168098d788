"""Losses of every kind as one value per sample."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from scrimp.errors import DataError


class LossValues(NamedTuple):
    """``values`` average to the loss, with gradients; ``scores`` say how hard each sample is, without."""

    values: Float[Tensor, " batch"]
    scores: Float[Tensor, " batch"]


def loss_values(losses: Tensor | Mapping[str, Tensor], mask: Shaped[Tensor, "batch ..."] | None = None) -> LossValues:
    """One value per sample, whose mean over the batch is the loss.

    A tensor of shape (batch,) is taken as it is. Further axes (tokens, pixels) are averaged per sample. With a ``mask``
    of the same shape, what counts is the sum over valid entries divided by the number of valid entries in the *batch*;
    the score is the mean over a sample's own. The terms of a dict are added. Half precision is widened to float32.

    Raises: DataError - an already reduced loss, an empty dict, shapes that do not fit, integers.
    """
    if isinstance(losses, Mapping):
        return _sum_of_terms(losses, mask)
    _check(losses, mask, "losses")
    wide = losses.float() if losses.dtype in (torch.bfloat16, torch.float16) else losses
    if mask is not None:
        return _masked(wide, mask)
    values = wide if wide.ndim == 1 else wide.flatten(1).mean(1)
    return LossValues(values, values.detach())


def _masked(losses: Tensor, mask: Tensor) -> LossValues:
    weights = mask.to(losses.dtype)
    # not losses * weights: what is masked out may be infinite
    sums = torch.where(mask != 0, losses * weights, 0.0).flatten(1).sum(1)
    valid = weights.flatten(1).sum(1)
    batch_size, tiny = losses.shape[0], torch.finfo(losses.dtype).tiny
    return LossValues(sums * (batch_size / valid.sum().clamp(min=tiny)), sums.detach() / valid.clamp(min=tiny))


def _sum_of_terms(terms: Mapping[str, Tensor], mask: Tensor | None) -> LossValues:
    if not terms:
        raise DataError("losses is an empty dict; it has to hold at least one term of shape (batch, ...)")
    sizes = set()
    for name, term in terms.items():
        _check(term, mask, f"losses[{name!r}]")
        sizes.add(term.shape[0])
    if len(sizes) > 1:
        shapes = {name: tuple(term.shape) for name, term in terms.items()}
        raise DataError(f"the terms of the loss differ in their number of samples: {shapes}")
    parts = [loss_values(term, mask) for term in terms.values()]
    return LossValues(
        torch.stack([part.values for part in parts]).sum(0), torch.stack([part.scores for part in parts]).sum(0)
    )


def _check(losses: Tensor, mask: Tensor | None, what: str) -> None:
    if not isinstance(losses, Tensor):
        raise DataError(f"{what} is a {type(losses).__name__}; it has to be a tensor with one row per sample")
    if losses.ndim == 0:
        raise DataError(
            f"{what} is a single number, already reduced; each sample needs its own: give the loss function "
            "reduction='none'. A loss that couples the samples of a batch (contrastive, for example) cannot be split "
            "so, and samples cannot be pruned unbiasedly with it"
        )
    if losses.shape[0] == 0:
        raise DataError(f"{what} has shape {tuple(losses.shape)}: no samples")
    if not losses.is_floating_point():
        raise DataError(f"{what} is {losses.dtype}; a loss has to be floating-point")
    if mask is not None and mask.shape != losses.shape:
        raise DataError(f"the mask has shape {tuple(mask.shape)}, but {what} has {tuple(losses.shape)}")
