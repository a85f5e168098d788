"""Rows of small symbols, coded to within a percent of their order-0 entropy, and read back fast when most are the same.

A chunk of symbols is coded in one of three ways. Dense: every symbol by ANS with the chunk's frequencies. Pairs, for
long chunks: seven symbols in a row are letters, an eighth stands for all others; two neighbouring letters are coded at
once, and the others follow. Sparse, where one symbol (the background) is most of the chunk: only the
others, each with the gap before it. A gap under 16 is a symbol of its own; above, its leading bit and the three bits
after it are, and the bits below follow as they are.

The frequencies are stored in a byte per symbol, to three bits behind the leading one (0.05 % of the size is lost by
that). ANS is constriction's: 24-bit probabilities, 32-bit words. Its models are built from these bytes by additions,
multiplications and divisions of float64 only, so every machine builds the same.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrimp.checkpoints.payload import ByteReader, ByteWriter
from scrimp.errors import CorruptCheckpointError, MissingDependencyError

Symbols = NDArray[np.uint8]

_CHUNK = 1 << 21  # symbols; part of the format. A gap has to be exact in float32
_CONSTANT, _DENSE, _SPARSE, _PAIRS = range(4)
_MOST_SPARSE = 0.3  # share of symbols besides the background
_SHORTEST_PAIRS = 1 << 16  # symbols; below, tables cost more than speed is worth
_RARE = 7  # the letter of whatever is none of seven neighbouring symbols
_NUM_SMALL = 16
_NUM_GAP_SYMBOLS = _NUM_SMALL + 8 * 20  # a gap is below 2^24
_FLOAT32_OF_16 = (127 + 4) << 3


def encode_symbols(symbols: Symbols) -> bytes:
    """The bytes of any number of symbols. Memory: a chunk's worth, about 40 MB."""
    out = ByteWriter()
    for begin in range(0, len(symbols), _CHUNK):
        _encode_chunk(out, symbols[begin : begin + _CHUNK])
    return out.getvalue()


def decode_symbols(data: ByteReader, num_symbols: int) -> Symbols:
    """The inverse of ``encode_symbols``. Raises: CorruptCheckpointError."""
    symbols = np.empty(num_symbols, dtype=np.uint8)
    for begin in range(0, num_symbols, _CHUNK):
        _decode_chunk(data, symbols[begin : begin + _CHUNK])
    return symbols


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """What an ideal order-0 coder would need, in bits for all symbols."""
    counts = np.bincount(symbols, minlength=1)
    present = counts[counts > 0]
    return float((present * np.log2(len(symbols) / present)).sum()) if len(symbols) else 0.0


def _encode_chunk(out: ByteWriter, symbols: Symbols) -> None:
    # where most symbols are one, only the others are worth counting; a sample tells which one it may be
    background = int(np.bincount(symbols[:: max(1, len(symbols) >> 12)]).argmax())
    is_other = symbols != background
    num_others = int(np.count_nonzero(is_other))
    if num_others == 0:
        out.byte(_CONSTANT)
        out.byte(background)
        return
    is_sparse = num_others < _MOST_SPARSE * len(symbols)
    # many symbols are counted two at a time, which takes half as long
    pair_counts = _counts_of_pairs(symbols) if len(symbols) >= _SHORTEST_PAIRS and not is_sparse else None
    if not is_sparse:
        counts = np.bincount(symbols if pair_counts is None else symbols[len(symbols) & ~1 :], minlength=256)
        if pair_counts is not None:
            counts += pair_counts.sum(0) + pair_counts.sum(1)
        if background != int(counts.argmax()):
            background = int(counts.argmax())
            is_other = symbols != background
            num_others = len(symbols) - int(counts[background])
            is_sparse = num_others < _MOST_SPARSE * len(symbols)
    coder = _ans_coder()
    tables = ByteWriter()
    if is_sparse:
        out.byte(_SPARSE)
        out.byte(background)
        out.varint(num_others)
        # the decoder needs the last that was written first: gap symbols, their low bits, values
        places = np.flatnonzero(is_other)
        gaps = np.diff(places, prepend=-1).astype(np.int32) - 1
        gap_symbols = _gap_symbols(gaps)
        others = symbols[places]
        value_model, value_table = _model(np.bincount(others, minlength=256))
        gap_model, gap_table = _gap_model(gap_symbols, len(symbols))
        coder.encode_reverse(others.astype(np.int32), value_model)
        for num_bits, is_theirs in reversed(list(_widths(gap_symbols))):
            coder.encode_reverse(gaps[is_theirs] & ((1 << num_bits) - 1), _uniform(num_bits))
        coder.encode_reverse(gap_symbols, gap_model)
        tables.raw(value_table + gap_table)
    elif pair_counts is not None and len(symbols) % 2 == 0:
        out.byte(_PAIRS)
        tables.raw(_encode_pairs(coder, symbols, pair_counts))
    else:
        out.byte(_DENSE)
        model, table = _model(counts)
        coder.encode_reverse(symbols.astype(np.int32), model)
        tables.raw(table)
    out.raw(tables.getvalue())
    out.block(coder.get_compressed().astype("<u4").tobytes())


