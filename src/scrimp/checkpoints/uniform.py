"""A uniform quantiser: the nearest multiple of a step, from a base or from zero.

The error is at most half a step, or d steps with a dead zone of d. Where most values become zero a dead zone pays: the
others lie near its edge, and symbols are cheaper at the same mean square error (Sullivan, 1996). Weights have none at
steps of up to three times their movement: what training has gained since the last checkpoint is a small drift under
much noise, and where the noise is as large as the step, rounding to the nearest keeps the drift on average (Widrow and
Kollar, "Quantization Noise", 2008). A dead zone of 0.6 steps of the noise's size takes 8 % of it away, and training
resumes that part of an interval behind.

Decoded is ``base + (code * step) * unit``, each operation rounded by itself in float32 (float64 for float64), so that
every machine gets the same bits. Whatever then lies outside of the limit is stored as it is.
"""

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scrimp.checkpoints.entropy import decode_symbols, encode_symbols
from scrimp.checkpoints.escapes import read_escapes, write_escapes
from scrimp.checkpoints.measure import BLOCK, ErrorMeter, compute_dtype, largest_magnitude, root
from scrimp.checkpoints.payload import ByteReader, ByteWriter
from scrimp.checkpoints.steepness import fineness

NEAREST = 0.5
"""The dead zone, in steps, that is none."""
_SLACK = 1 - 2**-10  # of the limit is used, so that no rounding of floats leads beyond it
_MOST_ESCAPES = 1 / 32
_MAX_CODE = 127
_ZERO = 128  # the symbol of code 0


@dataclass(frozen=True)
class Quantised:
    """A body, what it decodes to, and what that did."""

    body: bytes
    decoded: Tensor
    meter: ErrorMeter


@dataclass(frozen=True)
class Unit:
    """What values are in units of, elementwise: the root of a second moment, or with ``level`` its ``fineness``.

    Roots are rounded alike on every machine.
    """

    second_moment: Tensor
    level: float | None = None

    def part(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Of the flat values in ``part``, in ``dtype``."""
        values = self.second_moment.view(-1)[part].to(dtype)
        return root(values) if self.level is None else fineness(values, self.level)


def write_level(out: ByteWriter, level: float) -> None:
    """Before the body of what is in units of fineness."""
    out.raw(struct.pack("<d", level))


def read_level(data: ByteReader) -> float:
    """The inverse of ``write_level``."""
    return struct.unpack("<d", data.raw(8))[0]  # type: ignore[no-any-return]


def encode_uniform(
    tensor: Tensor,
    limit: float,
    *,
    base: Tensor | None = None,
    unit: Unit | None = None,
    dead_zone: float = NEAREST,
) -> Quantised | None:
    """Quantise to an error of at most ``limit`` (times ``unit``, elementwise).

    ``dead_zone``, from 0.5 to below 1, is the part of a step below which a value becomes zero; a step is then the limit
    over that.

    ``None`` when that is no way to store the tensor: the limit is zero or beyond floats, or escapes are too many.

    Cost: about 10 operations per value, a block at a time; memory for a code byte per value and what is decoded.
    """
    dtype = compute_dtype(tensor.dtype)
    step = float(torch.tensor(limit * _SLACK / dead_zone, dtype=dtype)) if limit < torch.finfo(dtype).max / 1e3 else 0.0
    if not step > torch.finfo(dtype).tiny * 1e6:
        return None
    flat, codes = tensor.reshape(-1), torch.empty(tensor.numel(), dtype=torch.int8)
    decoded, meter = torch.empty_like(flat), ErrorMeter()
    escapes: list[Tensor] = []
    num_escapes = 0
    for begin in range(0, len(flat), BLOCK):
        part = slice(begin, begin + BLOCK)
        true = flat[part].to(dtype)
        base_part = None if base is None else base.view(-1)[part].to(dtype)
        unit_part = None if unit is None else unit.part(part, dtype)
        scaled = true.clone() if base_part is None else true - base_part
        if unit_part is not None:
            scaled.div_(unit_part)
        scaled.mul_(1 / step)
        # NaN becomes some code, and then an escape
        if dead_zone == NEAREST:
            scaled.round_()
        else:  # truncation is what conversion to integers does
            scaled.add_(scaled.sign(), alpha=1 - dead_zone)
        codes[part] = scaled.clamp_(-_MAX_CODE, _MAX_CODE)
        _put_values(decoded[part], codes[part], step, base_part, unit_part)
        error = true - decoded[part].to(dtype)
        largest: float | None = largest_magnitude(error)
        outside = _outside(error, largest, limit, unit_part)
        if outside is not None:
            where = outside.nonzero().view(-1)
            num_escapes += len(where)
            if num_escapes > _MOST_ESCAPES * len(flat) + 8:
                return None
            escapes.append(where + begin)
            decoded[part][where] = flat[part][where]
            error[where], largest = 0, None
        meter.add(true, error, largest)
    out = ByteWriter()
    out.raw(struct.pack("<d", step))
    out.raw(encode_symbols(codes.numpy().view(np.uint8) ^ np.uint8(_ZERO)))
    write_escapes(out, escapes, flat)
    return Quantised(out.getvalue(), decoded.view(tensor.shape), meter)


def decode_uniform(
    body: memoryview,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    base: Tensor | None = None,
    unit: Unit | None = None,
) -> Tensor:
    """The inverse of ``encode_uniform``. Raises: CorruptCheckpointError."""
    data = ByteReader(body)
    (step,) = struct.unpack("<d", data.raw(8))
    decoded = torch.empty(shape, dtype=dtype)
    flat = decoded.view(-1)
    codes = torch.from_numpy((decode_symbols(data, len(flat)) ^ np.uint8(_ZERO)).view(np.int8))
    for begin in range(0, len(flat), BLOCK):
        part = slice(begin, begin + BLOCK)
        base_part = None if base is None else base.view(-1)[part].to(compute_dtype(dtype))
        unit_part = None if unit is None else unit.part(part, compute_dtype(dtype))
        _put_values(flat[part], codes[part], step, base_part, unit_part)
    read_escapes(data, flat)
    return decoded


def _put_values(decoded: Tensor, codes: Tensor, step: float, base: Tensor | None, unit: Tensor | None) -> None:
    is_wide = decoded.dtype is compute_dtype(decoded.dtype)
    values = decoded.copy_(codes) if is_wide else codes.to(compute_dtype(decoded.dtype))
    values.mul_(step)
    if unit is not None:
        values.mul_(unit)
    if base is not None:
        values.add_(base)
    if not is_wide:
        decoded.copy_(values)


def _outside(error: Tensor, largest: float | None, limit: float, unit: Tensor | None) -> Tensor | None:
    """Where the error is beyond the limit or not a number; ``None`` when nowhere."""
    if unit is None:
        return None if largest is not None and largest <= limit else ~(error.abs() <= limit)
    beyond = error.abs().sub_(unit, alpha=limit)
    # twice, because a rounded difference of zero is not yet within; and NaN compares as false
    return None if float(beyond.max()) < 0 else ~(error.abs() <= unit * limit)
