"""How a nested state is cut into groups of tensors, and put together again.

A state (``_core/state_tree.py``) becomes a ``Layout``, which is the same for all checkpoints of a run as long as its
structure is, the scalars in it, which are not, and tensors by path. The layout says which tensors are coded together: a
parameter with the slots of its optimizer; any other tensor alone; small exact tensors (counters, statistics) in one
vector per dtype, because a payload of its own would be larger than most of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp._core.tensor_role import TensorRole, roles_of_model, roles_of_optimizer, roles_of_state
from scrimp.checkpoints.codec import Group
from scrimp.errors import CorruptCheckpointError

_BUNDLED_NUMEL = 4096  # exact tensors up to this size share a payload
_BUNDLE = "values"

Shard = tuple[tuple[int, ...], tuple[int, ...]]
"""A part of a larger tensor: the whole's shape, and where the part begins in it."""


@dataclass(frozen=True)
class Slot:
    """One tensor of a group: ``name`` in the group, ``path`` in the state, ``shape`` as stored.

    A channels_last tensor is stored with its channels as last dimension, which is how it lies in memory. ``shard`` is
    there for a rank's part of a larger tensor, in the tensor's own dimensions.
    """

    name: str
    path: str
    role: TensorRole
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_channels_last: bool = False
    shard: Shard | None = None

    @property
    def raw_bytes(self) -> int:
        """Bytes of the tensor as it is."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class GroupLayout:
    """The tensors that are coded together; of a bundle, the tensors that make up its one vector."""

    name: str
    slots: tuple[Slot, ...]
    is_bundle: bool = False

    def pack(self, tensors: Mapping[str, Tensor]) -> Group:
        """The group of these tensors, which are given by path."""
        if self.is_bundle:
            return self.group({_BUNDLE: torch.cat([tensors[slot.path].reshape(-1) for slot in self.slots])})
        return self.group({slot.name: tensors[slot.path] for slot in self.slots})

    def group(self, coded: Mapping[str, Tensor]) -> Group:
        """The group of what a codec has decoded."""
        if self.is_bundle:
            return Group(coded, {_BUNDLE: TensorRole.EXACT})
        return Group(coded, {slot.name: slot.role for slot in self.slots})

    def unpack(self, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by path; only those whose slots are there."""
        if not self.is_bundle:
            return {slot.path: decoded[slot.name] for slot in self.slots if slot.name in decoded}
        parts = decoded[_BUNDLE].split([torch.Size(slot.shape).numel() for slot in self.slots])
        return {slot.path: part.reshape(slot.shape).clone() for slot, part in zip(self.slots, parts, strict=True)}

    def slots_for(self, paths: Callable[[str], bool]) -> list[str]:
        """The names of the slots to decode for the wanted paths; none when nothing of this group is wanted."""
        wanted = [slot.name for slot in self.slots if paths(slot.path)]
        return [_BUNDLE] if self.is_bundle and wanted else wanted

    @property
    def coded_slots(self) -> tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]:
        """Name, dtype and shape of what a codec sees."""
        if self.is_bundle:
            numel = sum(torch.Size(slot.shape).numel() for slot in self.slots)
            return ((_BUNDLE, self.slots[0].dtype, (numel,)),)
        return tuple((slot.name, slot.dtype, slot.shape) for slot in self.slots)


