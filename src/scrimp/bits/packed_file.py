"""The bytes of a packed file; FORMAT.md beside this file describes them."""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrimp._core.structure import Structure
from scrimp.bits import rans
from scrimp.bits.code_streams import CodeStream, Table, bits_of_channels, decode_channels, encode_channels
from scrimp.bits.contents import Contents, FoldedNorm, PackedLayer
from scrimp.errors import ConfigError, FormatError

MAGIC = b"SCRIMPBT"
VERSION = 1
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST_BYTES = 16
_MOST_HEADER_BYTES = 1 << 28
_WRONG_CONTENTS = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError, zlib.error,
)  # fmt: skip
_BYTES_PER_LANE = 3  # that a lane takes beyond what its symbols are worth

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)}  # fmt: skip


@dataclass(frozen=True)
class PackedBytes:
    """A packed file in memory, and what its parts take. The parts add up to ``len(data)``."""

    data: bytes
    code_bytes: int
    scale_bytes: int
    tensor_bytes: int
    header_bytes: int
    channel_bits: Mapping[str, tuple[float, ...]]  # of the codes, by layer


def write(contents: Contents, metadata: Mapping[str, Any], *, half: bool, with_data: bool = True) -> PackedBytes:
    """The bytes of a file. ``half`` stores scales and float32 tensors in 16 bits.

    Without ``with_data`` the codes are not coded, but what they would take is known to within a thousandth.
    """
    channels = [row for layer in contents.layers for row in layer.codes]
    stream = encode_channels(channels, with_data=with_data)
    lanes = rans.num_lanes(sum(len(codes) for codes in channels))
    estimated = math.ceil(sum(stream.channel_bits) / 8) + _BYTES_PER_LANE * lanes
    scales = [_store(torch.from_numpy(layer.scales), half=half) for layer in contents.layers]
    tensors = {name: _store(tensor, half=half) for name, tensor in contents.tensors.items()}
    scale_section = _shuffled(scales)
    tensor_section = _shuffled(tensors.values())
    kinds, channel_bits = list(stream.kinds), list(stream.channel_bits)
    layers: list[Any] = []
    bits_by_layer: dict[str, tuple[float, ...]] = {}
    for layer, scale in zip(contents.layers, scales, strict=True):
        number = len(layer.codes)
        layers.append([layer.name, layer.channel_dim, kinds[:number], scale.dtype, scale.shift])
        bits_by_layer[layer.name] = tuple(channel_bits[:number])
        kinds, channel_bits = kinds[number:], channel_bits[number:]
    header = {
        "structure": contents.structure.to_state(),
        "layers": layers,
        "norms": [[norm.name, norm.eps, norm.layer_bias] for norm in contents.norms],
        "tables": [[table.bound, table.frequencies] for table in stream.tables],
        "tensors": [[name, list(one.shape), one.kind, one.dtype, one.shift] for name, one in tensors.items()],
        "tied": dict(contents.tied),
        "sections": [len(stream.data) if with_data else estimated, len(scale_section), len(tensor_section)],
        "metadata": dict(metadata),
        **({} if contents.program is None else {"program": contents.program}),
    }
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the metadata of a packed file has to be JSON: {error}") from error
    packed_header = zlib.compress(text, 9)
    sections = (stream.data if with_data else bytes(estimated)) + scale_section + tensor_section
    total = _PREFIX.size + len(packed_header) + len(sections) + _DIGEST_BYTES
    body = _PREFIX.pack(MAGIC, VERSION, len(packed_header), total) + packed_header + sections
    data = body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    code_bytes = len(sections) - len(scale_section) - len(tensor_section)
    return PackedBytes(
        data, code_bytes, len(scale_section), len(tensor_section), len(data) - len(sections), bits_by_layer
    )


def read(data: bytes, where: str) -> tuple[Contents, dict[str, Any]]:
    """The inverse of ``write``: contents and metadata.

    Raises: FormatError - another kind of file, another version, a file that is truncated or altered.
    """
    header, sections = _checked(data, where)
    try:
        return _contents(header, sections), header["metadata"]
    except _WRONG_CONTENTS as error:
        raise FormatError(f"{where} has the right checksum but not the right contents: {error!r}") from error


def read_header(data: bytes, where: str) -> dict[str, Any]:
    """The header of a file whose checksum is right. Raises: FormatError, as ``read``."""
    return _checked(data, where)[0]


