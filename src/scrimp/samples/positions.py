"""A pruner as torchdata's StatefulDataLoader wants its sampler: one whose iterator has a state."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from scrimp.samples.handout import Handout


class PositionSampler(Sampler[int]):
    """Hands out what a pruner's own iterator does; made by ``SamplePruner.positions``.

    A StatefulDataLoader saves the state of its sampler's iterator for every batch, ahead of the training where it has
    workers. Here that state is empty, and costs nothing: where to go on follows from the pruner's own state, which
    knows the visits that were trained. Save both, and load the pruner's before the loader is iterated.
    """

    def __init__(self, pruner: Sized, begin_pass: Callable[[], Handout]) -> None:
        self._pruner, self._begin_pass = pruner, begin_pass

    def __len__(self) -> int:
        return len(self._pruner)

    def __iter__(self) -> "PositionIterator":
        return PositionIterator(self._begin_pass())


class PositionIterator(Iterator[int]):
    """One pass."""

    def __init__(self, handout: Handout) -> None:
        self._indices = handout.hand_out(saves_state=False)

    def __next__(self) -> int:
        return next(self._indices)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
