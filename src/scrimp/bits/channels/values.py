"""What is known of a tensor in a forward pass: the channel slot of each element, and its value where that is fixed."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """A tensor as the graph sees it.

    ``labels``: the atom of each element, int64, stored with size 1 along every axis along which nothing changes; None
    where no element belongs to a channel. ``constants``: what each element is whatever the input, float64, NaN where
    that depends on the input; stored alike; None where all does. ``varies``: whether the input has a part in it.
    """

    shape: tuple[int, ...]
    labels: Tensor | None = None
    constants: Tensor | None = None
    varies: bool = True

    @property
    def axes(self) -> list[int]:
        """The axes along which the labels differ."""
        return [] if self.labels is None else [axis for axis, size in enumerate(self.labels.shape) if size > 1]

    def full_labels(self) -> Tensor | None:
        """The labels in the tensor's shape (memory only for what differs)."""
        return None if self.labels is None else self.labels.expand(self.shape)

    def full_constants(self) -> Tensor | None:
        """The constants in the tensor's shape."""
        return None if self.constants is None else self.constants.expand(self.shape)

    def zeros_along(self, axis: int) -> Tensor:
        """For each index along ``axis`` whether all is zero there, whatever the input."""
        if self.constants is None:
            return torch.zeros(self.shape[axis], dtype=torch.bool)
        return (self.constants.movedim(axis, 0).flatten(1) == 0).all(dim=1).expand(self.shape[axis]).clone()


def compact(tensor: Tensor) -> Tensor:
    """``tensor`` with size 1 along every axis along which nothing changes; two NaNs are equal."""
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(axis, 0, 1)
            if tensor.stride(axis) == 0 or bool(((tensor == first) | (tensor.isnan() & first.isnan())).all()):
                tensor = first
    return tensor


def known(constants: Tensor | None) -> Tensor | None:
    """``constants`` compact, or None when nothing is known."""
    if constants is None or bool(constants.isnan().all()):
        return None
    return compact(constants.to(torch.float64))


def align(tensor: Tensor, num_axes: int) -> Tensor:
    """``tensor`` with axes of size 1 put before, as broadcasting does."""
    return tensor.reshape((1,) * (num_axes - tensor.dim()) + tuple(tensor.shape))