@dataclass(frozen=True)
class Layout:
    """Everything about a state but its values. ``tree`` is the JSON text of its nesting, scalars left out."""

    tree: str
    groups: tuple[GroupLayout, ...]

    def to_bytes(self) -> bytes:
        """As stored: JSON, the same bytes for the same layout."""
        groups = [
            [group.name, int(group.is_bundle), [_slot_to_json(slot) for slot in group.slots]] for group in self.groups
        ]
        return json.dumps({"tree": json.loads(self.tree), "groups": groups}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Layout":
        """The inverse of ``to_bytes``. Raises: CorruptCheckpointError - it is not of that form."""
        try:
            value = json.loads(data)
            groups = tuple(
                GroupLayout(name, tuple(_slot_from_json(slot) for slot in slots), bool(is_bundle))
                for name, is_bundle, slots in value["groups"]
            )
            return cls(json.dumps(value["tree"], separators=(",", ":")), groups)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpointError(
                f"the layout of a checkpoint is not of the form that scrimp writes ({error!r})"
            ) from error

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits, the same for equal layouts everywhere."""
        return hashlib.blake2b(self.to_bytes(), digest_size=16).hexdigest()

    @cached_property
    def by_name(self) -> dict[str, GroupLayout]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @property
    def raw_bytes(self) -> int:
        """Bytes of all tensors as they are."""
        return sum(slot.raw_bytes for group in self.groups for slot in group.slots)

    @property
    def num_weights(self) -> int:
        """Elements of the model's weights."""
        slots = [slot for group in self.groups for slot in group.slots]
        weights = [slot for slot in slots if slot.role is TensorRole.WEIGHT and slot.path.startswith("model/")]
        return sum(torch.Size(slot.shape).numel() for slot in weights)

    def assemble(self, tensors: Mapping[str, Tensor], scalars: list[Any], part: str | None = None) -> Any:
        """The nested state, or one ``part`` of it.

        When only some of the whole state's tensors are given, what holds none of them is left out.
        """
        values = iter(scalars)
        try:
            tree = _fill(json.loads(self.tree), values)
        except StopIteration:
            raise CorruptCheckpointError("a checkpoint holds fewer scalars than its layout has places") from None
        if part is not None:
            tree = next(child for key, child in tree["dict"] if key == part)
        elif len(tensors) < sum(len(group.slots) for group in self.groups):
            tree = _prune(tree, tensors)
        return unflatten_state(tensors, json.dumps(tree, separators=(",", ":")))


def lay_out(
    state: Mapping[str, Any],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    shards: Mapping[str, Shard] | None = None,
    roles: Mapping[str, TensorRole] | None = None,
    places: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Layout, list[Any], dict[str, Tensor]]:
    """The layout, the scalars and the tensors by path of ``state``, a dict of ``model``, ``optimizer``, ``extra``, ...

    ``model`` and ``optimizer`` say which roles their tensors have and which slots belong to which parameter; without
    them roles are those of the optimizer's slots by name and of tagged states. ``roles`` and ``places`` (group, slot)
    by path go before both. Tensors are not copied where they lie dense on the CPU.

    Raises: ConfigError - a value that cannot be stored.
    """
    tensors, text = flatten_state(state)
    tree = json.loads(text)
    channels_last = {leaf["tensor"] for leaf in _leaves(tree) if leaf.get("channels_last")}
    known_roles = {**_roles(state, model), **(roles or {})}
    owners = _owners(model, optimizer)
    scalars: list[Any] = []
    skeleton = json.dumps(_strip(tree, scalars), separators=(",", ":"))
    groups: dict[str, list[Slot]] = {}
    bundles: dict[str, list[Slot]] = {}
    for path, tensor in tensors.items():
        role = known_roles.get(path, TensorRole.EXACT)
        name, slot_name = (places or {}).get(path) or _place(path, tensor, owners, tensors)
        slot = Slot(
            slot_name, path, role, tensor.dtype, tuple(tensor.shape), path in channels_last, (shards or {}).get(path)
        )
        is_exact = role in (TensorRole.EXACT, TensorRole.BUFFER)
        if is_exact and tensor.numel() <= _BUNDLED_NUMEL:
            bundles.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(slot)
        else:
            groups.setdefault(name, []).append(slot)
    bundled = [GroupLayout(f"small {dtype}", tuple(slots), is_bundle=True) for dtype, slots in sorted(bundles.items())]
    return (
        Layout(skeleton, (*(GroupLayout(name, tuple(slots)) for name, slots in groups.items()), *bundled)),
        scalars,
        tensors,
    )


def _roles(state: Mapping[str, Any], model: nn.Module | None) -> dict[str, TensorRole]:
    roles: dict[str, TensorRole] = {}
    for part, value in state.items():
        if part == "model":
            own = roles_of_model(model) if model is not None else _roles_by_shape(value)
        elif part == "optimizer":
            own = roles_of_optimizer(value)
        elif isinstance(value, Mapping):
            own = roles_of_state(value)
        else:
            continue
        roles.update({f"{part}/{path}": role for path, role in own.items()})
    return roles


def _roles_by_shape(state: Mapping[str, Any]) -> dict[str, TensorRole]:
    """Of a model that is only a dict of tensors: statistics and the like have one dimension, and stay exact."""
    return {
        name: TensorRole.WEIGHT
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 1
    }


def _owners(model: nn.Module | None, optimizer: Optimizer | None) -> dict[str, str]:
    """The path of the parameter that each entry of the optimizer's state belongs to."""
    if model is None or optimizer is None:
        return {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers.setdefault(id(parameter), len(numbers))
    return {f"optimizer/state/{number}": f"model/{names[key]}" for key, number in numbers.items() if key in names}


def _place(path: str, tensor: Tensor, owners: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """The group and slot that a tensor belongs to."""
    entry, _, slot = path.rpartition("/")
    owner = owners.get(entry)
    if owner is not None and owner in tensors and tensors[owner].shape == tensor.shape and slot != "weight":
        return owner, slot
    if entry.startswith("optimizer/state/") and entry not in owners and slot != "weight":
        return entry, slot
    return path, "weight"


def _leaves(tree: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(tree, dict):
        return
    if "tensor" in tree:
        yield tree
        return
    for _, child in _children(tree):
        yield from _leaves(child)


def _children(node: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The children of a dict, list or tuple with their keys."""
    (kind,) = node
    if kind == "dict":
        return [(key, child) for key, child in node[kind]]
    return list(enumerate(node[kind]))


def _strip(tree: Any, scalars: list[Any]) -> Any:
    """The tree with ``null`` in the place of every scalar; the scalars go to the list, in order."""
    if not isinstance(tree, dict):
        scalars.append(tree)
        return None
    if "tensor" in tree:
        return tree
    (kind,) = tree
    if kind == "dict":
        return {kind: [[key, _strip(child, scalars)] for key, child in tree[kind]]}
    return {kind: [_strip(child, scalars) for child in tree[kind]]}


def _fill(tree: Any, scalars: Iterator[Any]) -> Any:
    """The inverse of ``_strip``."""
    if not isinstance(tree, dict):
        return next(scalars)
    if "tensor" in tree:
        return tree
    (kind,) = tree
    if kind == "dict":
        return {kind: [[key, _fill(child, scalars)] for key, child in tree[kind]]}
    return {kind: [_fill(child, scalars) for child in tree[kind]]}


def _prune(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree without tensors that are not given, and without containers that hold nothing then.

    Scalars stay beside tensors that stay. A list or tuple keeps its length; what went from it is ``None``.
    """
    if not isinstance(tree, dict) or "tensor" in tree:
        return tree

    def has_some(node: Any) -> bool:
        return any(leaf["tensor"] in tensors for leaf in _leaves(node))

    (kind,) = tree
    if kind == "dict":
        kept = [
            [key, _prune(child, tensors)] for key, child in tree[kind] if has_some(child) or not isinstance(child, dict)
        ]
        return {kind: kept}
    return {kind: [_prune(child, tensors) if has_some(child) else None for child in tree[kind]]}


def _slot_to_json(slot: Slot) -> list[Any]:
    dtype = str(slot.dtype).removeprefix("torch.")
    shard = [list(part) for part in slot.shard] if slot.shard else None
    return [slot.name, slot.path, slot.role.value, dtype, list(slot.shape), int(slot.is_channels_last), shard]


def _slot_from_json(value: list[Any]) -> Slot:
    name, path, role, dtype, shape, is_channels_last, shard = value
    known = getattr(torch, dtype, None)
    if not isinstance(known, torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}")  # noqa: TRY004 - one kind of error for the caller
    part = (tuple(shard[0]), tuple(shard[1])) if shard else None
    return Slot(name, path, TensorRole(role), known, tuple(shape), bool(is_channels_last), part)
