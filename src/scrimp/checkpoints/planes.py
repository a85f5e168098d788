"""Exact coding: differences of the bits from those of the base, sorted by significance, compressed where it helps.

The bits of each value are an unsigned integer. Neighbouring floats of one sign are neighbouring integers, so the
difference of a value that moved a little has zeros in its high bytes; zigzag (0, -1, 1, -2, ...) makes them zeros for
either sign. First bytes, second bytes, ... are compressed apart, because only the high ones can be.
"""

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from scrimp.checkpoints.payload import ByteReader, ByteWriter
from scrimp.errors import CorruptCheckpointError

_BLOCK = 1 << 18  # values; part of the format
_LEVEL = 1  # faster than 3 on exponents, and smaller
_SAMPLE = 1 << 14
_TINY_BYTES = 64

Bits = NDArray[np.unsignedinteger]


def encode_exact(tensor: Tensor, base: Tensor | None) -> tuple[bytes, bool]:
    """The bytes of a tensor and whether decoding needs the base. Cost: a few passes, a block of memory at a time."""
    bits = bits_of(tensor)
    base_bits = None if base is None else bits_of(base)
    if base_bits is not None and not _is_better_with(base_bits, bits):
        base_bits = None
    out = ByteWriter()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False)
    for begin in range(0, len(bits), _BLOCK):
        block = bits[begin : begin + _BLOCK]
        if base_bits is not None:
            block = _zigzag(block - base_bits[begin : begin + _BLOCK])
        for plane in _planes(block):
            _write_plane(out, plane, compressor)
    return out.getvalue(), base_bits is not None


def decode_exact(body: memoryview, dtype: torch.dtype, shape: tuple[int, ...], base: Tensor | None) -> Tensor:
    """The inverse of ``encode_exact``. Raises: CorruptCheckpointError."""
    data = ByteReader(body)
    decompressor = zstandard.ZstdDecompressor()
    num_values = int(np.prod(shape, dtype=np.int64))
    if num_values and not len(body):
        raise CorruptCheckpointError(f"an empty body for {num_values} values")
    tensor = torch.empty(shape, dtype=dtype)
    bits = bits_of(tensor)
    base_bits = None if base is None else bits_of(base)
    for begin in range(0, len(bits), _BLOCK):
        block = bits[begin : begin + _BLOCK]
        planes = np.empty((len(block), block.itemsize), dtype=np.uint8)
        for number in range(block.itemsize):
            planes[:, number] = _read_plane(data, len(block), decompressor)
        block[:] = planes.view(block.dtype)[:, 0]
        if base_bits is not None:
            block[:] = _unzigzag(block) + base_bits[begin : begin + _BLOCK]
    if not data.is_done:
        raise CorruptCheckpointError("bytes are left over behind the last value of a tensor")
    return tensor


def bits_of(tensor: Tensor) -> Bits:
    """The values as unsigned integers that share a contiguous tensor's memory; halves of complex numbers apart."""
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().view(f"<u{width}")


def _zigzag(difference: Bits) -> Bits:
    signed = difference.view(difference.dtype.str.replace("u", "i"))
    return ((signed << 1) ^ (signed >> (8 * signed.itemsize - 1))).view(difference.dtype)


def _unzigzag(code: Bits) -> Bits:
    one = code.dtype.type(1)
    return (code >> one) ^ (~(code & one) + one)


def _planes(block: Bits) -> NDArray[np.uint8]:
    return np.ascontiguousarray(block.view(np.uint8).reshape(len(block), block.itemsize).T)


def _write_plane(out: ByteWriter, plane: NDArray[np.uint8], compressor: zstandard.ZstdCompressor) -> None:
    """Length times two plus one and the compressed bytes; or, where that is no shorter, zero and the bytes."""
    raw = plane.data
    packed = compressor.compress(raw) if len(plane) >= _TINY_BYTES else b""
    if packed and len(packed) < len(plane):
        out.varint(2 * len(packed) + 1)
        out.raw(packed)
    else:
        out.varint(0)
        out.raw(raw.tobytes() if len(plane) < _TINY_BYTES else raw)


def _read_plane(data: ByteReader, length: int, decompressor: zstandard.ZstdDecompressor) -> NDArray[np.uint8]:
    packed_length = data.varint()
    if packed_length == 0:
        return np.frombuffer(data.raw(length), dtype=np.uint8)
    try:
        plane = decompressor.decompress(data.raw(packed_length >> 1), max_output_size=length)
    except zstandard.ZstdError as error:
        raise CorruptCheckpointError(f"compressed bytes of a tensor cannot be read ({error})") from error
    if len(plane) != length:
        raise CorruptCheckpointError(f"{len(plane)} values of a tensor where {length} are expected")
    return np.frombuffer(plane, dtype=np.uint8)


def _is_better_with(base: Bits, bits: Bits) -> bool:
    """Whether differences compress better than values, by a sample: moments forget where they were, weights do not."""
    if not len(bits):
        return False
    every = max(1, len(bits) // _SAMPLE)
    sample, base_sample = bits[::every][:_SAMPLE], base[::every][:_SAMPLE]
    compressor = zstandard.ZstdCompressor(level=1)
    sizes = [
        sum(len(compressor.compress(plane.data)) for plane in _planes(np.ascontiguousarray(values)))
        for values in (_zigzag(sample - base_sample), sample)
    ]
    return sizes[0] < sizes[1]
