"""Writing one checkpoint: its link in the history, its exact copy, and what the next one will build upon."""

from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import zstandard
from torch import Tensor

from scrimp._core.structure_change import StructureChange
from scrimp.checkpoints.chain import BaseState, GroupEntry, Hop, slice_group, state_digest, tensor_checksum
from scrimp.checkpoints.codec import Codec, Encoded, Group, TensorError
from scrimp.checkpoints.container import ContainerWriter
from scrimp.checkpoints.files import NewFile
from scrimp.checkpoints.layout import GroupLayout, Layout
from scrimp.checkpoints.lossless import Lossless, encode_shared
from scrimp.checkpoints.manifest import Base, FileEntry
from scrimp.errors import StructureError


@dataclass
class Recent:
    """The newest state of the history as it decodes, kept in memory so that the next save need not read it again.

    Of each group only the slots that the codec can use; ``true`` are the weights as they were before coding.
    """

    base: Base
    layout: Layout
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    true: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    key_bytes: dict[str, int] = field(default_factory=dict)

    def group(self, group: GroupLayout, slots: Collection[str]) -> dict[str, Tensor] | None:
        """As of any base."""
        found = self.tensors.get(group.name)
        own = self.layout.by_name.get(group.name)
        if found is None or own is None or own.is_bundle != group.is_bundle:
            return None
        return {slot: tensor for slot, tensor in found.items() if slot in slots}


@dataclass(frozen=True)
class Snapshot:
    """What is to be saved, apart from the model that trains on."""

    step: int
    layout: Layout
    scalars: list[Any]
    tensors: Mapping[str, Tensor]
    change: StructureChange | None = None


@dataclass(frozen=True)
class Written:
    """What was written, before any of it has a name."""

    history: FileEntry
    exact: FileEntry | None
    is_exact: bool
    errors: Mapping[str, TensorError]
    recent: Recent


class HistoryWriter:
    """Encodes a snapshot group by group, into the history and, if wanted, as an exact copy."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def write(
        self,
        snapshot: Snapshot,
        base: BaseState | None,
        *,
        base_layout: Layout | None,
        true: MutableMapping[str, dict[str, Tensor]],
        key_bytes: Mapping[str, int],
        history: NewFile,
        exact: NewFile | None,
        suffix: str = "",
        keep_true: bool = True,
    ) -> Written:
        """Write both files to their end and give back what they hold; naming them is the caller's business.

        Args: base - what to build upon; ``None`` for a keyframe. true - the weights at the base before coding, by
            group, as far as known. key_bytes - by group, what it takes without a base, as far as known. keep_true -
            keep a copy of the weights as they are for the next checkpoint, in ``Written.recent``.
        Cost: one encoding with the codec and one without loss; memory for one group, and for ``Written.recent``.
        """
        out = _FileWriter(history, snapshot, self.codec, base, base_layout)
        copy = None if exact is None else _FileWriter(exact, snapshot, Lossless(), None, None)
        recent = Recent(Base(snapshot.step, ""), snapshot.layout)
        errors: dict[str, TensorError] = {}
        for group in snapshot.layout.groups:
            packed = group.pack(snapshot.tensors)
            encoded, is_key, key_size = self._encode(
                group, packed, base, base_layout, snapshot.change, true.get(group.name), key_bytes.get(group.name)
            )
            out.add(group, encoded, is_key, key_size)
            recent.key_bytes[group.name] = key_size
            errors |= _by_path(group, encoded.errors)
            recent.tensors[group.name] = {
                slot: tensor for slot, tensor in encoded.decoded.items() if packed.roles[slot] in self.codec.base_roles
            }
            is_lossy = any(not error.is_exact for error in encoded.errors.values())
            if is_lossy and keep_true:
                recent.true[group.name] = {
                    slot: tensor.clone()
                    for slot, tensor in packed.tensors.items()
                    if packed.roles[slot] in self.codec.base_roles
                }
            if isinstance(base, Recent):  # its place is taken by the new one, so that there are never two of all
                base.tensors.pop(group.name, None)
            true.pop(group.name, None)
            if copy is not None:
                copy.add(group, encode_shared(packed, None), is_key=True, key_size=0)
        is_exact = all(error.is_exact for error in errors.values())
        entry = out.finish("history", suffix)
        recent.base = Base(snapshot.step, entry.state)
        keeps_copy = copy is not None and not is_exact
        return Written(entry, copy.finish("exact", suffix) if copy and keeps_copy else None, is_exact, errors, recent)

    def _encode(
        self,
        group: GroupLayout,
        packed: Group,
        base: BaseState | None,
        base_layout: Layout | None,
        change: StructureChange | None,
        true: Mapping[str, Tensor] | None,
        key_size: int | None,
    ) -> tuple[Encoded, bool, int]:
        """The group's payload, whether it stands alone, and its size if it does (or would)."""
        useful = [slot for slot, role in packed.roles.items() if role in self.codec.base_roles]
        if base is not None and not useful:  # moments alone: no keyframe, but nothing to build upon either
            encoded = self.codec.encode(packed, {})
            return encoded, True, len(encoded.payload)
        found = base.group(group, useful) if base is not None else None
        if found and change is not None:
            before = (base_layout.by_name.get(group.name) if base_layout else None) or group
            try:
                found = slice_group(change, before, found)
                true = true and slice_group(change, before, true)
            except StructureError:  # not of this model: as if nothing had been known
                found = None
        found = found and _fitting(found, packed)
        if found:
            encoded = self.codec.encode(packed, found, previous=true and _fitting(true, packed))
            if key_size is None or len(encoded.payload) < key_size:
                return encoded, False, key_size or 0
            alone = self.codec.encode(packed, None)
            if len(alone.payload) > len(encoded.payload):
                return encoded, False, len(alone.payload)
            return alone, True, len(alone.payload)
        encoded = self.codec.encode(packed, None)
        return encoded, True, len(encoded.payload)


