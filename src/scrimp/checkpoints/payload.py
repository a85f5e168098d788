"""The bytes of a payload: a version, then one entry per slot.

All integers are varints (seven bits a byte, low ones first, the high bit set on all but the last). An entry is the
slot's name, its dtype (one byte), its shape, its method (one byte; the high bit says that the base is needed) and its
body, each text and body behind its length. What a body holds is the matter of the module that wrote it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch

from scrimp.errors import ConfigError, CorruptCheckpointError, FormatError

_VERSION = 1
_NEEDS_BASE = 0x80
# The place in this list is what is stored: only append. Names that this torch lacks cannot be read or written by it.
_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32",
    "uint64", "complex64", "complex128", "complex32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
_CODE_OF_DTYPE = {getattr(torch, name): code for code, name in enumerate(_DTYPES) if hasattr(torch, name)}


class Method(IntEnum):
    """How a slot is coded. The values are what is stored: only append."""

    EXACT = 0
    SCORES = 1
    UNIFORM = 2
    LOGARITHM = 3
    ROOT = 4
    ZERO = 5
    CODEBOOK = 6
    STEEP = 7


@dataclass(frozen=True)
class Entry:
    """One slot of a payload."""

    slot: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    method: Method
    needs_base: bool
    body: memoryview


class ByteWriter:
    """Bytes, put down one after another."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []

    def byte(self, value: int) -> None:
        """One byte."""
        self._parts.append(bytes((value,)))

    def varint(self, value: int) -> None:
        """A non-negative integer in seven bits a byte."""
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes whose length the reader knows."""
        self._parts.append(data)

    def block(self, data: bytes | memoryview) -> None:
        """Bytes behind their length."""
        self.varint(len(data))
        self._parts.append(data)

    def getvalue(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class ByteReader:
    """What a ByteWriter wrote. Raises CorruptCheckpointError when there is less than is asked for."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def is_done(self) -> bool:
        """Whether everything was read."""
        return self._at == len(self._data)

    def byte(self) -> int:
        """One byte."""
        return self.raw(1)[0]

    def varint(self) -> int:
        """An integer; its own limit of 2^63 keeps altered bytes from asking for the impossible."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise CorruptCheckpointError("a number in a payload has no end; it was altered")

    def raw(self, length: int) -> memoryview:
        """``length`` bytes, not copied."""
        end = self._at + length
        if end > len(self._data):
            raise CorruptCheckpointError(
                f"a payload ends after {len(self._data)} bytes where {end} are needed; it is truncated or was altered"
            )
        part = self._data[self._at : end]
        self._at = end
        return part

    def rest(self) -> memoryview:
        """All that was not read."""
        return self.raw(len(self._data) - self._at)

    def block(self) -> memoryview:
        """Bytes behind their length."""
        return self.raw(self.varint())


def write_payload(entries: Iterable[Entry]) -> bytes:
    """The payload of some slots. Raises: ConfigError - a dtype that the format does not know."""
    out = ByteWriter()
    out.byte(_VERSION)
    for entry in entries:
        out.block(entry.slot.encode())
        if entry.dtype not in _CODE_OF_DTYPE:
            raise ConfigError(f"slot {entry.slot!r} is of {entry.dtype}, which the checkpoint format does not know")
        out.byte(_CODE_OF_DTYPE[entry.dtype])
        out.varint(len(entry.shape))
        for size in entry.shape:
            out.varint(size)
        out.byte(entry.method | (_NEEDS_BASE if entry.needs_base else 0))
        out.block(entry.body)
    return out.getvalue()


def read_payload(payload: bytes) -> dict[str, Entry]:
    """The slots of a payload by name, in their order; bodies are not copied.

    Raises: FormatError - an unknown version, dtype or method; CorruptCheckpointError - truncated or altered.
    """
    data = ByteReader(payload)
    if (version := data.byte()) != _VERSION:
        raise FormatError(f"a payload of version {version}; this release knows version {_VERSION}")
    entries: dict[str, Entry] = {}
    while not data.is_done:
        try:
            slot = bytes(data.block()).decode()
        except UnicodeDecodeError as error:
            raise CorruptCheckpointError(f"a payload has an unreadable name ({error}); it was altered") from error
        dtype_name = _DTYPES[code] if (code := data.byte()) < len(_DTYPES) else f"number {code}"
        if not hasattr(torch, dtype_name):
            raise FormatError(f"slot {slot!r} is of dtype {dtype_name}, which torch {torch.__version__} does not know")
        shape = tuple(data.varint() for _ in range(data.varint()))
        method = data.byte()
        if method & ~_NEEDS_BASE not in set(Method):
            raise FormatError(f"slot {slot!r} is coded by method {method & ~_NEEDS_BASE}, unknown to this release")
        needs_base = bool(method & _NEEDS_BASE)
        dtype = getattr(torch, dtype_name)
        entries[slot] = Entry(slot, dtype, shape, Method(method & ~_NEEDS_BASE), needs_base, data.block())
    return entries