def _decode_chunk(data: ByteReader, symbols: Symbols) -> None:
    kind = data.byte()
    if kind == _CONSTANT:
        symbols.fill(data.byte())
    elif kind == _DENSE:
        model = _read_model(data)
        symbols[:] = _coder_of(data).decode(model, len(symbols))
    elif kind == _PAIRS:
        _decode_pairs(data, symbols)
    elif kind == _SPARSE:
        symbols.fill(data.byte())
        num_others = data.varint()
        if not 0 < num_others <= len(symbols):
            raise CorruptCheckpointError(f"{num_others} symbols of {len(symbols)}; a payload was altered")
        value_model = _read_model(data)
        gap_model = _read_model(data, _geometric(num_others, len(symbols)))
        coder = _coder_of(data)
        gap_symbols = coder.decode(gap_model, num_others)
        gaps = _least_gaps(gap_symbols)
        for num_bits, is_theirs in _widths(gap_symbols):
            gaps[is_theirs] += coder.decode(_uniform(num_bits), int(np.count_nonzero(is_theirs)))
        places = np.cumsum(gaps + 1, dtype=np.int64) - 1
        if places[-1] >= len(symbols):
            raise CorruptCheckpointError("a symbol lies behind the last one; a payload was altered")
        symbols[places] = coder.decode(value_model, num_others)
    else:
        raise CorruptCheckpointError(f"symbols coded in a way {kind} that there is not; a payload was altered")


def _encode_pairs(coder: Any, symbols: Symbols, pair_counts: NDArray[np.int64]) -> bytes:
    """Code a chunk as pairs of letters; returns what the decoder has to know first."""
    counts = pair_counts.sum(0) + pair_counts.sum(1)
    first = int(np.convolve(counts, np.ones(_RARE), "valid").argmax())
    letters = np.minimum(symbols - np.uint8(first), np.uint8(_RARE))
    rare = symbols[letters == _RARE]
    pair_letters = np.minimum(np.arange(256) - first & 255, _RARE)
    letter_counts = np.bincount(
        (pair_letters + 8 * pair_letters[:, None]).reshape(-1), weights=pair_counts.reshape(-1), minlength=64
    )
    rare_counts = np.bincount(rare, minlength=256)
    rare_counts[0] += not len(rare)  # a table has at least one symbol
    pair_model, pair_table = _model(letter_counts.astype(np.int64))
    rare_model, rare_table = _model(rare_counts)
    two = letters.view("<u2")
    coder.encode_reverse(rare.astype(np.int32), rare_model)
    coder.encode_reverse(((two | two >> 5) & 63).astype(np.int32), pair_model)
    return bytes((first,)) + pair_table + rare_table


