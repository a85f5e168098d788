"""The size of a model as a term of the loss."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrimp.bits.layers import QuantizedLayer
from scrimp.bits.size_plan import Objective, SizePlan, size_plan
from scrimp.errors import ConfigError


def size_penalty(model: nn.Module, *, objective: Objective = Objective.BITS, push: float = 1.0) -> Float[Tensor, ""]:
    """The paper's Q: what the model's bits cost, to be added to the loss times gamma. Differentiable in the bits.

    Each layer counts its weights' bits once from its outputs (bits of a channel, times the live inputs) and once from
    its inputs (bits of the channel that feeds an input, times the live outputs), so that a channel is also charged for
    the weights that only read it. Their sum is divided by the number of quantised weights that the model had at the
    start; it is about twice the bits that are left for each of those, and is never to be shown as a size: that is
    ``scrimp.size_report``. Where several layers are added, each pays an equal part of what reads the sum.

    To it comes the push: a channel of zero bits still gives a constant, its bias, as long as that is not zero (or, if
    a ReLU follows, not positive), and cannot be removed. ``push`` times the sum of these constants is added; 0 leaves
    them to the task.

    ``model`` may be wrapped. Cost: some thirty small operations, however many layers; no host sync; no collective.
    Raises: ConfigError - nothing in the model is quantised. StructureError - it was given another structure, and not
    its wiring. Source: arXiv 2301.13142, section on the size loss; the
    one-sided push before a ReLU, and sharing at additions, are ours.
    """
    plan = size_plan(model, objective)
    if plan is None:
        raise ConfigError("size_penalty: no layer of the model learns its bits; call scrimp.self_compress_ first")
    bits = torch.cat([_priced_bits(layer) for layer in plan.layers])
    is_live = bits.detach() > 0
    total = (plan.prices(is_live).to(bits.dtype) * bits).sum() / plan.original_size
    if push and plan.constants:
        total = total + push * _constants_of_the_dead(plan, is_live)
    return total


def _priced_bits(layer: QuantizedLayer) -> Tensor:
    """The bits with a gradient where they can still fall. Above 16 they cost on, or they would never come back."""
    bits, _ = layer.quantizer.learned()
    least = layer.quantizer.least_bits
    if least:
        return torch.relu(bits - least) + least
    return torch.where(bits > layer.quantizer.bits_of_nothing, bits, 0.0)


def _constants_of_the_dead(plan: SizePlan, is_live: Tensor) -> Tensor:
    constants = torch.cat([constant.to(torch.float32) for constant in plan.constants])
    size = torch.where(plan.is_hinge, torch.relu(constants), constants.abs())
    return (size * ~is_live[plan.constant_channels]).sum()