class _FileWriter:
    """One file on its way."""

    def __init__(
        self, new: NewFile, snapshot: Snapshot, codec: Codec, base: BaseState | None, base_layout: Layout | None
    ) -> None:
        self._new, self._snapshot, self._base, self._base_layout = new, snapshot, base, base_layout
        self._out = ContainerWriter(new.file)
        self._hop = Hop(codec.name, codec.to_state(), codec.base_roles, snapshot.change if base is not None else None)
        self._entries: list[GroupEntry] = []
        self._digested: list[tuple[str, str, Tensor, int]] = []

    def add(self, group: GroupLayout, encoded: Encoded, is_key: bool, key_size: int) -> None:
        """One group."""
        block = self._out.add(encoded.payload)
        names = [slot for slot, _, _ in group.coded_slots]
        checksums = tuple(tensor_checksum(encoded.decoded[slot]) for slot in names)
        # meta tensors: the digest wants types and shapes, and the values may go
        self._digested += [
            (group.name, slot, encoded.decoded[slot].to("meta"), checksum)
            for slot, checksum in zip(names, checksums, strict=True)
        ]
        errors = tuple(_error_to_json(encoded.errors.get(slot)) for slot in names)
        self._entries.append(GroupEntry((block,), (), is_key, key_size, checksums, errors))

    def finish(self, kind: str, suffix: str) -> FileEntry:
        """The rest of the file."""
        snapshot = self._snapshot
        base = None if self._base is None or all(entry.is_key for entry in self._entries) else self._base.base
        return finish_file(
            self._out, self._new, kind, snapshot.step, suffix,
            layout=snapshot.layout, base=base, base_layout=self._base_layout, scalars=snapshot.scalars,
            hops=(self._hop,), entries=self._entries, state=state_digest(self._digested),
        )  # fmt: skip


def finish_file(
    out: ContainerWriter,
    new: NewFile,
    kind: str,
    step: int,
    suffix: str,
    *,
    layout: Layout,
    base: Base | None,
    base_layout: Layout | None,
    scalars: list[Any],
    hops: tuple[Hop, ...],
    entries: list[GroupEntry],
    state: str,
) -> FileEntry:
    """Append layout and index to a file whose payloads are written, publish it, and describe it.

    The layout is left out when the base has the same.
    """
    shares_layout = base is not None and base_layout is not None and base_layout.digest == layout.digest
    block = None if shares_layout else out.add(zstandard.ZstdCompressor(level=19).compress(layout.to_bytes()))
    index = {
        "kind": kind, "step": step, "layout_digest": layout.digest, "layout": block,
        "base": None if base is None else [base.step, base.state], "state": state, "scalars": scalars,
        "hops": [hop.to_json() for hop in hops], "groups": [entry.to_json() for entry in entries],
    }  # fmt: skip
    digest = out.finish(index)
    is_key = base is None or base.step is None
    kind = kind if kind == "exact" else "key" if is_key else "delta"
    name = f"step-{step:09d}{suffix}.{kind}-{digest[:16]}.scrimp"
    new.publish(name)
    return FileEntry(name, out.num_bytes, digest, state, base)


def _fitting(tensors: Mapping[str, Tensor], packed: Group) -> dict[str, Tensor]:
    """Those that have the shape and type of the slot that they are of."""
    return {
        slot: tensor
        for slot, tensor in tensors.items()
        if slot in packed.tensors
        and tensor.shape == packed.tensors[slot].shape
        and tensor.dtype == packed.tensors[slot].dtype
    }


def _by_path(group: GroupLayout, errors: Mapping[str, TensorError]) -> dict[str, TensorError]:
    if group.is_bundle:
        (error,) = errors.values()
        return {group.name: error}
    return {slot.path: errors[slot.name] for slot in group.slots if slot.name in errors}


def _error_to_json(error: TensorError | None) -> list[Any] | None:
    if error is None:
        return None
    bound = None if error.bound is None else [error.bound.kind.value, error.bound.value]
    if error.is_exact:
        return [bound, error.coded_bytes, error.raw_bytes]
    numbers = (error.limit, error.max_abs, error.rms, error.relative_to_tensor, error.relative_to_movement)
    return [bound, error.coded_bytes, error.raw_bytes, *(None if n is None else float(f"{n:.4g}") for n in numbers)]
