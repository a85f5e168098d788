"""Sample pruning, slow and obvious: one sample at a time, whole numbers and fractions."""

import math
from fractions import Fraction

ONE = 2**30


def systematic(units: list[int], order: list[int], start: int) -> tuple[list[int], list[float]]:
    """Walk along the order; a sample is taken for every multiple of ONE that its segment crosses."""
    visits, weights, reached = [], [], start
    for sample in order:
        before, reached = reached, reached + units[sample]
        for _ in range(reached // ONE - before // ONE):
            visits.append(sample)
            weights.append(ONE / units[sample])
    return visits, weights


def budget_probabilities(shape: list[float], floors: list[float], num_visits: int) -> list[float]:
    """clip(c * shape, floor, 1) with the c that makes the sum num_visits, by bisection over all samples."""
    low, high = 0.0, 2 / min(shape)
    for _ in range(100):
        middle = (low + high) / 2
        if sum(min(1.0, max(floor, middle * s)) for s, floor in zip(shape, floors, strict=True)) <= num_visits:
            low = middle
        else:
            high = middle
    return [min(1.0, max(floor, low * s)) for s, floor in zip(shape, floors, strict=True)]


def infobatch_probabilities(scores: list[float], prune_ratio: float) -> list[float]:
    """The paper's rule: 1 - r below the mean of the known scores, else 1. None for no score."""
    known = [Fraction(score) for score in scores if not math.isnan(score)]
    mean = sum(known) / len(known)
    return [1.0 if math.isnan(score) or Fraction(score) >= mean else 1 - prune_ratio for score in scores]


def weighted_token_mean(losses: list[list[float]], mask: list[list[int]], weights: list[float]) -> float:
    """Sum over valid tokens, each times its sample's weight, over the sum of these weights."""
    total = count = 0.0
    for row, valid, weight in zip(losses, mask, weights, strict=True):
        for loss, is_valid in zip(row, valid, strict=True):
            if is_valid:
                total += weight * loss
                count += weight
    return total / count


def full_epochs(num_epochs: int, anneal: Fraction, num_full_first: int) -> list[bool]:
    """Epoch by epoch, counted from 1 as the paper does: full at first, and after (1 - anneal) * num_epochs."""
    end = (1 - anneal) * num_epochs
    return [number <= num_full_first or number > math.floor(end) for number in range(1, num_epochs + 1)]
