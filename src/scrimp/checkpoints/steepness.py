"""Where weights have finer steps: where their gradients are large, and a small error costs most.

An error costs the curvature of the loss times its square, and for equal bytes the sum costs least where errors go with
the inverse root of the curvature (Gish and Pierce, 1968). The root of the second moment of gradients is the measure
of it that is at hand: Adam divides by it as if it were that. So errors go with the inverse fourth root of the moment.
"""

import torch
from torch import Tensor

from scrimp.checkpoints.measure import BLOCK, compute_dtype, root

_FINEST = 2.0**-12  # of the ratio: steps are an eighth at least


def level_of(second_moment: Tensor, share: float) -> float | None:
    """The second moment from which on steps are finer: ``share`` of its mean; ``None`` if that is no number above 0."""
    flat = second_moment.reshape(-1)
    total = sum(float(part.double().sum()) for part in flat.split(BLOCK))  # no copy in float64 of all of it
    level = float(torch.tensor(share * total / max(1, len(flat)), dtype=compute_dtype(second_moment.dtype)))
    return level if 0 < level < float("inf") else None


def fineness(second_moment: Tensor, level: float) -> Tensor:
    """The size of steps, from 1/8 to 1: the fourth root of ``level`` over the second moment.

    Divisions and roots are rounded alike on every machine, so that decoders find the same steps.
    """
    ratio = torch.tensor(level, dtype=second_moment.dtype) / second_moment
    return root(root(ratio.clamp_(_FINEST, 1.0).nan_to_num_(1.0)))
