"""What coding did to a tensor, added up block by block."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scrimp.checkpoints.bound import Bound
from scrimp.checkpoints.codec import TensorError

BLOCK = 1 << 17
"""Values that are worked on at once: some such blocks fit into a core's cache."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for itself, float32 for all shorter floats."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def root(values: Tensor) -> Tensor:
    """Square roots, rounded as IEEE 754 says, on every machine alike; torch's are off by a last digit with MKL."""
    with np.errstate(invalid="ignore"):  # a root of what is below zero is no number, as in torch
        return torch.from_numpy(np.sqrt(values.numpy()))


def rms(tensor: Tensor, other: Tensor | None = None) -> float:
    """Root mean square of the finite values, or of the finite differences from ``other``; 0 when there are none."""
    total, count = 0.0, 0
    flat = tensor.reshape(-1)
    flat_other = None if other is None else other.reshape(-1)
    dtype = compute_dtype(tensor.dtype)
    for begin in range(0, len(flat), BLOCK):
        block = flat[begin : begin + BLOCK].to(dtype)
        if flat_other is not None:
            block = block - flat_other[begin : begin + BLOCK].to(dtype)
        square, num_finite = _sum_of_squares(block)
        total, count = total + square, count + num_finite
    return math.sqrt(total / count) if count else 0.0


@dataclass
class ErrorMeter:
    """Running sums over a tensor's blocks. What is not finite does not count."""

    max_abs: float = 0.0
    square_error: float = 0.0
    square_value: float = 0.0
    num_finite: int = 0

    def add(self, true: Tensor, error: Tensor, largest: float | None = None) -> None:
        """A block of true values and of their errors; errors of values that are not finite may be anything.

        ``largest`` is the largest magnitude of ``error``, if that is known.
        """
        square, num_finite = _sum_of_squares(true)
        if num_finite < true.numel():
            error, largest = error[true.isfinite()], None
        if error.numel():
            self.max_abs = max(self.max_abs, largest_magnitude(error) if largest is None else largest)
            self.square_error += _sum_of_squares(error)[0]
        self.square_value += square
        self.num_finite += num_finite

    def report(
        self,
        tensor: Tensor,
        *,
        bound: Bound | None,
        limit: float | None,
        movement: float | None,
        coded_bytes: int,
    ) -> TensorError:
        """The error of the whole tensor. ``movement`` is its rms, ``None`` when that is not known."""
        error = math.sqrt(self.square_error / self.num_finite) if self.num_finite else 0.0
        size = math.sqrt(self.square_value / self.num_finite) if self.num_finite else 0.0
        return TensorError(
            bound=bound,
            limit=limit,
            max_abs=self.max_abs,
            rms=error,
            relative_to_tensor=error / size if size else None if error else 0.0,
            relative_to_movement=error / movement if movement else None,
            coded_bytes=coded_bytes,
            raw_bytes=tensor.numel() * tensor.element_size(),
        )


def largest_magnitude(values: Tensor) -> float:
    """Of a tensor that is not empty; NaN if any value is."""
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def _sum_of_squares(block: Tensor) -> tuple[float, int]:
    """Of the finite values, and how many they are. One pass where all are finite and their squares, too."""
    fast = float(torch.dot(block, block))
    if math.isfinite(fast) and (fast > 1e-30 or not block.any()):
        return fast, block.numel()
    finite = block[block.isfinite()].double()
    # squares of the largest float64 do not fit into one: as a multiple of the largest value, which is near enough
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    if scale == 0.0:
        return 0.0, finite.numel()
    return float((finite / scale).square().sum()) * scale * scale, finite.numel()
