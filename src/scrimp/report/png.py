"""Small pictures as PNG files, without an imaging library."""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB = 0, 2


def encode_png(pixels: bytes, *, width: int, height: int, num_channels: int) -> bytes:
    """A PNG file of ``pixels``, 8 bits each, row by row, with the 1 (gray) or 3 (RGB) values of a pixel together.

    Source: PNG specification (ISO/IEC 15948), chunks IHDR, IDAT and IEND, every row with filter 0.
    """
    row_bytes = width * num_channels
    rows = b"".join(b"\0" + pixels[start : start + row_bytes] for start in range(0, height * row_bytes, row_bytes))
    header = struct.pack(">IIBBBBB", width, height, 8, _GRAY if num_channels == 1 else _RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
