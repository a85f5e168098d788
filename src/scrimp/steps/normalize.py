"""Bytes to numbers of mean 0 and deviation 1, at the last moment: the data set stays uint8 in memory."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from scrimp.errors import ConfigError, DataError


@dataclass(frozen=True)
class Normalize:
    """``(x - mean) / std`` per channel, where x is in [0, 1]: uint8 inputs count as 255ths, float inputs as they are.

    Args: mean, std - one number per channel, in [0, 1]. dtype - of the result. channels_last - whether images come out
        in channels_last memory, which is the faster one for convolutions on CPUs and with tensor cores.
    Raises: ConfigError - mean and std differ in length, or std is not positive. From ``apply``: DataError - other
        channels, or a dtype that is neither uint8 nor floating.
    Cost: reads a byte and writes one number per value; computed in float32 and rounded once. No host sync after
        the first batch on a device.
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"Normalize: {len(self.mean)} means and {len(self.std)} stds; give one of each per channel"
            )
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"Normalize: std is {self.std}; each has to be above 0 (is a channel constant?)")
        if not self.dtype.is_floating_point:
            raise ConfigError(f"Normalize: dtype is {self.dtype}; it has to be a floating type")

    def draw(self, index: Int64[Tensor, " visits"], epoch: int, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def apply(
        self, inputs: Shaped[Tensor, "batch channels height width"], drawn: Tensor | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """The normalised images. ``drawn`` is not used, so that this also serves for evaluation."""
        del drawn
        if inputs.ndim != 4 or inputs.shape[1] != len(self.mean):
            raise DataError(
                f"Normalize with {len(self.mean)} means works on images (batch, {len(self.mean)}, height, width); "
                f"got {tuple(inputs.shape)}"
            )
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            raise DataError(f"Normalize works on uint8 or floating images; got {inputs.dtype}")
        full_scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), full_scale, inputs.device)
        if not self.channels_last:
            images = inputs.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            return images.mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1)).to(self.dtype)
        # Over whole rows of pixels: broadcasting along an innermost axis of three is eight times slower on a CPU.
        batch, channels, height, width = inputs.shape
        rows = inputs.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, width * channels)
        images = rows.to(torch.float32, copy=True).mul_(scale.repeat(width)).add_(shift.repeat(width)).to(self.dtype)
        return images.view(batch, height, width, channels).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], full_scale: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """x * scale + shift is the same as (x / full_scale - mean) / std. Kept per device: a copy to it is a host sync."""
    scale = [1 / (full_scale * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):
        both = torch.tensor([scale, shift], dtype=torch.float64).to(device=device, dtype=torch.float32)
    return both[0], both[1]
