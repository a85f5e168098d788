"""The device loader and its transforms as loops over samples and pixels."""

import torch
from tests.reference.plans import rank_batches
from torch import Tensor

from scrimp._core.rng import generator, stream_seed


def reflect(position: int, size: int) -> int:
    """The place in an image of ``size`` pixels that a place outside mirrors."""
    while not 0 <= position < size:
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


def crop(images: Tensor, offsets: Tensor, padding: int, *, fill: float | None = None) -> Tensor:
    """Shifted crops, pixel by pixel; reflected at the borders unless there is a fill."""
    cropped = torch.empty_like(images)
    for b, (top, left) in enumerate(offsets.tolist()):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                from_y, from_x = y + top - padding, x + left - padding
                outside = not (0 <= from_y < images.shape[2] and 0 <= from_x < images.shape[3])
                if fill is not None and outside:
                    cropped[b, :, y, x] = fill
                else:
                    cropped[b, :, y, x] = images[
                        b, :, reflect(from_y, images.shape[2]), reflect(from_x, images.shape[3])
                    ]
    return cropped


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images that the mask names, one by one."""
    return torch.stack([image.flip(2) if mirrored else image for image, mirrored in zip(images, mask, strict=True)])


def cutout(images: Tensor, bits: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """Blank one square per image."""
    images = images.clone()
    for image, (row_bits, column_bits) in zip(images, bits.tolist(), strict=True):
        top = row_bits * (image.shape[1] - size + 1) // 2**31
        left = column_bits * (image.shape[2] - size + 1) // 2**31
        image[:, top : top + size, left : left + size] = fill
    return images


def windows(rows: Tensor, bits: Tensor, length: int) -> Tensor:
    """One window per row of tokens."""
    firsts = [b * (rows.shape[1] - length + 1) // 2**31 for b in bits.tolist()]
    return torch.tensor([row[first : first + length] for row, first in zip(rows.tolist(), firsts, strict=True)])


def flip_coin(seed: int, sample: int, epoch: int) -> bool:
    """Whether AlternatingFlip mirrors a sample: SplitMix64's finaliser in Python integers, and the epoch's parity."""
    word = (sample + stream_seed(seed, "alternating flip") % 2**62) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return ((word ^ (word >> 31)) & 1) != epoch % 2


def epoch_batches(inputs, targets, order, batch_size, *, transforms=(), seed=0, epoch=0, world_size=1, drop_last=False):
    """``[step][rank]`` -> (index, inputs, targets), one sample at a time, each transform applied to it alone."""
    drawn = [
        t.draw(torch.tensor(order), epoch, generator(seed, "transform", i, epoch)) for i, t in enumerate(transforms)
    ]
    visit, steps = 0, []
    for parts in rank_batches(order, batch_size, world_size, drop_last=drop_last):
        ranks = []
        for samples in parts:
            rows = []
            for sample in samples:
                row = inputs[sample : sample + 1]
                for transform, choices in zip(transforms, drawn, strict=True):
                    row = transform.apply(row, None if choices is None else choices[visit : visit + 1])
                rows.append(row)
                visit += 1
            chosen = torch.tensor(samples)
            ranks.append((chosen, torch.cat(rows), None if targets is None else targets[chosen]))
        steps.append(ranks)
    return steps
