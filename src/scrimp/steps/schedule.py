"""Schedules as values, and SGD's settings in units that survive a change of batch size."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from scrimp.errors import ConfigError


@dataclass(frozen=True)
class PiecewiseLinear:
    """A function of the step (or epoch) through the points ``(knots[i], values[i])``, straight between them.

    Constant before the first knot and after the last. Serves as the function of ``torch.optim.lr_scheduler.LambdaLR``,
    which multiplies each group's own learning rate by it.

    Example::

        PiecewiseLinear([0, 0.2 * steps, steps - 194], [0, 1, 0.1])    # Page's last schedule: rise, fall, stay at 0.1

    Raises: ConfigError - unequal or no numbers, knots that do not ascend, something not finite.
    Source: D. Page's ``PiecewiseLinear`` (numpy.interp).
    """

    knots: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple(float(knot) for knot in self.knots))
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if not self.knots or len(self.knots) != len(self.values):
            raise ConfigError(f"PiecewiseLinear: {len(self.knots)} knots and {len(self.values)} values; give one each")
        if not all(map(math.isfinite, (*self.knots, *self.values))):
            raise ConfigError(f"PiecewiseLinear: knots {self.knots} and values {self.values} have to be finite")
        if any(after <= before for before, after in zip(self.knots, self.knots[1:], strict=False)):
            raise ConfigError(f"PiecewiseLinear: knots are {self.knots}; they have to ascend")

    def __call__(self, step: float) -> float:
        """The value at ``step``."""
        right = bisect_right(self.knots, step)
        if right == 0:
            return self.values[0]
        if right == len(self.knots):
            return self.values[-1]
        begin, end = self.knots[right - 1], self.knots[right]
        part = (step - begin) / (end - begin)
        return self.values[right - 1] * (1 - part) + self.values[right] * part


@dataclass(frozen=True)
class SGDSettings:
    """``lr`` and ``weight_decay`` of torch's SGD, for a loss that is the **mean** over the batch."""

    lr: float
    weight_decay: float


def decoupled_sgd(learning_rate: float, weight_decay: float, *, momentum: float, batch_size: int) -> SGDSettings:
    """Settings of torch's SGD from a learning rate and a decay *per 1024 examples* that do not depend on each other.

    ``learning_rate`` is how far 1024 examples move the weights per unit of their mean gradient once momentum has played
    out; ``weight_decay`` is the fraction of the weights that decays meanwhile. Both then keep their meaning when batch
    size, momentum or the other of the two changes, which torch's own do not::

        lr = learning_rate * batch_size / (1024 * (1 + 1 / (1 - momentum)))
        weight_decay = weight_decay / learning_rate

    Raises: ConfigError - a learning rate or batch size that is not positive, a negative decay, momentum outside [0, 1).
    Source: K. Jordan's airbench94, which takes the sum of the losses: there lr is divided by the batch size and
        weight_decay multiplied by it, for the same steps.
    """
    if not (learning_rate > 0 and weight_decay >= 0 and 0 <= momentum < 1 and batch_size >= 1):
        raise ConfigError(
            f"decoupled_sgd: learning_rate {learning_rate}, weight_decay {weight_decay}, momentum {momentum}, "
            f"batch_size {batch_size}; learning rate and batch size have to be positive, the decay not negative, and "
            "momentum at least 0 and below 1"
        )
    lr = learning_rate * batch_size / (1024 * (1 + 1 / (1 - momentum)))
    return SGDSettings(lr=lr, weight_decay=weight_decay / learning_rate)
