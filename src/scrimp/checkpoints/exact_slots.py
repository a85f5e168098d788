"""Slots that must keep every bit, and how they are coded."""

from collections.abc import Mapping

import torch
from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints.bound import Bound
from scrimp.checkpoints.codec import Group, TensorError
from scrimp.checkpoints.payload import Entry, Method
from scrimp.checkpoints.planes import encode_exact
from scrimp.checkpoints.scores import encode_scores

SMALLEST_LOSSY = 256
"""Values; below, headers and tables take what rounding saves."""
_LOSSY_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LOSSY_ROLES = (TensorRole.WEIGHT, TensorRole.FIRST_MOMENT, TensorRole.SECOND_MOMENT, TensorRole.MOMENTUM)


def may_be_lossy(tensor: Tensor, role: TensorRole) -> bool:
    """Whether a codec may lose bits of it by default: a large float matrix that is trained, or a moment of one."""
    return is_large(tensor) and has_lossy_kind(tensor, role)


def is_large(tensor: Tensor) -> bool:
    """A matrix, or more than that, of at least 256 values; dimensions of length 1 do not count."""
    return sum(size > 1 for size in tensor.shape) >= 2 and tensor.numel() >= SMALLEST_LOSSY


def has_lossy_kind(tensor: Tensor, role: TensorRole) -> bool:
    """Whether it is a weight or moment in a float type that can be rounded."""
    return tensor.dtype in _LOSSY_DTYPES and role in _LOSSY_ROLES


def exact_entry(slot: str, group: Group, base: Mapping[str, Tensor] | None) -> Entry:
    """One slot, bit by bit, from the base if that fits and helps."""
    tensor = group.tensors[slot]
    own_base = fitting_base(tensor, slot, base)
    method, (body, needs_base) = Method.EXACT, encode_exact(tensor, own_base)
    if group.roles[slot] is TensorRole.SCORE:
        as_scores = encode_scores(tensor, own_base)
        if as_scores is not None and len(as_scores[0]) < len(body):
            method, (body, needs_base) = Method.SCORES, as_scores
    return Entry(slot, tensor.dtype, tuple(tensor.shape), method, needs_base, memoryview(body))


def exact_error(tensor: Tensor, coded_bytes: int) -> TensorError:
    """The report of a slot that kept every bit."""
    raw_bytes = tensor.numel() * tensor.element_size()
    return TensorError(Bound.exact(), limit=0.0, relative_to_movement=0.0, coded_bytes=coded_bytes, raw_bytes=raw_bytes)


def fitting_base(tensor: Tensor, slot: str, base: Mapping[str, Tensor] | None) -> Tensor | None:
    """The slot's base (or its previous values), if there are any of its shape and dtype."""
    found = None if base is None else base.get(slot)
    fits = found is not None and found.shape == tensor.shape and found.dtype == tensor.dtype
    return found if fits else None
