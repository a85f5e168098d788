"""Convolutions that start by passing their input on."""

import warnings
from collections.abc import Callable

from torch import nn

from scrimp.errors import NoEffectWarning


def passes_its_input_on(name: str, conv: nn.Conv2d) -> bool:
    """Whether an identity fits: no groups, stride 1, as many pixels out as in, odd and larger than 1 x 1, trainable."""
    del name
    same = all(
        size > 1 and size % 2 == 1 and (conv.padding == "same" or 2 * int(padding) == dilation * (size - 1))
        for size, padding, dilation in zip(
            conv.kernel_size, (0, 0) if isinstance(conv.padding, str) else conv.padding, conv.dilation, strict=True
        )
    )
    return same and conv.groups == 1 and conv.stride == (1, 1) and conv.weight.requires_grad


def dirac_init_(model: nn.Module, chosen: Callable[[str, nn.Conv2d], bool] = passes_its_input_on) -> int:
    """Let the first filters of each chosen convolution start as the identity, one for each input channel.

    Further filters keep the values that they have; with fewer filters than input channels, each passes on one. Gives a
    plain stack of convolutions the start that residual connections give; in a network that has those, a branch would
    start by doubling its input, so choose the convolutions outside of them.

    Args: model - changed in place. chosen - by qualified name and module.
    Returns: how many convolutions were changed; called again on an untrained model it changes nothing.
    Warns: NoEffectWarning - no convolution chosen.
    Source: K. Jordan, arXiv 2404.00498, section 3; the identity initialisation of Zagoruyko and Komodakis (DiracNets).
    """
    convs = [conv for name, conv in model.named_modules() if isinstance(conv, nn.Conv2d) and chosen(name, conv)]
    for conv in convs:
        nn.init.dirac_(conv.weight.data[: conv.in_channels])
    if not convs:
        warnings.warn(
            f"dirac_init_ found no trainable convolution in {type(model).__name__} that could pass its input on "
            "(stride 1, padding 'same', odd kernel, no groups)",
            NoEffectWarning,
            stacklevel=2,
        )
    return len(convs)
