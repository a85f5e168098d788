"""``torch.distributed.checkpoint`` over a ``CheckpointStore``: ``dcp.save`` and ``dcp.load`` with a small history.

A delta needs names, shapes and the state before; a transform of DCP's byte streams sees none of them. So the whole
storage layer is ours: writer and reader over a store. Nothing is pickled on disk: what is no tensor is JSON there, and
becomes bytes for DCP's planner when it is read.
"""

import io
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from scrimp._core.tensor_role import TensorRole, optimizer_slot_role
from scrimp.checkpoints import CheckpointStore, StoredPart, TensorPart
from scrimp.errors import CheckpointNotFoundError, ConfigError

_Whole = tuple[tuple[int, ...], torch.dtype]


class StoreWriter(StorageWriter):
    """``dcp.save(state, storage_writer=StoreWriter(store, step))``, on all ranks that the store was made on.

    Slots of an optimizer's ``state`` count as moments by their names, and what lies under a key ``model`` and has such
    slots as weights (``get_optimizer_state_dict`` gives both by name); all else is exact: buffers, and a model that is
    saved without its optimizer. With several ranks, make the store with
    ``sharded=True``. ``store.load(step)`` gives the same tensors under DCP's flat names, weights in ``model`` and all
    others in ``tensors``; values that are no tensors come from ``store.stored_parts(step)``.

    Raises: as ``CheckpointStore.save``; ConfigError - something that is neither tensors nor JSON values.
    """

    def __init__(self, store: CheckpointStore, step: int) -> None:
        super().__init__()
        self._store, self._step = store, step

    def reset(self, checkpoint_id: Any = None) -> None:
        """A checkpoint's place is its step; ``checkpoint_id`` may be a number instead of the one given."""
        self._step = self._step if checkpoint_id is None else int(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Every rank is told of every tensor, so that each has the same tree of names."""
        wholes: dict[str, _Whole] = {}
        for item in (item for plan in plans for item in plan.items):
            if item.tensor_data is not None:
                wholes[item.index.fqn] = (tuple(item.tensor_data.size), item.tensor_data.properties.dtype)
        return [SavePlan(plan.items, wholes, plan.planner_data, plan.usable) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store this rank's parts; the checkpoint exists when all ranks have, before this returns."""
        wholes: Mapping[str, _Whole] = plan.storage_data
        trained = {_owner(name) for name in wholes if _is_moment(name)}
        none = {
            name: (torch.empty((0,) * max(1, len(s)), dtype=d), s, (0,) * len(s)) for name, (s, d) in wholes.items()
        }
        parts: dict[str, tuple[Tensor, tuple[int, ...], tuple[int, ...]]] = dict(none)
        values: dict[str, Any] = {}
        for item in plan.items:
            name = item.index.fqn
            if item.type is WriteItemType.BYTE_IO:
                values[name] = planner.lookup_object(item.index)  # type: ignore[attr-defined]
                continue
            assert item.tensor_data is not None
            if parts[name][0].numel():
                raise ConfigError(f"this rank holds several parts of {name!r}; a store takes one part of each tensor")
            tensor: Tensor = planner.resolve_data(item)  # type: ignore[assignment]
            parts[name] = (tensor.detach(), tuple(item.tensor_data.size), tuple(item.tensor_data.chunk.offsets))
        self._store.save_parts(
            self._step, [TensorPart(name, *part, *_place(name, trained)) for name, part in parts.items()], values
        )
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, None) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing: the manifest is there."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """A step."""
        return str(checkpoint_id).isdigit()


class StoreReader(StorageReader):
    """``dcp.load(state, storage_reader=StoreReader(store, step))``, on any number of ranks; the newest by default.

    Raises: as ``CheckpointStore.load``.
    """

    def __init__(self, store: CheckpointStore, step: int | None = None) -> None:
        super().__init__()
        self._store, self._step = store, step
        self._parts: dict[tuple[str, tuple[int, ...]], StoredPart] = {}
        self._values: Mapping[str, Any] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """As the writer's."""
        self._step = self._step if checkpoint_id is None else int(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's signature
        """Names, shapes and parts, from the indexes of the files alone."""
        stored, self._values = self._store.stored_parts(self._step)
        tensors: dict[str, Any] = {name: BytesStorageMetadata() for name in self._values}
        for part in stored:
            self._parts[part.name, part.offset] = part
            chunk = ChunkStorageMetadata(torch.Size(part.offset), torch.Size(part.shape))
            known = tensors.setdefault(
                part.name, TensorStorageMetadata(TensorProperties(dtype=part.dtype), torch.Size(part.whole_shape), [])
            )
            known.chunks.append(chunk)
        return Metadata(tensors)

    def set_up_storage_reader(
        self,
        metadata: Metadata,  # noqa: ARG002 - DCP's signature
        is_coordinator: bool,  # noqa: ARG002
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Metadata is read on one rank; the others find the parts themselves."""
        if not self._parts and not self._values:
            self.read_metadata()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decode what this rank asks for, part by part."""
        for item in plan.items:
            index: MetadataIndex = item.storage_index
            if item.type is LoadItemType.BYTE_IO:
                data = io.BytesIO()
                torch.save(self._values[index.fqn], data)  # in memory: DCP's planner takes bytes
                data.seek(0)
                planner.load_bytes(item, data)
                continue
            part = self._parts.get((index.fqn, tuple(index.offset or ())))
            if part is None:
                raise CheckpointNotFoundError(f"the checkpoint has no part of {index.fqn!r} at {index.offset}")
            tensor = part.read()
            for dim, (begin, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                tensor = tensor.narrow(dim, begin, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(tensor)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """A step."""
        return str(checkpoint_id).isdigit()


def _place(name: str, trained: Set[str]) -> tuple[str, TensorRole]:
    """With which tensors one is coded, and its role, by DCP's name of it and those of parameters with slots."""
    if _is_moment(name):
        return name.rpartition(".")[0], optimizer_slot_role(name.rpartition(".")[2])
    first, _, rest = name.partition(".")
    return name, TensorRole.WEIGHT if first == "model" and rest in trained else TensorRole.EXACT


def _is_moment(name: str) -> bool:
    _, *rest = name.split(".")
    return len(rest) > 2 and rest[0] == "state" and optimizer_slot_role(rest[-1]) is not TensorRole.EXACT


def _owner(name: str) -> str:
    """``layer.weight`` of ``optimizer.state.layer.weight.exp_avg``."""
    return ".".join(name.split(".")[2:-1])
