"""Axes with readable ticks, and the thinning of long series; plain arithmetic, no drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Beyond these a value cannot be drawn, or told from 0: differences and ratios of such values leave the range of floats.
LARGEST = 1e150
SMALLEST = 1e-150

_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_MANTISSAS = (1, 2, 5)


@dataclass(frozen=True)
class Axis:
    """A range of values, the ticks in it in ascending order, and their labels."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    is_log: bool = False

    def position(self, value: float) -> float:
        """Where ``value`` lies between ``low`` (0) and ``high`` (1); values outside are moved to the nearer end."""
        if self.is_log:
            if value <= 0:
                return 0.0
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(value)
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


def is_drawable(value: float) -> bool:
    """Whether ``value`` is finite and of a size that arithmetic can still work with."""
    return math.isfinite(value) and abs(value) <= LARGEST


def linear_axis(low: float, high: float, *, max_ticks: int = 6, snap: bool = True) -> Axis:
    """A linear axis over at least ``low`` to ``high`` with ticks at 1, 2 or 5 times a power of ten.

    With ``snap`` the axis grows to begin and end at a tick. A range too narrow to tell its ends apart is widened.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-6 * size, SMALLEST):
        margin = 0.1 * size if size > SMALLEST else 1.0
        low, high = low - margin, high + margin
    step = _nice_step((high - low) / (max_ticks - 1))
    # a value within rounding of a tick is on that tick: floor and ceiling must not go one further
    if not snap:
        return _axis(low, high, range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1), step)
    while len(numbers := range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)) > max_ticks:
        step = _nice_step(1.5 * step)
    return _axis(_multiple(numbers[0], step), _multiple(numbers[-1], step), numbers, step)


def log_axis(low: float, high: float, *, max_ticks: int = 6) -> Axis:
    """A logarithmic axis over at least ``low`` to ``high``, both above 1e-150, ticked at 1-2-5 steps or tens."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    steps = [float(f"{mantissa}e{exponent}") for exponent in exponents for mantissa in _MANTISSAS]
    start = max(step for step in steps if step <= low)
    end = min(step for step in steps if step >= high and step > start)
    ticks = [step for step in steps if start <= step <= end]
    if len(ticks) > max_ticks:
        ticks = [float(f"1e{exponent}") for exponent in exponents]
        ticks = [tick for tick in ticks if start <= tick <= end]
        ticks = ticks[:: math.ceil(len(ticks) / max_ticks)]
    return Axis(start, end, tuple(ticks), tuple(_plain(tick) for tick in ticks), is_log=True)


def thin(values: Sequence[float], limit: int = 400) -> list[int]:
    """The indices of at most ``limit`` drawable values that keep the look of a line through all of them.

    Of each of ``limit / 2 - 1`` equal stretches the smallest and the largest value stay, so no spike is lost; the first
    and the last value always stay.
    """
    drawable = [index for index, value in enumerate(values) if is_drawable(value)]
    if len(drawable) <= limit:
        return drawable
    inner = drawable[1:-1]
    num_buckets = limit // 2 - 1
    kept = [drawable[0]]
    for number in range(num_buckets):
        bucket = inner[number * len(inner) // num_buckets : (number + 1) * len(inner) // num_buckets]
        smallest, largest = min(bucket, key=values.__getitem__), max(bucket, key=values.__getitem__)
        kept.extend(sorted({smallest, largest}))
    return [*kept, drawable[-1]]


def _nice_step(smallest: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least ``smallest``."""
    exponent = math.floor(math.log10(smallest))
    candidates = [float(f"{mantissa}e{power}") for power in (exponent, exponent + 1) for mantissa in _MANTISSAS]
    return min(step for step in candidates if step >= smallest * (1 - 1e-9))


def _multiple(number: int, step: float) -> float:
    """``number * step`` without the dust of binary fractions: 3 * 0.1 is 0.3."""
    return float(f"{number * step:.12g}")


def _axis(low: float, high: float, numbers: range, step: float) -> Axis:
    ticks = tuple(_multiple(number, step) for number in numbers)
    return Axis(low, high, ticks, _labels(ticks, step))


def _labels(ticks: Sequence[float], step: float) -> tuple[str, ...]:
    """One label per tick, all with the same number of decimals and the same suffix."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e15 or 0 < largest < 1e-3:
        return tuple(_scientific(tick, step) for tick in ticks)
    factor, suffix = next(((f, s) for f, s in _SUFFIXES if largest >= max(f, 1e4)), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(step / factor) + 1e-9))
    return tuple("0" if tick == 0 else f"{tick / factor:.{decimals}f}{suffix}" for tick in ticks)


def _scientific(value: float, step: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _plain(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e5 else _scientific(value, value)
