"""Range coding of small integers whose frequencies are known (rANS), many streams side by side in numpy.

A symbol is coded with its frequency and the sum of the frequencies before it, out of 2**PRECISION; it costs
``PRECISION - log2(frequency)`` bits to within a thousandth. Symbols are dealt to lanes in turn, each lane has a state
of 32 bits, and all lanes share one stream of 16-bit words, which the decoder takes up in the order of the lanes.
Source: J. Duda, arXiv 1311.2540; interleaving: F. Giesen, arXiv 1402.3392.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

PRECISION = 14
TOTAL = 1 << PRECISION
_LOW = 1 << 16  # states lie in [2^16, 2^32)

Ints = NDArray[np.int64]


def num_lanes(num_symbols: int) -> int:
    """How many lanes a stream has: enough for numpy to be quick, few enough for their states to cost nothing."""
    return max(1, min(1024, num_symbols // 8192))


def quantized_frequencies(counts: Ints) -> Ints:
    """Whole frequencies that add up to 2**PRECISION, in proportion to ``counts``; at least 1 for what occurs."""
    occurs = counts > 0
    shares = counts * (TOTAL / max(1, counts.sum()))
    frequencies = np.where(occurs, np.maximum(1, np.floor(shares)), 0).astype(np.int64)
    while occurs.any() and (excess := int(frequencies.sum()) - TOTAL):
        # one more for those that rounding took most from, or one less for those that it gave most
        candidates = np.flatnonzero(occurs if excess < 0 else frequencies > 1)
        gain = (frequencies - shares)[candidates] * (1 if excess < 0 else -1)
        chosen = candidates[np.argsort(gain, kind="stable")[: abs(excess)]]
        frequencies[chosen] += 1 if excess < 0 else -1
    return frequencies


def encode(frequencies: Ints, starts: Ints) -> bytes:
    """Code symbols given by their frequencies and the sums of the frequencies before them."""
    if not len(frequencies):
        return b""
    lanes = num_lanes(len(frequencies))
    states = np.full(lanes, _LOW, dtype=np.uint64)
    words: list[NDArray[np.uint16]] = []
    frequencies, starts = frequencies.astype(np.uint64), starts.astype(np.uint64)
    limits = frequencies << np.uint64(32 - PRECISION)
    for begin in range((len(frequencies) - 1) // lanes * lanes, -1, -lanes):
        width = min(lanes, len(frequencies) - begin)
        part = slice(begin, begin + width)
        state, frequency = states[:width], frequencies[part]
        is_full = state >= limits[part]
        if is_full.any():
            words.append(state[is_full].astype(np.uint16))  # the low 16 bits
            state = np.where(is_full, state >> np.uint64(16), state)
        quotient, remainder = np.divmod(state, frequency)
        states[:width] = (quotient << np.uint64(PRECISION)) + remainder + starts[part]
    body = np.concatenate([states.astype("<u4").view("<u2"), *reversed(words)]).astype("<u2")
    return body.tobytes()


def decode(
    data: bytes, num_symbols: int, contexts: Callable[[int, int], Ints], symbols: Ints, frequencies: Ints, starts: Ints
) -> Ints:
    """The symbols that ``encode`` was given.

    ``contexts(begin, end)`` says which table the symbols at these places were coded with; ``symbols`` of shape (tables,
    TOTAL) has the symbol for every value of the low bits of a state, ``frequencies`` and ``starts`` of shape (tables,
    largest number of symbols) what belongs to it. Raises: ValueError - the data is too short or does not end as it
    should, which a checksum should have found before.
    """
    result = np.zeros(num_symbols, dtype=np.int64)
    if not num_symbols:
        return result
    lanes = num_lanes(num_symbols)
    if len(data) < 4 * lanes or len(data) % 2:
        raise ValueError("the coded stream is too short")
    states = np.frombuffer(data[: 4 * lanes], dtype="<u4").astype(np.int64)
    words = np.frombuffer(data[4 * lanes :], dtype="<u2").astype(np.int64)
    position = 0
    for begin in range(0, num_symbols, lanes):
        width = min(lanes, num_symbols - begin)
        context, state = contexts(begin, begin + width), states[:width]
        slot = state & (TOTAL - 1)
        symbol = symbols[context, slot]
        state = frequencies[context, symbol] * (state >> PRECISION) + slot - starts[context, symbol]
        is_low = state < _LOW
        number = int(np.count_nonzero(is_low))
        if number:
            if position + number > len(words):
                raise ValueError("the coded stream is too short")
            state[is_low] = (state[is_low] << 16) | words[position : position + number]
            position += number
        states[:width] = state
        result[begin : begin + width] = symbol
    if position != len(words) or not (states == _LOW).all():
        raise ValueError("the coded stream does not end where it should")
    return result
