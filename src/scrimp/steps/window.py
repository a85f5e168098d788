"""Windows into rows of tokens: what a random crop is to images."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from scrimp.errors import ConfigError, DataError
from scrimp.steps.batch import choose, draw_choices


@dataclass(frozen=True)
class RandomWindow:
    """Cut ``length`` consecutive tokens out of each row, from an offset that each sample draws anew in each epoch.

    With a text cut into rows that are longer than a window, a model does not meet the same windows every epoch.

    Args: length - tokens per window; a language model that learns to predict the next token wants its context plus one.
    Raises: ConfigError - the length is not a positive integer. From ``apply``: DataError - no rows of integers, or
        shorter ones.
    Cost: one gather; 8 bytes per token of the batch. No host sync.
    """

    length: int

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ConfigError(f"RandomWindow: length is {self.length!r}; it has to be a positive number of tokens")

    def draw(self, index: Int64[Tensor, " visits"], epoch: int, generator: torch.Generator) -> Int64[Tensor, " visits"]:
        """Random bits for the offset of each window."""
        del epoch
        return draw_choices((index.numel(),), generator)

    def apply(
        self, inputs: Shaped[Tensor, "batch tokens"], drawn: Int64[Tensor, " batch"] | None
    ) -> Int64[Tensor, "batch length"]:
        """The windows, as int64 whatever the tokens were stored as."""
        assert drawn is not None
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.shape[1] < self.length:
            raise DataError(
                f"RandomWindow({self.length}) works on rows of at least {self.length} integer tokens; "
                f"got {tuple(inputs.shape)} of {inputs.dtype}"
            )
        first = choose(drawn, inputs.shape[1] - self.length + 1)
        return inputs.gather(1, first[:, None] + torch.arange(self.length, device=drawn.device)).to(torch.int64)
