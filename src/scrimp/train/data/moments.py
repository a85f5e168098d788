"""Mean and standard deviation per channel, exact, in little memory."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Moments:
    """Mean and population standard deviation of each channel, pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_moments(images: UInt8[np.ndarray, "images height width channels"]) -> Moments:
    """Moments over all pixels of all images.

    Sums are of integers, so they are exact for any number of images and do not depend on the order. One pass over the
    data in chunks; no float copy of it.
    """
    channels = images.shape[3]
    total = np.zeros(channels, np.int64)
    total_of_squares = np.zeros(channels, np.int64)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        pixels = images[start : start + _IMAGES_AT_ONCE].reshape(-1, channels)
        total += pixels.sum(axis=0, dtype=np.int64)
        total_of_squares += np.square(pixels, dtype=np.uint16).sum(axis=0, dtype=np.int64)  # 255^2 fits 16 bits
    count = images.size // channels
    pairs = list(zip(total.tolist(), total_of_squares.tolist(), strict=True))
    return Moments(
        mean=tuple(s / (255 * count) for s, _ in pairs),
        std=tuple(math.sqrt(count * q - s * s) / (255 * count) for s, q in pairs),
    )
