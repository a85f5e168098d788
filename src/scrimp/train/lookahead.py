"""Training that goes on from a running average of the weights every few steps."""

import dataclasses

from torch import nn

from scrimp.steps import WeightAverage
from scrimp.train.job import Seams

_EVERY = 5  # steps
_DECAY = 0.95  # per step at the end; it rises with the cube of the time, so that the start is not held back


def with_lookahead(seams: Seams, model: nn.Module, num_steps: int) -> Seams:
    """``seams`` that also average the weights over the last steps, go on from the average and end on it.

    Cost: a copy of the model, one pass over it every five steps.
    Source: K. Jordan, airbench (arXiv 2404.00498), from Zhang et al., "Lookahead Optimizer" (arXiv 1907.08610).
    """
    average = WeightAverage(
        model, decay=lambda step: _DECAY**_EVERY * min(1.0, step / num_steps) ** 3, every=_EVERY, copy_back=True
    )

    def after_step(step: int) -> None:
        average.update()
        if step == num_steps:
            average.copy_to_model()

    return dataclasses.replace(
        seams, after_step=(*seams.after_step, after_step), state={**seams.state, "lookahead": average}
    )
