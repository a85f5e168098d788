"""Inclusion probabilities with an exact sum, floors, and a shape that follows the scores.

Samples with the same score and the same floor form a cell; everything is worked out per cell.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from scrimp.samples.draw import ONE


@dataclass(frozen=True)
class CellUnits:
    """Probability units per cell; ``num_extra`` samples of cell ``extra_cell`` get one unit more."""

    units: Int64[Tensor, " cells"]
    extra_cell: int
    num_extra: int


def fill_budget(
    shape: Float64[Tensor, " cells"],
    floors: Float64[Tensor, " cells"],
    counts: Int64[Tensor, " cells"],
    num_visits: int,
) -> CellUnits:
    """Units for ``clip(c * shape, floor, 1)``, with the one c whose probabilities sum to exactly ``num_visits``.

    Args: shape - positive. floors - in [0, 1]; if they alone exceed the budget they are all lowered in proportion.
        counts - samples per cell. num_visits - from 1 to the number of samples.
    The sum over samples is ``num_visits * ONE``, to the unit. Among cells of one floor, a larger shape never has fewer
    units.
    Cost: about a hundred passes over the cells.
    """
    total = num_visits * ONE
    lowest = (floors * ONE).ceil().clamp_(1, ONE).to(torch.int64)
    if (asked := _sum(lowest, counts)) > total:
        lowest = (lowest.double() * (total / asked)).floor().clamp_(min=1).to(torch.int64)
    units = _clip(shape, lowest, _level(shape, lowest, counts, total))
    return _add_rest(units, shape, counts, total - _sum(units, counts))


def _clip(shape: Tensor, lowest: Tensor, level: float) -> Tensor:
    return torch.maximum((shape * level).clamp(max=ONE).to(torch.int64), lowest)


def _level(shape: Tensor, lowest: Tensor, counts: Tensor, total: int) -> float:
    """A level whose units do not exceed the total, and fall short of it by a rounding error only."""
    shapes, floors, sizes = shape.numpy(), lowest.numpy().astype(np.float64), counts.numpy().astype(np.float64)
    low, high = 0.0, 2.0 * ONE / float(shape.min())
    while low < (middle := (low + high) / 2) < high:
        if sizes @ np.clip(middle * shapes, floors, ONE) <= total:
            low = middle
        else:
            high = middle
    while _sum(_clip(shape, lowest, low), counts) > total:  # the sum above was rounded
        low *= 1 - 1e-12
    return low


def _add_rest(units: Tensor, shape: Tensor, counts: Tensor, rest: int) -> CellUnits:
    """Hand out what rounding down left over: evenly as far as it goes, the last units to the largest shapes first."""
    while rest > 0:
        has_room = units < ONE
        num_with_room = int(counts[has_room].sum())
        each = min(rest // num_with_room, int((ONE - units[has_room]).min()))
        if each == 0:
            break
        units = torch.where(has_room, units + each, units)
        rest -= each * num_with_room
    for cell in shape.argsort(descending=True, stable=True).tolist():
        if rest == 0:
            break
        if int(units[cell]) == ONE:
            continue
        if int(counts[cell]) > rest:
            return CellUnits(units, cell, rest)
        units[cell] += 1
        rest -= int(counts[cell])
    return CellUnits(units, 0, 0)


def _sum(units: Tensor, counts: Tensor) -> int:
    return int((units * counts).sum())
