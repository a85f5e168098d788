"""Inclusion probabilities with an exact sum, floors, and a shape that follows the scores.

Samples with the same score and the same floor form a cell; everything is worked out per cell.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scrimp.samples.draw import ONE

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CellUnits:
    """Probability units per cell; ``num_extra`` samples of cell ``extra_cell`` get one unit more."""

    units: Ints
    extra_cell: int
    num_extra: int


def fill_budget(shape: Floats, floors: Floats, counts: Ints, num_visits: int) -> CellUnits:
    """Units for ``clip(c * shape, floor, 1)``, with the one c whose probabilities sum to exactly ``num_visits``.

    Args: shape - positive. floors - in [0, 1]; if they alone exceed the budget they are all lowered in proportion.
        counts - samples per cell. num_visits - from 1 to the number of samples. One entry per cell in all three.
    The sum over samples is ``num_visits * ONE``, to the unit. Among cells of one floor, a larger shape never has fewer
    units.
    Cost: about sixty passes over the cells.
    """
    total = num_visits * ONE
    lowest = np.ceil(floors * ONE).clip(1, ONE).astype(np.int64)
    if (asked := int(lowest @ counts)) > total:
        lowest = np.maximum(lowest * (total / asked), 1).astype(np.int64)
    units = _clip(shape, lowest, _level(shape, lowest, counts, total))
    return _add_rest(units, shape, counts, total - int(units @ counts))


def _clip(shape: Floats, lowest: Ints, level: float) -> Ints:
    return np.maximum(np.minimum(shape * level, ONE).astype(np.int64), lowest)


def _level(shape: Floats, lowest: Ints, counts: Ints, total: int) -> float:
    """A level whose units do not exceed the total, and fall short of it by rounding only."""
    floors, sizes = lowest.astype(np.float64), counts.astype(np.float64)
    low, high = 0.0, 2.0 * ONE / float(shape.min())
    while low < (middle := (low + high) / 2) < high:
        if sizes @ np.maximum(np.minimum(middle * shape, ONE), floors) <= total:
            low = middle
        else:
            high = middle
    while int(_clip(shape, lowest, low) @ counts) > total:  # the sum above was rounded
        low *= 1 - 1e-12
    return low


def _add_rest(units: Ints, shape: Floats, counts: Ints, rest: int) -> CellUnits:
    """Hand out what rounding down left over: evenly as far as it goes, the last units to the largest shapes first."""
    while rest > 0:
        has_room = units < ONE
        num_with_room = int(counts[has_room].sum())
        each = min(rest // num_with_room, int((ONE - units[has_room]).min()))
        if each == 0:
            break
        units = units + each * has_room
        rest -= each * num_with_room
    largest_first = np.argsort(-shape, kind="stable")
    largest_first = largest_first[units[largest_first] < ONE]
    reached = np.cumsum(counts[largest_first])
    num_whole = int(np.searchsorted(reached, rest, side="right"))
    units[largest_first[:num_whole]] += 1
    rest -= int(reached[num_whole - 1]) if num_whole else 0
    return CellUnits(units, int(largest_first[num_whole]), rest) if rest else CellUnits(units, 0, 0)
