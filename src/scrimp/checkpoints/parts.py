"""Parts of tensors as another system cuts and names them, stored and found again one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints.chain import StateReader
from scrimp.checkpoints.layout import GroupLayout, Layout, Shard, Slot, lay_out
from scrimp.errors import ConfigError


@dataclass(frozen=True)
class TensorPart:
    """This rank's part of a tensor of ``whole_shape``, from ``offset`` on; empty where it has none.

    Parts with the same ``group`` are coded together, such as the moments of a parameter.
    """

    name: str
    tensor: Tensor
    whole_shape: tuple[int, ...]
    offset: tuple[int, ...]
    group: str
    role: TensorRole = TensorRole.EXACT


@dataclass(frozen=True)
class StoredPart:
    """A part that some rank has stored; ``read`` decodes it."""

    name: str
    shape: tuple[int, ...]
    whole_shape: tuple[int, ...]
    offset: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def lay_out_parts(
    step: int, parts: Sequence[TensorPart], values: Mapping[str, Any]
) -> tuple[Layout, list[Any], dict[str, Tensor]]:
    """As ``lay_out``: weights under ``model``, other tensors under ``tensors``, the rest under ``values``.

    Raises: ConfigError - a value that cannot be stored.
    """
    state: dict[str, Any] = {"step": step, "model": {}, "tensors": {}, "values": dict(values), "scalars": []}
    shards: dict[str, Shard] = {}
    roles, places = {}, {}
    for part in parts:
        top = "model" if part.role is TensorRole.WEIGHT else "tensors"
        path, tensor, shape, offset = f"{top}/{part.name}", part.tensor, part.whole_shape, part.offset
        if not shape:  # of which no rank could have an empty part
            state["scalars"].append(part.name)
            tensor, shape, offset = tensor.reshape(-1), (1,), (0,)
        state[top][part.name], shards[path], roles[path] = tensor, (shape, offset), part.role
        is_alone = part.group == part.name
        places[path] = path if is_alone else part.group, "weight" if is_alone else part.name
    return lay_out(state, shards=shards, roles=roles, places=places)


def find_parts(readers: Sequence[StateReader], where: str) -> tuple[list[StoredPart], Mapping[str, Any]]:
    """What ``lay_out_parts`` laid out, in all files of a checkpoint. Nothing is decoded.

    Raises: ConfigError - it was saved otherwise.
    """
    first = readers[0]
    if '["values",' not in first.layout.tree or '["scalars",' not in first.layout.tree:
        raise ConfigError(f"the checkpoint in {where} was not saved in parts; restore it by CheckpointStore.restore")
    scalars = set(first.layout.assemble({}, first.scalars, part="scalars"))
    parts = [
        _part(reader, group, slot, is_scalar=slot.path.partition("/")[2] in scalars)
        for reader in readers
        for group in reader.layout.groups
        for slot in group.slots
        if torch.Size(slot.shape).numel() or not torch.Size(slot.shard[0] if slot.shard else ()).numel()
    ]
    values = [reader.layout.assemble({}, reader.scalars, part="values") for reader in readers]
    return parts, {name: value for of_rank in reversed(values) for name, value in of_rank.items()}


def _part(reader: StateReader, group: GroupLayout, slot: Slot, *, is_scalar: bool) -> StoredPart:
    assert slot.shard is not None

    def read() -> Tensor:
        found = group.unpack(reader.decode(group.name, group.slots_for(lambda path: path == slot.path)))[slot.path]
        return found.reshape(()) if is_scalar else found.movedim(-1, 1) if slot.is_channels_last else found

    name = slot.path.partition("/")[2]
    if is_scalar:
        return StoredPart(name, (), (), (), slot.dtype, read)
    shape = (slot.shape[0], slot.shape[-1], *slot.shape[1:-1]) if slot.is_channels_last else slot.shape
    return StoredPart(name, shape, *slot.shard, slot.dtype, read)
