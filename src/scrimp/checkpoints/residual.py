"""The default codec: what moved since the last checkpoint, to a step that the movement sets."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints.bound import Bound, BoundKind
from scrimp.checkpoints.codec import Encoded, Group, TensorError
from scrimp.checkpoints.decode import decode_payload
from scrimp.checkpoints.exact_slots import (
    exact_entry,
    exact_error,
    fitting_base,
    has_lossy_kind,
    is_large,
    may_be_lossy,
)
from scrimp.checkpoints.logarithm import encode_logarithm
from scrimp.checkpoints.measure import ErrorMeter, rms
from scrimp.checkpoints.payload import ByteWriter, Entry, Method, write_payload
from scrimp.checkpoints.steepness import level_of
from scrimp.checkpoints.uniform import NEAREST, Quantised, Unit, encode_uniform, write_level
from scrimp.errors import ConfigError

_ADDITIVE = (BoundKind.EXACT, BoundKind.ABSOLUTE, BoundKind.RMS, BoundKind.MOVEMENT)
_POSSIBLE = {
    "error": _ADDITIVE,
    "vectors": _ADDITIVE,
    "second_moment": (BoundKind.EXACT, BoundKind.FACTOR),
    "first_moment": (*_ADDITIVE, BoundKind.ROOT),
    "momentum": _ADDITIVE,
}
_ERROR, _SECOND_MOMENT = Bound.of_movement(1.0), Bound.factor(3.0)
_EXACT, _FIRST_MOMENT, _MOMENTUM = Bound.exact(), Bound.of_root(0.5), Bound.of_rms(2.25)
_MAY_BE_DROPPED = ("first_moment", "momentum")
_DEAD_ZONE = 0.6  # in steps: of moments, and of weights
_COARSE = 1.5  # where the bound is this many times the movement, which is too little noise to keep a drift
_VECTOR_FACTOR = 2.0  # of second moments of vectors, which have no rows and columns to take their level from
_SHORTEST_VECTOR = 16  # values; below, what a decoder has to know takes more than it saves


@dataclass(frozen=True)
class Residual:
    """Quantised differences from the last reconstruction; every value within a bound that is verified and stored.

    ``error`` bounds weights (their movement by default), ``second_moment`` what stands under a root, as Adam's
    ``exp_avg_sq`` does, ``first_moment`` what is divided by that root, ``momentum`` what is a step itself. ``None``
    drops the moment: it comes back as zeros, and nothing is promised. ``vectors`` is for trained tensors that are small
    (under 256 values) or of one dimension, such as biases and norms: they and their moments keep every bit by default;
    with any other bound their moments are coded as those of matrices are, second ones to a factor of 2 at most. All
    that is no weight or moment keeps every bit, as does a checkpoint without a base.

    Where the loss is steep, an error of a weight costs more: from ``steep_from`` times the mean second moment of a
    tensor on, steps and errors are smaller, with its fourth root and down to an eighth of what ``error`` says. ``None``
    leaves all steps of a tensor alike, as they are without second moments.

    The quantiser's step follows from the bound; for a bound relative to the movement it is the true movement since the
    previous checkpoint (its true values are needed for that; without them, the distance to the base takes its place).
    So errors do not feed on themselves, and stay as they are along a chain of checkpoints.

    Raises: ConfigError - a bound of a kind that makes no sense there.
    Source: closed loop and error bound of Delta-DNN and QD-Compressor; second moments as in arXiv 2309.01507 (never
    zero) and Adafactor (rows and columns).
    """

    error: Bound = _ERROR
    second_moment: Bound = _SECOND_MOMENT
    first_moment: Bound | None = _FIRST_MOMENT
    momentum: Bound | None = _MOMENTUM
    vectors: Bound = _EXACT
    steep_from: float | None = 0.1

    def __post_init__(self) -> None:
        for name, kinds in _POSSIBLE.items():
            bound = getattr(self, name)
            if bound is None and name in _MAY_BE_DROPPED:
                continue
            if not isinstance(bound, Bound) or bound.kind not in kinds:
                possible = [kind.value for kind in kinds] + ["None"] * (name in _MAY_BE_DROPPED)
                raise ConfigError(f"Residual({name}={bound}): it has to be a Bound of kind {', '.join(possible)}")
        level = self.steep_from
        is_number = isinstance(level, (int, float)) and not isinstance(level, bool)
        if level is not None and not (is_number and 0 < level < float("inf")):
            raise ConfigError(f"Residual(steep_from={level!r}): it has to be a number above 0, or None")

    @classmethod
    def small(cls) -> "Residual":
        """As small as training bears for history: errors as large as the movement, little more of second moments than
        the means of rows and columns, no first moments, and biases and norms to a quarter of their movement.
        """
        return cls(
            error=Bound.of_movement(2.0), second_moment=Bound.factor(16.0), first_moment=None, momentum=None,
            vectors=Bound.of_movement(0.25), steep_from=1.0,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """``residual``."""
        return "residual"

    @property
    def base_roles(self) -> frozenset[TensorRole]:
        """Moments forget where they were; all else is coded as a difference."""
        return frozenset(TensorRole) - {TensorRole.FIRST_MOMENT, TensorRole.SECOND_MOMENT, TensorRole.MOMENTUM}

    def encode(
        self,
        group: Group,
        base: Mapping[str, Tensor] | None,
        *,
        previous: Mapping[str, Tensor] | None = None,
    ) -> Encoded:
        """As ``Codec.encode``. Memory: a byte per value and what is decoded."""
        return _Encoding(self, group, base, previous).run()

    def decode(
        self,
        payload: bytes,
        base: Mapping[str, Tensor] | None,
        *,
        slots: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """As ``Codec.decode``."""
        return decode_payload(payload, base, slots)

    def to_state(self) -> dict[str, Any]:
        """The settings as JSON values."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_state() if isinstance(value, Bound) else value for name, value in settings.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Residual":
        """The inverse of ``to_state``. Raises: ConfigError."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(state.keys() - set(known)):
            raise ConfigError(f"the residual codec has no settings {unknown}; it has {known}")
        settings: dict[str, Any] = {
            name: Bound.from_state(value) if name in _POSSIBLE and value is not None else value
            for name, value in state.items()
        }
        return cls(**settings)


class _Encoding:
    """One group on its way."""

    def __init__(
        self,
        codec: Residual,
        group: Group,
        base: Mapping[str, Tensor] | None,
        previous: Mapping[str, Tensor] | None,
    ) -> None:
        self.codec, self.group, self.base, self.previous = codec, group, base, previous
        self.entries: dict[str, Entry] = {}
        self.decoded: dict[str, Tensor] = {}
        self.errors: dict[str, TensorError] = {}
        self.movements: dict[str, float | None] = {}

    def run(self) -> Encoded:
        slots = sorted(self.group.tensors)
        for slot in sorted(slots, key=lambda slot: self.group.roles[slot] is not TensorRole.SECOND_MOMENT):
            # second moments first, because first moments are in units of what they decode to
            if self.base is None or not self.may_be_lossy(slot):
                self.keep_exact(slot)
            else:
                self.encode_slot(slot)
        return Encoded(write_payload(self.entries[slot] for slot in slots), self.decoded, self.errors)

    def may_be_lossy(self, slot: str) -> bool:
        tensor, role = self.group.tensors[slot], self.group.roles[slot]
        if not self.is_vector(slot):
            return may_be_lossy(tensor, role)
        is_wanted = self.codec.vectors.kind is not BoundKind.EXACT and tensor.numel() >= _SHORTEST_VECTOR
        return is_wanted and has_lossy_kind(tensor, role)

    def is_vector(self, slot: str) -> bool:
        return not is_large(self.group.tensors[slot])

    def encode_slot(self, slot: str) -> None:
        role = self.group.roles[slot]
        if role is TensorRole.WEIGHT:
            self.encode_weight(slot)
        elif role is TensorRole.SECOND_MOMENT:
            self.encode_second_moment(slot)
        elif role is TensorRole.FIRST_MOMENT:
            self.encode_first_moment(slot)
        else:
            self.encode_from_zero(slot, self.codec.momentum)

    def encode_weight(self, slot: str) -> None:
        base = fitting_base(self.group.tensors[slot], slot, self.base)
        if base is None:  # nothing that it could be a difference from
            self.keep_exact(slot)
            return
        bound, limit = self.limit_of(slot, self.codec.vectors if self.is_vector(slot) else self.codec.error)
        movement = self.movement(slot)
        is_coarse = movement is not None and limit > _COARSE * movement
        dead_zone = _DEAD_ZONE if is_coarse else NEAREST
        tensor = self.group.tensors[slot]
        unit_slot, unit = self.steepness_of(slot)
        if limit and unit is not None:
            done = encode_uniform(tensor, limit, base=base, unit=unit, dead_zone=dead_zone)
            if done is not None:
                self.put(slot, Method.STEEP, done, bound, limit, needs_base=True, unit_slot=unit_slot, level=unit.level)
                return
        # steps that are finer may be below the last digit of a short float, where these are not
        done = encode_uniform(tensor, limit, base=base, dead_zone=dead_zone) if limit else None
        self.put(slot, Method.UNIFORM, done, bound, limit, needs_base=True)

    def encode_second_moment(self, slot: str) -> None:
        bound = self.codec.second_moment
        if bound.kind is BoundKind.FACTOR and self.is_vector(slot):
            bound = Bound.factor(min(bound.value, _VECTOR_FACTOR))
        done = encode_logarithm(self.group.tensors[slot], bound.value) if bound.kind is BoundKind.FACTOR else None
        self.put(slot, Method.LOGARITHM, done, bound)

    def encode_first_moment(self, slot: str) -> None:
        bound, unit_slot = self.codec.first_moment, self.second_moment_for(slot)
        if bound is None or bound.kind is not BoundKind.ROOT:
            self.encode_from_zero(slot, bound)
        elif unit_slot is None:  # a step itself, as in Lion
            self.encode_from_zero(slot, self.codec.momentum)
        else:
            unit = Unit(self.decoded[unit_slot])
            done = encode_uniform(self.group.tensors[slot], bound.value, unit=unit, dead_zone=_DEAD_ZONE)
            self.put(slot, Method.ROOT, done, bound, unit_slot=unit_slot)

    def encode_from_zero(self, slot: str, bound: Bound | None) -> None:
        if bound is None:
            self.drop(slot)
            return
        bound, limit = self.limit_of(slot, bound)
        done = encode_uniform(self.group.tensors[slot], limit, dead_zone=_DEAD_ZONE) if limit else None
        self.put(slot, Method.UNIFORM, done, bound, limit)

    def put(
        self,
        slot: str,
        method: Method,
        done: Quantised | None,
        bound: Bound,
        limit: float | None = None,
        *,
        needs_base: bool = False,
        unit_slot: str | None = None,
        level: float | None = None,
    ) -> None:
        """Note what was coded, unless keeping every bit takes no more."""
        tensor = self.group.tensors[slot]
        if done is None or len(done.body) >= tensor.numel() * tensor.element_size():
            self.keep_exact(slot)
            return
        body = ByteWriter()
        if unit_slot is not None:
            body.block(unit_slot.encode())
        if level is not None:
            write_level(body, level)
        body.raw(done.body)
        self.entries[slot] = _entry(slot, tensor, method, body.getvalue(), needs_base=needs_base)
        self.decoded[slot] = done.decoded
        self.errors[slot] = done.meter.report(
            tensor, bound=bound, limit=limit, movement=self.movements.get(slot), coded_bytes=len(done.body)
        )

    def keep_exact(self, slot: str) -> None:
        tensor, entry = self.group.tensors[slot], exact_entry(slot, self.group, self.base)
        self.entries[slot], self.decoded[slot] = entry, tensor.detach().clone()
        self.errors[slot] = exact_error(tensor, len(entry.body))

    def drop(self, slot: str) -> None:
        tensor = self.group.tensors[slot]
        meter = ErrorMeter()
        meter.add(tensor.reshape(-1).double(), tensor.reshape(-1).double())
        self.entries[slot], self.decoded[slot] = _entry(slot, tensor, Method.ZERO, b""), torch.zeros_like(tensor)
        self.errors[slot] = meter.report(tensor, bound=None, limit=None, movement=None, coded_bytes=0)

    def steepness_of(self, slot: str) -> tuple[str, Unit] | tuple[None, None]:
        """The second moment that says where a weight's steps are finer, if they are."""
        share, unit_slot = self.codec.steep_from, self.second_moment_for(slot)
        if share is None or unit_slot is None:
            return None, None
        second_moment = self.decoded[unit_slot]
        level = level_of(second_moment, share)
        return (None, None) if level is None else (unit_slot, Unit(second_moment, level))

    def second_moment_for(self, slot: str) -> str | None:
        """The second moment that belongs to a weight or first moment: of its shape, the first by name."""
        shape = self.group.tensors[slot].shape
        fitting = [
            other for other, role in self.group.roles.items()
            if role is TensorRole.SECOND_MOMENT and self.group.tensors[other].shape == shape
        ]  # fmt: skip
        # Adadelta has one of its steps as well, which says the opposite
        return min(fitting, key=lambda other: ("delta" in other, other), default=None)

    def movement(self, slot: str) -> float | None:
        """Root mean square of the change of a slot since the previous checkpoint's true values, if they are known."""
        if slot not in self.movements:
            tensor = self.group.tensors[slot]
            previous = fitting_base(tensor, slot, self.previous)
            self.movements[slot] = None if previous is None else rms(tensor, previous)
        return self.movements[slot]

    def limit_of(self, slot: str, bound: Bound) -> tuple[Bound, float]:
        """The largest absolute error that a bound admits, 0 for none; and what can be promised of it."""
        tensor = self.group.tensors[slot]
        if bound.kind is BoundKind.EXACT:
            return bound, 0.0
        if bound.kind is BoundKind.ABSOLUTE:
            return bound, bound.value
        if bound.kind is BoundKind.RMS:
            return bound, bound.value * rms(tensor)
        movement = self.movement(slot)
        if movement is not None:
            return bound, bound.value * movement
        base = fitting_base(tensor, slot, self.base)
        limit = bound.value * rms(tensor, base)
        return (Bound.absolute(limit) if 0 < limit < float("inf") else Bound.exact()), limit


def _entry(slot: str, tensor: Tensor, method: Method, body: bytes, *, needs_base: bool = False) -> Entry:
    return Entry(slot, tensor.dtype, tuple(tensor.shape), method, needs_base, memoryview(body))