def _decode_pairs(data: ByteReader, symbols: Symbols) -> None:
    if len(symbols) % 2:
        raise CorruptCheckpointError(f"pairs of {len(symbols)} symbols; a payload was altered")
    first = data.byte()
    pair_model, rare_model = _read_model(data), _read_model(data)
    coder = _coder_of(data)
    two = coder.decode(pair_model, len(symbols) // 2).astype("<u2")
    letters = ((two | two << 5) & 0x0707).view(np.uint8)
    np.add(letters, np.uint8(first), out=symbols)
    places = np.flatnonzero((letters == _RARE).view(np.bool_))
    symbols[places] = coder.decode(rare_model, len(places))


def _counts_of_pairs(symbols: Symbols) -> NDArray[np.int64]:
    """How often a symbol stands behind each, ``[second, first]``; a last one without a second is left out."""
    return np.bincount(symbols[: len(symbols) & ~1].view("<u2"), minlength=1 << 16).reshape(256, 256)


def _gap_symbols(gaps: NDArray[np.int32]) -> NDArray[np.int32]:
    """A gap itself below 16; above, eight symbols for each doubling: exponent and three bits of it as a float32."""
    leading = (gaps.astype(np.float32).view(np.int32) >> 20) - (_FLOAT32_OF_16 - _NUM_SMALL)
    return np.where(gaps < _NUM_SMALL, gaps, leading)


def _least_gaps(gap_symbols: NDArray[np.int32]) -> NDArray[np.int32]:
    table = np.arange(_NUM_GAP_SYMBOLS + 1, dtype=np.int32)
    above = table[_NUM_SMALL:] - _NUM_SMALL
    table[_NUM_SMALL:] = (8 + (above & 7)) << ((above >> 3) + 1)
    return table[np.minimum(gap_symbols, _NUM_GAP_SYMBOLS)]


def _widths(gap_symbols: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """For each number of low bits the gaps that have so many, fewest bits first."""
    largest = int(gap_symbols.max())
    widths = (gap_symbols - (_NUM_SMALL - 8)) >> 3
    for num_bits in range(1, ((largest - (_NUM_SMALL - 8)) >> 3) + 1):
        is_theirs = widths == num_bits
        if is_theirs.any():
            yield num_bits, is_theirs


def _model(counts: NDArray[np.int64]) -> tuple[Any, bytes]:
    """A model of symbols with these counts, and its table: first symbol, number of them, a byte for each."""
    present = np.flatnonzero(counts)
    first, last = int(present[0]), int(present[-1])
    table = ByteWriter()
    table.varint(last - first + 1)
    table.varint(first)
    weights = _weight_bytes(counts[first : last + 1])
    num_zeros = 0
    for weight in [*weights.tolist(), None]:
        if weight == 0:
            num_zeros += 1
            continue
        if num_zeros:
            table.byte(0)
            table.varint(num_zeros)
            num_zeros = 0
        if weight is not None:
            table.byte(weight)
    return _categorical(_values_of(first, weights)), table.getvalue()


def _read_model(data: ByteReader, default: NDArray[np.float64] | None = None) -> Any:
    length = data.varint()
    if length == 0 and default is not None:
        return _categorical(default)
    first = data.varint()
    if not 0 < length <= 256 or first + length > 256:
        raise CorruptCheckpointError(f"a table of {length} symbols from {first}; a payload was altered")
    weights = bytearray()
    while len(weights) < length:
        weight = data.byte()
        weights += bytes((weight,)) if weight else bytes(min(data.varint(), length))
    if len(weights) != length:
        raise CorruptCheckpointError(f"a table of {length} symbols with {len(weights)}; a payload was altered")
    return _categorical(_values_of(first, np.frombuffer(weights, dtype=np.uint8)))


def _gap_model(gap_symbols: NDArray[np.int32], num_symbols: int) -> tuple[Any, bytes]:
    """The gaps as they are, or as chance would have them, which takes no table: whatever is smaller."""
    counts = np.bincount(gap_symbols, minlength=_NUM_GAP_SYMBOLS)
    by_chance = _geometric(len(gap_symbols), num_symbols)
    model, table = _model(counts)
    saved_bits = -(counts * np.log2(np.maximum(by_chance, 2.0**-24))).sum() - entropy_bits(gap_symbols)
    return (_categorical(by_chance), b"\0") if saved_bits < 8 * len(table) else (model, table)


def _geometric(num_others: int, num_symbols: int) -> NDArray[np.float64]:
    """Shares of the gap symbols when the others lie at random; powers by multiplication, the same everywhere."""
    power = np.append(_least_gaps(np.arange(_NUM_GAP_SYMBOLS, dtype=np.int32)), np.int32(1 << 24))
    factor, left = 1.0 - num_others / num_symbols, np.ones(len(power))
    for bit in range(25):
        left *= np.where(power >> bit & 1, factor, 1.0)
        factor *= factor
    shares: NDArray[np.float64] = left[:-1] - left[1:]
    return shares


def _weight_bytes(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Zero for zero; else 1 + 8 * exponent + three bits, of the count rounded to four significant bits."""
    exponent = np.frexp(counts.astype(np.float64))[1] - 1
    mantissa = np.rint(np.ldexp(counts.astype(np.float64), 3 - exponent)).astype(np.int64)  # 8 ... 16
    return np.where(counts > 0, 1 + 8 * exponent + mantissa - 8, 0).astype(np.uint8)


def _values_of(first: int, weights: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the bytes of a table stand for, by symbol; at least two, the least that ANS can tell apart."""
    code = weights.astype(np.int64) - 1
    values = np.zeros(max(first + len(weights), 2), dtype=np.float64)
    values[first : first + len(weights)] = np.where(code < 0, 0.0, np.ldexp(8.0 + (code & 7), code >> 3))
    return values


def _categorical(values: NDArray[np.float64]) -> Any:
    if not values.any():
        raise CorruptCheckpointError("a table without any symbol; a payload was altered")
    return _constriction().stream.model.Categorical(values, lazy=False, perfect=False)


def _uniform(num_bits: int) -> Any:
    return _constriction().stream.model.Uniform(1 << num_bits)


def _ans_coder(words: NDArray[np.uint32] | None = None) -> Any:
    make = _constriction().stream.stack.AnsCoder
    return make() if words is None else make(words)


def _coder_of(data: ByteReader) -> Any:
    block = data.block()
    if len(block) % 4:
        raise CorruptCheckpointError(f"{len(block)} bytes of 32-bit words; a payload was altered")
    return _ans_coder(np.frombuffer(block, dtype="<u4").astype(np.uint32))


def _constriction() -> Any:
    if "constriction" in sys.modules:
        return sys.modules["constriction"]
    try:
        import constriction  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError(
            "coding checkpoints with loss needs the package constriction, which has no ready-made wheel for every "
            "platform: pip install constriction (it needs Rust there), or use CheckpointStore(codec=Lossless())"
        ) from error
    return constriction