def _checked(data: bytes, where: str) -> tuple[dict[str, Any], list[bytes]]:
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"{where} is not a packed model of scrimp (it does not begin with {MAGIC.decode()})")
    _, version, header_bytes, total = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"{where} has version {version} of the format; this release of scrimp knows {VERSION}")
    if total != len(data):
        raise FormatError(
            f"{where} has {len(data)} bytes and should have {total}: it is truncated or has been added to"
        )
    if hashlib.blake2b(data[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES).digest() != data[-_DIGEST_BYTES:]:
        raise FormatError(f"{where} is damaged: its checksum does not fit its bytes; copy or pack it again")
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(data[_PREFIX.size : _PREFIX.size + header_bytes], _MOST_HEADER_BYTES)
        header = json.loads(text)
        codes, scales, tensors = (_whole(size) for size in header["sections"])
        sizes = (codes, scales, tensors)
        if not isinstance(header["metadata"], dict):
            raise TypeError("its metadata is no object")
    except (*_WRONG_CONTENTS, RecursionError) as error:
        raise FormatError(f"{where} has a header that cannot be read: {error!r}") from error
    sections, position = [], _PREFIX.size + header_bytes
    for size in sizes:
        sections.append(data[position : position + size])
        position += size
    if position != len(data) - _DIGEST_BYTES or min(sizes) < 0:
        raise FormatError(f"{where} has sections of other sizes than its header says")
    return header, sections


def _contents(header: dict[str, Any], sections: list[bytes]) -> Contents:
    structure = Structure.from_state(header["structure"])
    shapes = [structure.shapes[name] for name, *_ in header["layers"]]
    kinds = tuple(_whole(kind) for _, _, own, *_ in header["layers"] for kind in own)
    lengths = []
    for shape, (_, dim, own, *_) in zip(shapes, header["layers"], strict=True):
        if min(shape) < 1 or not 0 <= dim < len(shape) or shape[dim] != len(own):
            raise ValueError("a layer has another number of channels than its shape says")
        lengths += [math.prod(shape) // shape[dim]] * len(own)
    channels = decode_channels(CodeStream(kinds, _tables(header), sections[0], ()), lengths)
    scale_arrays = _unshuffled(sections[1], [((len(own),), dtype) for _, _, own, dtype, _ in header["layers"]])
    layers, position = [], 0
    for shape, scales, (name, dim, own, _, shift) in zip(shapes, scale_arrays, header["layers"], strict=True):
        codes = np.stack(channels[position : position + len(own)])
        layers.append(PackedLayer(name, dim, shape, codes, _restore(scales, "float32", shift).numpy()))
        position += len(own)
    arrays = _unshuffled(sections[2], [(tuple(shape), dtype) for _, shape, _, dtype, _ in header["tensors"]])
    tensors = {
        name: _restore(array, kind, shift)
        for array, (name, _, kind, _, shift) in zip(arrays, header["tensors"], strict=True)
    }
    norms = tuple(FoldedNorm(name, float(eps), bias) for name, eps, bias in header["norms"])
    tied = {str(name): str(first) for name, first in header["tied"].items()}
    there = tensors.keys() | {layer.name for layer in layers}
    if missing := sorted({*tied.values(), *(f"{norm.name}.bias" for norm in norms)} - there):
        raise ValueError(f"it names {missing[0]!r}, which is not there")
    return Contents(structure, tuple(layers), norms, tensors, tied, header.get("program"))


def code_bits(header: Mapping[str, Any], contents: Contents) -> dict[str, float]:
    """What the codes of each layer take in a file with these contents and this header."""
    tables = _tables(header)
    return {
        layer.name: math.fsum(bits_of_channels(list(layer.codes), kinds, tables))
        for layer, (_, _, kinds, *_) in zip(contents.layers, header["layers"], strict=True)
    }


def _tables(header: Mapping[str, Any]) -> tuple[Table, ...]:
    return tuple(Table(_whole(bound), tuple(map(_whole, frequencies))) for bound, frequencies in header["tables"])


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


@dataclass(frozen=True)
class _Stored:
    """A tensor as it is stored: ``kind`` is the dtype that it has in the model, ``dtype`` the one in the file."""

    array: NDArray[Any]
    shape: tuple[int, ...]
    kind: str
    dtype: str
    shift: int


def _store(tensor: Tensor, *, half: bool) -> _Stored:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise ConfigError(f"cannot pack a tensor of {tensor.dtype}; known are {', '.join(_DTYPES)}")
    shift, stored = 0, tensor.contiguous()
    if half and tensor.dtype is torch.float32 and tensor.numel() and bool(tensor.isfinite().all()):
        # 16 bits hold 2^-14 .. 2^15 at full precision: bring the largest value to the upper end
        largest = float(tensor.abs().max())
        shift = math.frexp(largest)[1] - 15 if largest else 0
        stored = torch.ldexp(stored.double(), torch.tensor(-shift)).half()
    name = str(stored.dtype).removeprefix("torch.")
    return _Stored(stored.reshape(-1).view(torch.uint8).numpy(), tuple(tensor.shape), kind, name, shift)


def _restore(array: Tensor, kind: str, shift: int) -> Tensor:
    if shift:
        array = torch.ldexp(array.double(), torch.tensor(shift))
    return array.to(_DTYPES[kind])


def _shuffled(stored: Iterable[_Stored]) -> bytes:
    """The values of all tensors, by falling size of a value; of each size all first bytes, all second bytes, ..."""
    by_size: dict[int, list[bytes]] = {}
    for one in stored:
        by_size.setdefault(_DTYPES[one.dtype].itemsize, []).append(one.array.tobytes())
    planes = [
        np.frombuffer(b"".join(parts), np.uint8).reshape(-1, size).T.tobytes()
        for size, parts in sorted(by_size.items(), reverse=True)
    ]
    return zlib.compress(b"".join(planes), 9)


def _unshuffled(section: bytes, described: list[tuple[tuple[int, ...], str]]) -> list[Tensor]:
    sizes = [(math.prod(shape), _DTYPES[dtype].itemsize) for shape, dtype in described]
    total = sum(number * size for number, size in sizes)
    raw = zlib.decompressobj().decompress(section, total + 1)
    if len(raw) != total:
        raise ValueError("a section has another length than its tensors need")
    values: dict[int, NDArray[np.uint8]] = {}
    position = 0
    for size in sorted({size for _, size in sizes}, reverse=True):
        number = sum(count for count, own in sizes if own == size)
        planes = np.frombuffer(raw[position : position + number * size], np.uint8).reshape(size, number)
        values[size] = np.ascontiguousarray(planes.T)
        position += number * size
    taken = dict.fromkeys(values, 0)
    result = []
    for (shape, dtype), (number, size) in zip(described, sizes, strict=True):
        part = values[size][taken[size] : taken[size] + number].reshape(-1)
        taken[size] += number
        result.append(torch.from_numpy(part.copy()).view(_DTYPES[dtype]).reshape(shape))
    return result
