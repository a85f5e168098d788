"""Images by pixel, in either memory format."""

import torch
from jaxtyping import Int, Int64
from torch import Tensor


def is_channels_last(inputs: Tensor) -> bool:
    """Whether the channels of 4-D ``inputs`` lie side by side in memory, and not the pixels."""
    return inputs.ndim == 4 and not inputs.is_contiguous() and inputs.is_contiguous(memory_format=torch.channels_last)


def select_samples(inputs: Tensor, index: Int64[Tensor, " batch"]) -> Tensor:
    """Samples by index, in their memory format; a plain index_select would make channels_last images contiguous."""
    if is_channels_last(inputs):
        return inputs.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return inputs.index_select(0, index)


def pixel_index(
    rows: Int64[Tensor, "batch height"], columns: Int64[Tensor, "batch width"], image_height: int, image_width: int
) -> Int[Tensor, "batch height width"]:
    """The number of each pixel if those of the whole batch are counted image by image and row by row.

    As int32 where that suffices: on a CPU the index costs as much to make as to use.
    """
    num_pixels = len(rows) * image_height * image_width
    dtype = torch.int32 if num_pixels < 2**31 else torch.int64
    first = torch.arange(len(rows), dtype=dtype, device=rows.device)[:, None] * (image_height * image_width)
    return (first + rows.to(dtype) * image_width)[:, :, None] + columns.to(dtype)[:, None, :]
