"""Cutout: a square of each image is blanked."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from scrimp.errors import ConfigError, DataError
from scrimp.steps.batch import choose, draw_choices
from scrimp.steps.memory_format import is_channels_last, pixel_index


@dataclass(frozen=True)
class Cutout:
    """Set a ``size`` x ``size`` square of each image to ``fill``; each sample draws its own place.

    The square lies wholly inside the image, every place with the same chance.

    Args: size - pixels. fill - in the units of the inputs at this point: 0 is black before ``Normalize`` and the mean
        colour after it, which is the usual choice.
    Raises: ConfigError - the size is not a positive integer. From ``apply``: DataError - not images, or smaller ones.
    Cost: a fraction of ``RandomCrop``'s. Any dtype, any device; the memory format is kept; no host sync.
    Source: DeVries and Taylor, arXiv 1708.04552. There the square's centre is uniform over the image and the square is
        clipped at the border; inside the image is Page's version, which removes the same number of pixels each time.
    """

    size: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"Cutout: size is {self.size!r}; it has to be a positive number of pixels")

    def draw(
        self, index: Int64[Tensor, " visits"], epoch: int, generator: torch.Generator
    ) -> Int64[Tensor, "visits 2"]:
        """Random bits for the row and the column of each square."""
        del epoch
        return draw_choices((index.numel(), 2), generator)

    def apply(
        self, inputs: Shaped[Tensor, "batch channels height width"], drawn: Int64[Tensor, "batch 2"] | None
    ) -> Shaped[Tensor, "batch channels height width"]:
        """The images with their squares blanked."""
        assert drawn is not None
        if inputs.ndim != 4 or min(inputs.shape[2:]) < self.size:
            raise DataError(
                f"Cutout({self.size}) works on images (batch, channels, height, width) of at least {self.size} pixels "
                f"each way; got {tuple(inputs.shape)}"
            )
        height, width = inputs.shape[2:]
        pixel = pixel_index(self._covered(drawn[:, 0], height), self._covered(drawn[:, 1], width), height, width)
        return _filled(inputs, pixel, self.fill)

    def _covered(self, bits: Int64[Tensor, " batch"], length: int) -> Int64[Tensor, "batch size"]:
        """Along one axis: the pixels that the square covers."""
        first = choose(bits, length - self.size + 1)
        return first[:, None] + torch.arange(self.size, device=bits.device)


def _filled(inputs: Tensor, pixel: Int[Tensor, "batch size size"], fill: float) -> Tensor:
    """A copy of ``inputs``, in its memory format, with all channels of some pixels set to ``fill``."""
    batch, channels, height, width = inputs.shape
    if is_channels_last(inputs):
        flat = inputs.permute(0, 2, 3, 1).reshape(-1, channels).clone()
        flat.index_fill_(0, pixel.view(-1).long(), fill)
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    image = torch.arange(batch, device=pixel.device)[:, None, None] * ((channels - 1) * height * width)
    channel = torch.arange(channels, device=pixel.device)[:, None, None, None] * (height * width)
    flat = inputs.reshape(-1).clone()
    flat.index_fill_(0, (pixel + image + channel).view(-1), fill)
    return flat.view_as(inputs)
