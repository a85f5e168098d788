"""A peer for ``checkpoints_resume.py``: values on a uniform grid, and differences of the codes, entropy-coded.

In the manner of QD-Compressor (quantise, then difference) and Inshrinkerator, without their search for levels by
sensitivity. Second moments are put on the grid by their root, which spares them most of the zeros. The grid is anew for
every checkpoint, so errors do not add up; small tensors, those of one dimension and keyframes keep every bit, as with
the other codecs.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints import Encoded, Group, TensorError
from scrimp.checkpoints.decode import decode_payload
from scrimp.checkpoints.entropy import decode_symbols, encode_symbols
from scrimp.checkpoints.exact_slots import exact_entry, exact_error, fitting_base, may_be_lossy
from scrimp.checkpoints.payload import ByteReader, ByteWriter, write_payload

_EXACT, _VALUES, _ROOTS = range(3)


@dataclass(frozen=True)
class QuantisedValues:
    """``2**num_bits - 1`` levels from minus to plus the largest magnitude of each tensor."""

    num_bits: int = 8

    @property
    def name(self) -> str:
        return "quantised-values"

    @property
    def base_roles(self) -> frozenset[TensorRole]:
        return frozenset(TensorRole)

    def encode(
        self,
        group: Group,
        base: Mapping[str, Tensor] | None,
        *,
        previous: Mapping[str, Tensor] | None = None,  # noqa: ARG002 - a codec has this signature
    ) -> Encoded:
        out, decoded, errors = ByteWriter(), {}, {}
        for slot, tensor in sorted(group.tensors.items()):
            slot_base = fitting_base(tensor, slot, base)
            out.block(slot.encode())
            if slot_base is None or not may_be_lossy(tensor, group.roles[slot]):
                entry = exact_entry(slot, group, base)
                out.byte(_EXACT)
                out.block(write_payload([entry]))
                decoded[slot], errors[slot] = tensor.detach().clone(), exact_error(tensor, len(entry.body))
                continue
            kind = _ROOTS if group.roles[slot] is TensorRole.SECOND_MOMENT else _VALUES
            values = tensor.sqrt() if kind == _ROOTS else tensor
            step = float(values.abs().max()) / (2 ** (self.num_bits - 1) - 1) or 1.0
            codes, base_codes = _codes(values, step), _codes(slot_base.sqrt() if kind == _ROOTS else slot_base, step)
            body = encode_symbols((codes - base_codes).astype(np.uint8))
            out.byte(kind)
            out.block(np.float64(step).tobytes() + np.array(tensor.shape, dtype=np.int64).tobytes())
            out.block(body)
            decoded[slot] = _values(codes, step, kind).view(tensor.shape)
            difference = (decoded[slot] - tensor).double()
            rms = float(difference.square().mean().sqrt())
            errors[slot] = TensorError(
                None, max_abs=float(difference.abs().max()), rms=rms,
                relative_to_tensor=rms / (float(tensor.double().square().mean().sqrt()) or 1.0),
                coded_bytes=len(body), raw_bytes=4 * tensor.numel(),
            )  # fmt: skip
        return Encoded(out.getvalue(), decoded, errors)

    def decode(
        self, payload: bytes, base: Mapping[str, Tensor] | None, *, slots: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        data, decoded = ByteReader(payload), {}
        while not data.is_done:
            slot, kind, first = bytes(data.block()).decode(), data.byte(), data.block()
            if kind == _EXACT:
                if slots is None or slot in slots:
                    decoded |= decode_payload(bytes(first), base)
                continue
            body = data.block()
            if slots is not None and slot not in slots:
                continue
            assert base is not None
            step, shape = float(np.frombuffer(first[:8])[0]), np.frombuffer(first[8:], dtype=np.int64).tolist()
            base_codes = _codes(base[slot].sqrt() if kind == _ROOTS else base[slot], step)
            differences = decode_symbols(ByteReader(body), len(base_codes))
            codes = (differences + base_codes.astype(np.uint8)).view(np.int8).astype(np.int64)
            decoded[slot] = _values(codes, step, kind).view(shape)
        return decoded

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "QuantisedValues":
        return cls(**state)


def _codes(values: Tensor, step: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The base may lie outside of the grid; its codes are clipped alike on both sides."""
    codes = (values.reshape(-1).double() / step).round().clamp(-127, 127)
    return codes.numpy().astype(np.int64)


def _values(codes: np.ndarray[Any, np.dtype[np.int64]], step: float, kind: int) -> Tensor:
    values = torch.from_numpy(codes * step).to(torch.float32)
    return values.square() if kind == _ROOTS else values
