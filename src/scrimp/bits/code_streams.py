"""The codes of all channels as one stream of symbols, each coded with the frequencies of channels like its own.

A channel has a bound, the least ``k`` with all its codes in -k .. k - 1, rounded up to one of four values per octave
above 8. Channels of like bounds and like entropies share a table of frequencies: one more table is kept where it saves
more than it takes. Of codes beyond 16 only the upper part is coded with a table; the lower bits follow at the end of
the stream, as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scrimp.bits import rans

Ints = NDArray[np.int64]
_TABLE_REACH = 16  # most entries of a table on each side of zero; more would not be worth their place
_ENTROPY_STEP = 0.125  # bits; channels whose codes' entropies are as near as this begin in one group
_BITS_PER_ENTRY = 15.0  # of a table, as the header's zlib stores it


@dataclass(frozen=True)
class Table:
    """Frequencies of the symbols of channels with codes in -bound .. bound - 1; they add up to ``rans.TOTAL``."""

    bound: int
    frequencies: tuple[int, ...]


@dataclass(frozen=True)
class CodeStream:
    """Coded channels: ``kinds`` has 0 for a channel of zeros, or 1 more than the index of its table."""

    kinds: tuple[int, ...]
    tables: tuple[Table, ...]
    data: bytes
    channel_bits: tuple[float, ...]  # what each channel takes of the data


def bound_of(codes: Ints) -> int:
    """The bound of a channel: 0 if all its codes are zero."""
    if not codes.any():
        return 0
    least = max(-int(codes.min()), int(codes.max()) + 1)
    unit = 1 << max(0, (least - 1).bit_length() - 3)
    return -(-least // unit) * unit


def encode_channels(channels: Sequence[Ints], *, with_data: bool = True) -> CodeStream:
    """Code channels, each a flat array of whole numbers. Without ``with_data`` only their costs are computed."""
    kinds = [0] * len(channels)
    tables = []
    for kind, group in enumerate(_groups(channels), start=1):
        tables.append(Table(group.bound, tuple(rans.quantized_frequencies(group.symbol_counts()).tolist())))
        for member in group.members:
            kinds[member] = kind
    data = _encode(channels, kinds, tables) if with_data else b""
    return CodeStream(tuple(kinds), tuple(tables), data, bits_of_channels(channels, kinds, tables))


def bits_of_channels(channels: Sequence[Ints], kinds: Sequence[int], tables: Sequence[Table]) -> tuple[float, ...]:
    """What the codes of each channel take with the table of its kind."""
    costs = [rans.PRECISION - np.log2(np.maximum(np.array(table.frequencies), 1)) for table in tables]
    taken = []
    for codes, kind in zip(channels, kinds, strict=True):
        bound = tables[kind - 1].bound if kind else 0
        low_bits = _low_bits(bound)
        taken.append(float(costs[kind - 1][(codes + bound) >> low_bits].sum()) + low_bits * len(codes) if kind else 0.0)
    return tuple(taken)


def decode_channels(stream: CodeStream, lengths: Sequence[int]) -> list[Ints]:
    """The codes of channels of these lengths. Raises: ValueError - the stream is not of this form."""
    if not lengths:
        return []
    kinds, sizes = np.array(stream.kinds, dtype=np.int64), np.array(lengths, dtype=np.int64)
    if len(stream.tables) > len(lengths):
        raise ValueError("there are more tables than channels")
    for number, table in enumerate(stream.tables):
        low_bits = _low_bits(max(1, table.bound))
        is_fit = table.bound >= 1 and low_bits <= rans.PRECISION and table.bound % (1 << low_bits) == 0
        frequencies = np.array(table.frequencies, dtype=np.int64)
        if not is_fit or len(frequencies) != _num_symbols(table.bound) or frequencies.min() < 0:
            raise ValueError(f"table {number} is not one of frequencies")
        if frequencies.sum() != rans.TOTAL:
            raise ValueError(f"the frequencies of table {number} do not add up")
    if kinds.min() < 0 or kinds.max() > len(stream.tables):
        raise ValueError("a channel has a table that is not there")
    bounds = np.array([0, *(table.bound for table in stream.tables)], dtype=np.int64)[kinds]
    shifts = np.array([_low_bits(int(bound)) for bound in bounds], dtype=np.int64)
    upper_lengths, lower_lengths = np.where(kinds > 0, sizes, 0), np.where(shifts > 0, sizes, 0)
    widths = sorted(set(shifts.tolist()) - {0})
    rows = [*(np.array(table.frequencies, dtype=np.int64) for table in stream.tables), *map(_uniform, widths)]
    raw_kinds = len(stream.tables) + np.searchsorted(widths, shifts)
    contexts = np.repeat(
        np.concatenate([np.maximum(kinds - 1, 0), raw_kinds]), np.concatenate([upper_lengths, lower_lengths])
    )
    widest = max([1, *(len(row) for row in rows)])
    frequencies = np.zeros((max(1, len(rows)), widest), dtype=np.int64)
    symbols = np.zeros((max(1, len(rows)), rans.TOTAL), dtype=np.int64)
    for index, row in enumerate(rows):
        frequencies[index, : len(row)] = row
        symbols[index] = np.repeat(np.arange(len(row)), row)
    starts = np.cumsum(frequencies, axis=1) - frequencies
    decoded = rans.decode(
        stream.data, len(contexts), lambda begin, end: contexts[begin:end], symbols, frequencies, starts
    )
    uppers = np.split(decoded[: upper_lengths.sum()], np.cumsum(upper_lengths)[:-1])
    lowers = np.split(decoded[upper_lengths.sum() :], np.cumsum(lower_lengths)[:-1])
    channels = []
    for length, bound, bits, upper, lower in zip(lengths, bounds, shifts, uppers, lowers, strict=True):
        joined = (upper << bits) + (lower if bits else 0) - bound
        channels.append(joined if bound else np.zeros(length, dtype=np.int64))
    return channels


@dataclass(frozen=True)
class _Group:
    """Channels that share a table: ``counts`` of the codes -bound .. bound - 1, all channels of the stream together."""

    bound: int
    members: tuple[int, ...]
    counts: Ints

    def symbol_counts(self) -> Ints:
        low_bits = _low_bits(self.bound)  # bounds are multiples of 2^low_bits
        summed: Ints = self.counts.reshape(-1, 1 << low_bits).sum(axis=1)
        return summed

    def bits(self, num_channels: int) -> float:
        """What the group takes: its codes, its table, and the number of the table at each channel."""
        counts = self.symbol_counts()
        present = counts[counts > 0]
        codes = float((present * np.log2(present.sum() / present)).sum()) + _low_bits(self.bound) * int(counts.sum())
        names = len(self.members) * math.log2(num_channels / len(self.members))
        return codes + names + _BITS_PER_ENTRY * len(present)

    def joined(self, other: "_Group") -> "_Group":
        low, high = (self, other) if self.bound <= other.bound else (other, self)
        counts = high.counts.copy()
        middle = slice(high.bound - low.bound, high.bound + low.bound)
        counts[middle] += low.counts
        return _Group(high.bound, self.members + other.members, counts)


def _groups(channels: Sequence[Ints]) -> list[_Group]:
    """Channels by the table that they will share, of those that are not all zero.

    Groups of one bound and nearly one entropy are joined, each with its neighbour in that order, as long as that takes
    fewer bits, the pair that saves the most first.
    """
    found: dict[tuple[int, int], tuple[list[int], Ints]] = {}
    for index, codes in enumerate(channels):
        bound = bound_of(codes)
        if bound:
            counts = np.bincount(codes + bound, minlength=2 * bound)
            present = counts[counts > 0]
            entropy = float((present * np.log2(len(codes) / present)).sum()) / len(codes)
            members, sums = found.setdefault((bound, int(entropy / _ENTROPY_STEP)), ([], np.zeros_like(counts)))
            members.append(index)
            sums += counts
    groups = [
        _Group(key[0], tuple(members), sums) for key, (members, sums) in sorted(found.items(), key=lambda one: one[0])
    ]
    bits = [group.bits(len(channels)) for group in groups]
    pairs = [groups[i].joined(groups[i + 1]) for i in range(len(groups) - 1)]
    pair_bits = [pair.bits(len(channels)) for pair in pairs]
    while pairs:
        savings = [bits[i] + bits[i + 1] - pair_bits[i] for i in range(len(pairs))]
        best = max(range(len(pairs)), key=savings.__getitem__)
        if savings[best] <= 0:
            break
        groups[best : best + 2], bits[best : best + 2] = [pairs[best]], [pair_bits[best]]
        del pairs[best], pair_bits[best]
        for i in (best - 1, best):
            if 0 <= i < len(pairs):
                pairs[i] = groups[i].joined(groups[i + 1])
                pair_bits[i] = pairs[i].bits(len(channels))
    return groups


def _encode(channels: Sequence[Ints], kinds: Sequence[int], tables: Sequence[Table]) -> bytes:
    uppers: list[tuple[Ints, Ints]] = []  # frequencies, and the sums of those before them
    lowers: list[tuple[Ints, Ints]] = []
    arrays = [np.array(table.frequencies, dtype=np.int64) for table in tables]
    for codes, kind in zip(channels, kinds, strict=True):
        if not kind:
            continue
        table, bound = arrays[kind - 1], tables[kind - 1].bound
        low_bits = _low_bits(bound)
        symbols = (codes + bound) >> low_bits
        uppers.append((table[symbols], (np.cumsum(table) - table)[symbols]))
        if low_bits:
            rest, even = (codes + bound) & ((1 << low_bits) - 1), _uniform(low_bits)
            lowers.append((even[rest], rest * even[0]))
    if not uppers:
        return b""
    frequencies, starts = (np.concatenate(parts) for parts in zip(*uppers, *lowers, strict=True))
    return rans.encode(frequencies, starts)


def _low_bits(bound: int) -> int:
    return max(0, -(-bound // _TABLE_REACH) - 1).bit_length()


def _num_symbols(bound: int) -> int:
    return ((2 * bound - 1) >> _low_bits(bound)) + 1


def _uniform(bits: int) -> Ints:
    return np.full(1 << bits, rans.TOTAL >> bits, dtype=np.int64)
