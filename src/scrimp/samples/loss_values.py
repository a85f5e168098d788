"""Losses of every kind as one value per sample."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from scrimp.errors import DataError

_SHAPES_ONLY = (
    "View",
    "Unsafe",
    "Reshape",
    "Alias",
    "Transpose",
    "Permute",
    "TBackward",
    "ToCopy",
    "Slice",
    "Squeeze",
    "Clone",
)
_NO_LOSS = ("Addmm", "Addbmm", "Baddbmm", "Mm", "Bmm", "Linear", "Convolution", "LogSoftmax", "Softmax", "Sigmoid")


class LossValues(NamedTuple):
    """``values`` carry the gradients; ``scores``, without, say how hard each sample is."""

    values: Float[Tensor, " batch"]
    scores: Float[Tensor, " batch"]
    num_valid: Float[Tensor, " batch"] | None = None
    """With a mask ``values`` are sums, over so many valid entries each."""


def loss_values(losses: Tensor | Mapping[str, Tensor], mask: Shaped[Tensor, "batch ..."] | None = None) -> LossValues:
    """One value per sample.

    A tensor of shape (batch,) is taken as it is. Further axes (tokens, pixels) are averaged per sample. With a ``mask``
    of the same shape they are summed over valid entries, which are counted; the score is the mean over a sample's own.
    The terms of a dict are added. Half precision is widened to float32.

    Raises: DataError - an already reduced loss, an empty dict, shapes that do not fit, integers, or what a layer gave
        in the place of a loss.
    """
    if isinstance(losses, Mapping):
        return _sum_of_terms(losses, mask)
    _check(losses, mask, "losses")
    wide = losses.float() if losses.dtype in (torch.bfloat16, torch.float16) else losses
    if mask is not None:
        return _masked(wide, mask)
    values = wide if wide.ndim == 1 else wide.flatten(1).mean(1)
    return LossValues(values, values.detach())


def weighted_mean(
    of: LossValues, weights: Float[Tensor, " batch"] | None, valid_per_sample: float | None
) -> Float[Tensor, ""]:
    """The mean over the batch of values times weights; with a mask the mean over valid entries.

    Then the weighted sum is divided by the weighted number of valid entries, so that numerator and denominator both
    stand for the whole data set; or, given ``valid_per_sample``, by that times the batch size.
    """
    values, num_valid = of.values, of.num_valid
    if weights is not None:
        weights = weights if values.dtype is weights.dtype else weights.to(values.dtype)
        values = values * weights
    if num_valid is None:
        return values.mean()
    if valid_per_sample is not None:
        return values.mean() / valid_per_sample
    total = num_valid.sum() if weights is None else (num_valid * weights).sum()
    return values.sum() / total.clamp(min=torch.finfo(values.dtype).tiny)


def _masked(losses: Tensor, mask: Tensor) -> LossValues:
    weights = mask.to(losses.dtype)
    # not losses * weights: what is masked out may be infinite
    sums = torch.where(mask != 0, losses * weights, 0.0).flatten(1).sum(1)
    valid = weights.flatten(1).sum(1)
    return LossValues(sums, sums.detach() / valid.clamp(min=torch.finfo(losses.dtype).tiny), valid)


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
        torch.stack([part.values for part in parts]).sum(0),
        torch.stack([part.scores for part in parts]).sum(0),
        parts[0].num_valid,
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
    if losses.ndim > 1 and losses.shape[1] > 1 and (layer := _layer_of(losses)) is not None:
        raise DataError(
            f"{what} of shape {tuple(losses.shape)} is what a layer gave ({layer}), such as logits, and no loss. Give "
            "what the loss function returns: F.cross_entropy(logits, targets, reduction='none') for classes, "
            "F.cross_entropy(logits.transpose(1, 2), tokens, reduction='none') for logits of shape (batch, tokens, "
            "classes)"
        )


def _layer_of(losses: Tensor) -> str | None:
    """The operation of a layer that made ``losses``, as autograd remembers it, if nothing but views lies between."""
    node: Any = losses.grad_fn
    while node is not None and type(node).__name__.startswith(_SHAPES_ONLY) and node.next_functions:
        node = node.next_functions[0][0]
    name = type(node).__name__
    return name if name.startswith(_NO_LOSS) else None
