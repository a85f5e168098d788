"""What a loader hands out, and the contract of what it does to a batch on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's part of one step, on the loader's device."""

    index: Int64[Tensor, " batch"]
    """Which sample of the data set each row is."""
    inputs: Shaped[Tensor, "batch ..."]
    targets: Shaped[Tensor, "batch ..."] | None
    weights: Float[Tensor, " batch"] | None
    """The plan's weight of each visit; ``None`` if all are 1."""
    global_size: int
    """Rows of this step over all ranks. A mean over the global batch is the sum of the ranks' sums divided by this."""

    def __iter__(self) -> Iterator[Tensor | None]:
        """Unpacks as ``inputs, targets = batch``, as batches of a DataLoader do."""
        return iter((self.inputs, self.targets))


@runtime_checkable
class BatchTransform(Protocol):
    """A random change of samples (augmentation), split in two so that an epoch can be repeated from any step.

    ``draw`` makes every random choice of an epoch at once; ``apply`` is pure and works on any slice of it. Both handle
    whole tensors: no Python per sample, no host sync in ``apply``.
    """

    def draw(
        self, index: Int64[Tensor, " visits"], epoch: int, generator: torch.Generator
    ) -> Shaped[Tensor, "visits ..."] | None:
        """One row of choices per visit, on the CPU; ``None`` if there is nothing to choose.

        Args: index - the sample of each visit, in order, over all ranks. epoch - from 0.
            generator - a CPU generator of this transform and this epoch alone; the only source of randomness.
        """

    def apply(
        self, inputs: Shaped[Tensor, "batch ..."], drawn: Shaped[Tensor, "batch ..."] | None
    ) -> Shaped[Tensor, "batch ..."]:
        """The changed samples. ``drawn`` holds the rows of these samples, on the device of ``inputs``."""


def choose(drawn: Int64[Tensor, " batch"], num_choices: int) -> Int64[Tensor, " batch"]:
    """Map draws from ``draw_choices`` to 0 ... num_choices - 1, evenly, in exact integer arithmetic on any device."""
    return (drawn * num_choices) >> 31


def draw_choices(shape: tuple[int, ...], generator: torch.Generator) -> Int64[Tensor, "*shape"]:
    """31 random bits per entry, for choices among a number that only ``apply`` knows (the size of an image, say)."""
    return torch.randint(2**31, shape, generator=generator)
