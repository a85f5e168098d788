"""Which epochs may be pruned, and how many steps they have."""

import math
from dataclasses import dataclass

from scrimp.errors import ConfigError

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Schedule:
    """Epochs from ``first_pruned`` up to, but not including, ``end_pruned`` may be pruned; all others are full.

    All in whole numbers, so that no float decides when pruning stops.
    """

    num_epochs: float
    first_pruned: int
    end_pruned: int

    @classmethod
    def of(cls, num_epochs: float, anneal: float, num_full_first: int) -> "Schedule":
        """The last ``anneal`` of the epochs is full: from epoch ``floor((1 - anneal) * num_epochs)`` on.

        Raises: ConfigError - an impossible value, or no epoch is left to prune.
        """
        if isinstance(num_epochs, bool) or not isinstance(num_epochs, int | float) or not 0 < num_epochs < math.inf:
            raise ConfigError(f"num_epochs is {num_epochs!r}; it has to be a positive number")
        if not 0 <= anneal < 1:
            raise ConfigError(f"anneal is {anneal!r}; it is a fraction of the epochs, in [0, 1)")
        if isinstance(num_full_first, bool) or not isinstance(num_full_first, int) or num_full_first < 0:
            raise ConfigError(f"num_full_first is {num_full_first!r}; it has to be an integer from 0")
        num_begun = math.ceil(num_epochs - _ROUNDING)
        end = num_begun if anneal == 0 else math.floor((1 - anneal) * num_epochs + _ROUNDING)
        if end <= num_full_first:
            raise ConfigError(
                f"with num_epochs={num_epochs:g} nothing could be pruned: the first {num_full_first} epoch(s) are "
                f"full, to learn the scores, and so is every epoch from number {end} on (anneal={anneal:g}). Train for "
                "more epochs, or leave the pruner out"
            )
        return cls(num_epochs, num_full_first, end)

    def is_full(self, epoch: int) -> bool:
        """Whether ``epoch`` visits every sample, each with weight 1."""
        return not self.first_pruned <= epoch < self.end_pruned

    @property
    def num_begun(self) -> int:
        """Epochs that are trained, the last of them perhaps in part."""
        return max(1, math.ceil(self.num_epochs - _ROUNDING))

    @property
    def num_pruned(self) -> int:
        """How many of those may be pruned."""
        return self.end_pruned - self.first_pruned

    def total_steps(self, steps_full: int, steps_pruned: int) -> int:
        """Steps of the whole run, given those of a full and of a pruned epoch; of a partial last epoch its part."""
        steps = [steps_full if self.is_full(epoch) else steps_pruned for epoch in range(self.num_begun)]
        fraction = self.num_epochs - (self.num_begun - 1)
        if fraction < 1 - _ROUNDING:
            steps[-1] = max(1, round(steps[-1] * fraction))
        return sum(steps)


def steps_of(num_visits: int, batch_size: int, world_size: int, *, drop_last: bool) -> int:
    """Steps that ``num_visits`` make, when every rank takes an equal share of them in batches of ``batch_size``."""
    share = num_visits // world_size
    return share // batch_size if drop_last else -(-share // batch_size)
