"""One decoder for the payloads of all codecs here: what it needs is in the payload, not in a codec's settings."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from scrimp.checkpoints.codebook import decode_codebook
from scrimp.checkpoints.logarithm import decode_logarithm
from scrimp.checkpoints.payload import ByteReader, Entry, Method, read_payload
from scrimp.checkpoints.planes import decode_exact
from scrimp.checkpoints.scores import decode_scores
from scrimp.checkpoints.uniform import Unit, decode_uniform, read_level
from scrimp.errors import ConfigError, CorruptCheckpointError, ScrimpError


def decode_payload(
    payload: bytes, base: Mapping[str, Tensor] | None, slots: Collection[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a payload that one of the codecs here wrote; see ``Codec.decode``."""
    entries = read_payload(payload)
    wanted = list(entries) if slots is None else list(slots)
    if unknown := [slot for slot in wanted if slot not in entries]:
        raise ConfigError(f"the payload has no slots {unknown}; it has {list(entries)}")
    try:
        return _Decoding(entries, base or {}).run(wanted)
    except ScrimpError:
        raise
    except (ArithmeticError, IndexError, KeyError, MemoryError, RuntimeError, ValueError) as error:
        # what altered bytes ask for may be anything, such as a tensor of 2^60 values
        raise CorruptCheckpointError(f"a payload cannot be decoded ({error}); it was altered") from error


class _Decoding:
    """Slots of one payload; what others are in units of is decoded once."""

    def __init__(self, entries: Mapping[str, Entry], base: Mapping[str, Tensor]) -> None:
        self.entries, self.base = entries, base
        self.done: dict[str, Tensor] = {}

    def run(self, wanted: list[str]) -> dict[str, Tensor]:
        return {slot: self.slot(slot) for slot in wanted}

    def slot(self, slot: str) -> Tensor:
        if slot not in self.done:
            self.done[slot] = self.decode(self.entries[slot])
        return self.done[slot]

    def decode(self, entry: Entry) -> Tensor:
        base = self.base_of(entry) if entry.needs_base else None
        match entry.method:
            case Method.EXACT:
                return decode_exact(entry.body, entry.dtype, entry.shape, base)
            case Method.ZERO:
                return torch.zeros(entry.shape, dtype=entry.dtype)
            case Method.UNIFORM:
                return decode_uniform(entry.body, entry.dtype, entry.shape, base=base)
            case Method.LOGARITHM:
                return decode_logarithm(entry.body, entry.dtype, entry.shape)
            case Method.CODEBOOK:
                return decode_codebook(entry.body, entry.dtype, entry.shape, base)
            case Method.SCORES:
                return decode_scores(entry.body, entry.dtype, entry.shape, base)
            case Method.ROOT:
                body = ByteReader(entry.body)
                unit = Unit(self.second_moment(entry, body))
                return decode_uniform(body.rest(), entry.dtype, entry.shape, unit=unit)
            case Method.STEEP:
                body = ByteReader(entry.body)
                unit = Unit(self.second_moment(entry, body), level=read_level(body))
                return decode_uniform(body.rest(), entry.dtype, entry.shape, base=base, unit=unit)

    def second_moment(self, entry: Entry, body: ByteReader) -> Tensor:
        """What ``entry`` is in units of."""
        unit = self.entries[bytes(body.block()).decode()]
        if unit.method in (Method.ROOT, Method.STEEP) or unit.shape != entry.shape:
            raise CorruptCheckpointError(f"slot {entry.slot!r} is in units of what is none; it was altered")
        return self.slot(unit.slot)

    def base_of(self, entry: Entry) -> Tensor:
        found = self.base.get(entry.slot)
        if found is None:
            raise ConfigError(f"slot {entry.slot!r} was coded against a base, and none is given")
        if found.shape != entry.shape or found.dtype != entry.dtype:
            raise ConfigError(
                f"slot {entry.slot!r} is {entry.dtype} of {entry.shape}; "
                f"the base is {found.dtype} of {tuple(found.shape)}"
            )
        return found.contiguous()
