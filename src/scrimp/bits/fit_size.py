"""The last percent to a size: the bits of all channels moved together until the packed file has it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scrimp.bits.layers import unique_layers
from scrimp.bits.pack import size_report
from scrimp.bits.plain import drop_unused_bits_
from scrimp.bits.quantize import MOST_BITS
from scrimp.errors import ConfigError

_LEAST_LIVE = 1.0  # bits that a live channel keeps; it has two codes down to zero, so that less would save nothing
_LEAST_SYMMETRIC = 1.1  # at one bit there would be no code but zero
_FARTHEST = 8.0
_NUM_TRIES = 14


@torch.no_grad()
def fit_size_(
    model: torch.nn.Module,
    target_bytes: int,
    *,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 0.003,
) -> int:
    """Give all live channels of ``model`` more or fewer bits, each alike, until its packed size is ``target_bytes``.

    The range of each channel stays; its codes become finer or coarser, by whole bits where exponents are whole (so that
    sizes are met less closely). No channel dies, none of zero bits comes back, and the least bits of a layer hold; a
    channel that merely has no code but zero may get others, which makes sizes jump. It is for the end, when bits are
    frozen and ``TargetSize`` has brought the size near: let the weights train on afterwards, and call it again as the
    size drifts.

    Args: metadata - as it will be given to ``scrimp.pack``. tolerance - how far off the target is close enough.
    Returns: the size that the file would have after ``finalize_``, when channels that have no code but zero do not
        count; farther off when no bits within 8 of those there are give it (scales alone may take more).
    Raises: ConfigError - a target that is not positive. Cost: up to 15 times ``size_report``; host syncs.
    """
    if target_bytes < 1 or not tolerance > 0:
        raise ConfigError(f"fit_size_: target_bytes={target_bytes}, tolerance={tolerance}; both have to be positive")
    quantizers = [layer.quantizer for layer in unique_layers(model)]
    before = [tuple(value.clone() for value in one.learned()) for one in quantizers]

    def copies() -> list[Tensor]:
        return [parameter.clone() for one in quantizers for parameter in one.parameters()]

    def put_back(values: list[Tensor]) -> None:
        for parameter, value in zip((p for one in quantizers for p in one.parameters()), values, strict=True):
            parameter.copy_(value)

    def settled_size() -> int:
        learned = copies()
        try:
            drop_unused_bits_(model)
            return size_report(model, metadata=metadata).packed_bytes
        finally:
            put_back(learned)

    def size_with(more: float) -> int:
        for one, (bits, exponent) in zip(quantizers, before, strict=True):
            had = bits.clamp(one.least_bits, MOST_BITS)
            least = had.clamp(max=max(one.least_bits, _LEAST_SYMMETRIC if one.symmetric else _LEAST_LIVE))
            has = torch.where(had > one.bits_of_nothing, (had + more).clamp(max=MOST_BITS).maximum(least), had)
            if one.integer_exponent:  # half a bit would move the range by a factor of up to 1.4
                has = had + (has - had).trunc()
            one.set_(torch.where(has == had, bits, has), exponent + had - has)
        return settled_size()

    def miss(size: int) -> float:
        return math.log(size / target_bytes)

    best, size = 0.0, settled_size()
    if not quantizers or abs(miss(size)) <= tolerance:
        return size
    low, high = (-_FARTHEST, 0.0) if size > target_bytes else (0.0, _FARTHEST)
    at_first = copies()
    try:
        for _ in range(_NUM_TRIES):
            more = (low + high) / 2
            tried = size_with(more)
            if abs(miss(tried)) < abs(miss(size)):
                best, size = more, tried
            if abs(miss(size)) <= tolerance:
                break
            low, high = (low, more) if tried > target_bytes else (more, high)
        return size_with(best)
    except BaseException:
        put_back(at_first)
        raise
