"""Input whitening: a frozen first convolution whose outputs are uncorrelated and of equal size from the start."""

from collections import OrderedDict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.steps.module_tree import slots_of

_PATCHES_AT_A_TIME = 1_000_000


def whiten_input_(
    model: nn.Module,
    images: Float[Tensor, "samples channels height width"],
    *,
    epsilon: float = 5e-4,
    prepend: bool = False,
    seed: int = 0,
) -> nn.Conv2d:
    """Give the model's first convolution the whitening filters of the patches of ``images`` and freeze its weight.

    The convolution needs as many filters as a patch has values, ``k = channels * kernel height * kernel width``, or
    twice as many: then the second half is the first with the sign turned, for the activation that follows. Its bias,
    if it has one, stays trainable. Filters are ordered from the patch component that varies most, and signed so that
    their largest entry is positive, so that the same images always give the same filters.

    With ``prepend`` the first convolution may have any number of filters. Unless it has one of those two, it is
    replaced by a sequence of ``whitening``, a frozen one of k filters with its kernel size, stride and padding, and
    ``mix``, a fresh trainable 1x1 with its filters and bias. Do that before an optimizer is made.

    Args: model - changed in place; the whitening convolution is returned. images - normalised as the model sees them,
        not augmented; a few thousand are enough. epsilon - added to the variances, so that flat directions stay small.
        seed - of the weights of ``mix``.
    Raises: ConfigError - no 2-D convolution, a lazy, grouped or dilated one, or another number of filters; an epsilon
        that is negative. DataError - images as integers, of other channels, smaller than a patch, not finite, or so
        flat that an epsilon of 0 leaves a filter without bound. The model is then unchanged.
    Cost: one pass over the images' patches in float64 and an eigendecomposition of k x k. Called again, it does the
        same again.
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks" (``prepend``, epsilon 1e-2); 2x2 with both signs is
        K. Jordan's (arXiv 2404.00498).
    """
    conv = _first_convolution(model)
    if is_lazy(conv.weight):
        raise ConfigError("whiten_input_: the first convolution is lazy; run the model once on a batch first")
    patch_size = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    if conv.groups != 1 or conv.dilation != (1, 1):
        raise ConfigError(
            f"whiten_input_ needs a first convolution without groups and dilation; this one has groups={conv.groups}, "
            f"dilation={conv.dilation}. Put a plain one before it"
        )
    fits = conv.out_channels in (patch_size, 2 * patch_size)
    if not fits and not prepend:
        raise ConfigError(
            f"the first convolution has {conv.out_channels} filters; whitening {conv.in_channels}-channel patches of "
            f"{conv.kernel_size[0]} x {conv.kernel_size[1]} needs {patch_size}, or {2 * patch_size} with both signs; "
            "prepend=True puts a convolution of its own in front"
        )
    if not fits and conv is model:
        raise ConfigError(
            "whiten_input_: the model is itself a convolution and cannot be replaced; put it in a Sequential"
        )
    filters = whitening_filters(images, (conv.kernel_size[0], conv.kernel_size[1]), epsilon=epsilon)
    if filters.shape[1] != conv.in_channels:
        raise DataError(f"images have {filters.shape[1]} channels, the first convolution takes {conv.in_channels}")
    if not fits:
        conv = _prepend(model, conv, patch_size, seed)
    elif conv.out_channels == 2 * patch_size:
        filters = torch.cat([filters, -filters])
    with torch.no_grad():
        conv.weight.copy_(filters)
    conv.weight.requires_grad_(False)
    conv.weight.grad = None
    return conv


def _prepend(model: nn.Module, conv: nn.Conv2d, patch_size: int, seed: int) -> nn.Conv2d:
    """Replace ``conv`` by a convolution of ``patch_size`` filters and a 1x1 one; the former is returned."""
    like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    has_bias = conv.bias is not None
    whitening = nn.utils.skip_init(
        nn.Conv2d, conv.in_channels, patch_size, conv.kernel_size, conv.stride, conv.padding, bias=False,
        padding_mode=conv.padding_mode, **like,
    )  # fmt: skip
    mix = nn.utils.skip_init(nn.Conv2d, patch_size, conv.out_channels, 1, bias=has_bias, **like)
    bound, draws = patch_size**-0.5, generator(seed, "whitening mix")
    with torch.no_grad():  # as torch initialises convolutions, but from a stream of its own
        for parameter in mix.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=draws) * 2 - 1) * bound)
    both = nn.Sequential(OrderedDict(whitening=whitening, mix=mix)).train(conv.training)
    if conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous():
        both.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parent, name in slots_of(model, conv):
        setattr(parent, name, both)
    result: nn.Conv2d = whitening
    return result


def whitening_filters(
    images: Float[Tensor, "samples channels height width"], kernel_size: tuple[int, int], *, epsilon: float = 5e-4
) -> Float[Tensor, "patch channels kernel_height kernel_width"]:
    """The eigenvectors of the patches' second moment, each divided by the root of its eigenvalue plus ``epsilon``.

    A convolution with them turns patches into ``k`` values whose second moment is the identity (but for ``epsilon``).

    Raises: ConfigError - a negative epsilon. DataError - no images, images as integers or smaller than a patch, values
        that are not finite, or an epsilon of 0 with patches that have a flat direction.
    """
    if not 0 <= epsilon < float("inf"):
        raise ConfigError(f"whitening: epsilon is {epsilon}; it has to be a number from 0 on")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        told = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise DataError(
            f"whitening takes images as floating-point tensors, normalised as the model sees them; got {told} (see "
            "Normalize)"
        )
    if (
        images.ndim != 4
        or images.shape[0] == 0
        or any(a < b for a, b in zip(images.shape[2:], kernel_size, strict=True))
    ):
        raise DataError(f"whitening takes images of at least {kernel_size} pixels; got shape {tuple(images.shape)}")
    channels, (rows, columns) = images.shape[1], kernel_size
    size = channels * rows * columns
    per_image = (images.shape[2] - rows + 1) * (images.shape[3] - columns + 1)
    moment = torch.zeros(size, size, dtype=torch.float64)
    for chunk in images.split(max(1, _PATCHES_AT_A_TIME // per_image)):
        patches = chunk.double().unfold(2, rows, 1).unfold(3, columns, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
        moment += (patches.T @ patches).cpu()
    moment /= per_image * len(images)
    if not torch.isfinite(moment).all():
        raise DataError("whitening met pixels that are NaN or infinite")
    values, vectors = torch.linalg.eigh(moment)
    values, filters = values.flip(0), vectors.flip(1).T
    largest = filters.gather(1, filters.abs().argmax(dim=1, keepdim=True))
    filters = filters * largest.sign() / (values.clamp(min=0) + epsilon).sqrt()[:, None]
    shaped: Tensor = filters.reshape(size, channels, rows, columns).float()
    if not torch.isfinite(shaped).all():
        raise DataError(
            f"whitening: the smallest variance of a patch component is {float(values[-1]):.3g} and epsilon is "
            f"{epsilon}, so that its filter has no bound; give an epsilon above 0, such as 5e-4"
        )
    return shaped


def _first_convolution(model: nn.Module) -> nn.Conv2d:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module
    raise ConfigError("whiten_input_ found no Conv2d in the model")
