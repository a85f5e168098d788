"""Slow and obvious: slices element by element, changes as plain Python lists."""

import itertools

import torch
from torch import Tensor

PlainChange = dict[str, dict[int, list[int]]]


def slice_slowly(tensor: Tensor, kept: dict[int, list[int]]) -> Tensor:
    """Copy one number after the other."""
    choices = [kept.get(dim, list(range(size))) for dim, size in enumerate(tensor.shape)]
    result = torch.zeros([len(choice) for choice in choices], dtype=tensor.dtype)
    for target in itertools.product(*(range(len(choice)) for choice in choices)):
        result[target] = tensor[tuple(choice[i] for choice, i in zip(choices, target, strict=True))]
    return result


def compose_slowly(first: PlainChange, second: PlainChange) -> PlainChange:
    """Follow each index of the second change back through the first."""
    result: PlainChange = {}
    for change in (first, second):
        for name, dims in change.items():
            for dim in dims:
                inner = first.get(name, {}).get(dim)
                outer = second.get(name, {}).get(dim)
                if inner is None or outer is None:
                    result.setdefault(name, {})[dim] = list(dims[dim])
                else:
                    result.setdefault(name, {})[dim] = [inner[i] for i in outer]
    return result


def apply_slowly(tensors: dict[str, Tensor], change: PlainChange) -> dict[str, Tensor]:
    """Every tensor after the change."""
    return {name: slice_slowly(tensor, change.get(name, {})) for name, tensor in tensors.items()}
