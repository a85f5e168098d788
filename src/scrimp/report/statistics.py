"""Means with their confidence intervals, and what a difference between paired runs can be said to show."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond that the normal one is close.
_STUDENT = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip
_FEWEST = 3  # pairs that a difference can be told from; two that happen to agree would look certain


@dataclass(frozen=True)
class Interval:
    """A mean of ``num`` values and the half-width of its 95 % confidence interval; no width for a single value."""

    mean: float
    half_width: float | None
    num: int

    @property
    def is_told_from_zero(self) -> bool:
        """Whether at least three values put 0 outside of the interval."""
        return self.num >= _FEWEST and self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of ``values`` (at least one), by Student's t."""
    if len(values) < 2:
        return Interval(values[0], None, len(values))
    factor = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else 1.96
    return Interval(mean(values), factor * stdev(values) / len(values) ** 0.5, len(values))
