"""Running averages of the weights in a run: one to go on from every few steps, or one to judge and keep."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from scrimp import bits
from scrimp.errors import ConfigError
from scrimp.steps import WeightAverage
from scrimp.train.config import TrainConfig
from scrimp.train.job import Seams

_EVERY = 5  # steps
_DECAY = 0.95  # of Lookahead, per step at the end; it rises with the cube of the time, so the start is not held back


def with_average(config: TrainConfig, seams: Seams, model: nn.Module) -> tuple[Seams, WeightAverage | None]:
    """``seams`` that also keep the average that ``config`` asks for, and that average.

    With ``lookahead`` training goes on from the average every five steps and ends on it; with ``ema`` the average is
    judged, and is the model at the end. The decay of Lookahead follows the progress of training in epochs, so that it
    reaches its end with any number of steps, known beforehand or not. Raises: ConfigError - both are asked for.

    Cost: a copy of the model, one pass over it every five steps.
    Source: K. Jordan, airbench (arXiv 2404.00498), from Zhang et al., "Lookahead Optimizer" (arXiv 1907.08610);
        D. Page, "Bag of Tricks", for the average that is judged. airbench's decay follows the number of steps done.
    """
    if not config.lookahead and config.ema is None:
        return seams, None
    if config.lookahead and config.ema is not None:
        raise ConfigError("--lookahead goes on from an average of the weights and --ema keeps one; choose one of them")
    progress = 0.0  # in the middle of the present step

    def before_step(now: float) -> None:
        nonlocal progress
        progress = now

    decay: float | Callable[[int], float] = config.ema or (lambda _: _DECAY**_EVERY * progress**3)
    average = WeightAverage(model, decay=decay, every=_EVERY, copy_back=config.lookahead)

    def after_step(_: int) -> None:
        if config.compress:
            copy_bits_(model, average)
        average.update()

    added = dataclasses.replace(
        seams,
        before_step=(*seams.before_step, before_step),
        after_step=(*seams.after_step, after_step),
        at_end=(*seams.at_end, average.copy_to_model),
        state={**seams.state, "lookahead" if config.lookahead else "ema": average},
    )
    return added, average


@torch.no_grad()
def copy_bits_(model: nn.Module, average: WeightAverage) -> None:
    """Give the average the bits and exponents of the model, so that they are never averaged.

    They decide which channels there are and how large the model is: what is judged and kept has to have those that
    removal and the target size go by.
    """
    averages, tensors = average.named_tensors(), dict(model.named_parameters())
    for layer in bits.quantized_layers(model).values():
        for name in layer.parameter_names:
            averages[name].copy_(tensors[name])
