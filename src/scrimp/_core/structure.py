"""Change the structure of a model in place, with everything that follows it; read a structure and make it again.

A saving that removes channels says what survives, as a ``StructureChange``; ``apply_structure_change`` does the rest.
All checks are made and all slices computed before the first tensor is touched, so a refusal changes nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from scrimp._core.module_shapes import num_groups, size_attributes
from scrimp._core.stand_ins import ConstantOutput, Spec, checked, is_gone, specs_of
from scrimp._core.structure_change import Slices, StructureChange
from scrimp._core.structure_plan import StructurePlan, named_tensors, owner_of, some
from scrimp.errors import FormatError, StructureError

__all__ = [
    "Copy",
    "HoldsCopies",
    "Slices",
    "Structure",
    "StructureChange",
    "apply_structure_",
    "apply_structure_change",
    "copied_tensors",
    "read_structure",
]


@runtime_checkable
class HoldsCopies(Protocol):
    """Whatever holds copies of a model's tensors by name and can slice them, such as a weight average."""

    def apply_structure_change(self, change: StructureChange) -> None:
        """Slice the copies, or raise StructureError and change nothing. Names it does not hold are no error."""


Copy = HoldsCopies | nn.Module | MutableMapping[str, Any]


def copied_tensors(copy: Copy) -> Mapping[str, Any]:
    """The tensors that a copy holds, by the model's names: those of a module, a dict, or its ``named_tensors()``."""
    if isinstance(copy, nn.Module):
        return named_tensors(copy)
    if isinstance(copy, MutableMapping):
        return copy
    told: object = getattr(copy, "named_tensors", dict)()
    return told if isinstance(told, Mapping) else {}


@dataclass(frozen=True)
class Structure:
    """The shape of every parameter and buffer of a model, and the groups of its grouped layers. JSON values only.

    ``groups`` has, by module name, ``groups`` of convolutions and ``num_groups`` of GroupNorms where they are not 1.
    ``sizes`` has widths that modules of other libraries keep as attributes, such as ``blocks.0.attention.num_heads``.
    ``modules`` has what stands where a layer was deleted, and behind modules that lost channels alone.
    """

    shapes: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, Spec] = field(default_factory=dict)

    def is_gone(self, name: str) -> bool:
        """Whether the original model's tensor of that name was deleted with its module."""
        return is_gone(name, self.modules)

    def to_state(self) -> dict[str, Any]:
        """JSON values."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        state = {"shapes": shapes, "groups": dict(self.groups), "sizes": dict(self.sizes)}
        return state | ({"modules": {name: dict(spec) for name, spec in self.modules.items()}} if self.modules else {})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Structure":
        """The inverse of ``to_state``. Raises FormatError when something is missing or of another kind."""
        try:
            shapes = {str(name): tuple(int(size) for size in shape) for name, shape in state["shapes"].items()}
            groups = {str(name): int(number) for name, number in state["groups"].items()}
            sizes = {str(name): int(size) for name, size in state.get("sizes", {}).items()}
            modules = checked(state.get("modules", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"this is not the state of a Structure: {error!r} in {str(state)[:80]}") from error
        return cls(shapes, groups, sizes, modules)

    def digest(self) -> str:
        """32 hexadecimal digits that are the same for equal structures on every machine, to compare ranks with."""
        text = json.dumps(self.to_state(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_structure(model: nn.Module) -> Structure:
    """The present structure of ``model``, with tied tensors under each of their names. No tensor is read."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    groups = {name: n for name, module in model.named_modules() if (n := num_groups(module)) != 1}
    sizes = {
        f"{name}.{attribute}".lstrip("."): size
        for name, module in model.named_modules()
        if not isinstance(module, ConstantOutput)  # described among the modules
        for attribute, size in size_attributes(module).items()
    }
    return Structure(shapes, groups, sizes, specs_of(model))


def apply_structure_change(
    change: StructureChange,
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    copies: Iterable[Copy] = (),
) -> None:
    """Slice a model, the state of its optimizers and copies of its tensors, in place, all or nothing.

    Parameters stay the same objects (``p.data`` is replaced), so optimizers, schedulers and hooks keep them. Attributes
    such as ``out_channels`` follow, also ``groups``: a group disappears with its last channel. Optimizer state of the
    shape of its parameter is sliced like it, numbers and 0-d tensors stay. Tied tensors may be named once or alike.

    Call it between steps, after ``optimizer.zero_grad(set_to_none=True)`` and while no loss is waiting for its backward
    pass. Wrap DistributedDataParallel anew afterwards: the old wrapper does not see the new gradients. A compiled model
    compiles again.

    Args: model - the unwrapped module that the names are of. optimizer - one or several; needs ``model``.
        copies - modules of the same structure; dicts of tensors by name (entries are replaced; a dict may hold a part
        of the names); objects with a method ``apply_structure_change(change)``, called after all checks and before
        anything else changes: when the second of two such objects refuses, only the first has changed.
    Raises: StructureError - a name, dimension or index does not exist; layers would not fit together; gradients are
        present; optimizer state has a shape that is not understood. Nothing was changed then.
    Cost: a copy of what survives of each sliced tensor; no host sync, no collective.
    """
    planned_change(change, model=model, optimizer=optimizer, copies=copies)()


def planned_change(
    change: StructureChange,
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    copies: Iterable[Copy] = (),
) -> Callable[[], None]:
    """As ``apply_structure_change``, up to all checks; what is returned makes the change."""
    plan = StructurePlan()
    names: Iterable[str] = change.kept
    if model is not None:
        change = plan.add_module(model, change, "the model")
        names = named_tensors(model)
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer or ())
    if optimizers and model is None:
        raise StructureError("an optimizer knows its parameters only as objects of a model; pass model= as well")
    for one in optimizers:
        assert model is not None
        plan.add_optimizer(one, model, change)
    holders = []
    for number, copy in enumerate({id(copy): copy for copy in copies}.values()):
        where = f"copy {number} ({type(copy).__name__})"
        if isinstance(copy, HoldsCopies):
            holders.append(copy)
        elif isinstance(copy, nn.Module):
            plan.add_module(copy, change, where, like=model)
        elif isinstance(copy, MutableMapping):
            plan.add_dict(copy, change, where, names=names, like=model)
        else:
            raise StructureError(f"{where} is no module, no dict of tensors, and has no method apply_structure_change")

    def commit() -> None:
        for holder in holders:
            holder.apply_structure_change(change)
        plan.commit()

    return commit


def apply_structure_(
    model: nn.Module, structure: Structure, optimizer: Optimizer | Iterable[Optimizer] | None = None
) -> None:
    """Give a fresh, larger ``model`` the shapes of ``structure``, so that the state of a shrunk model fits it.

    The values left are the leading slices and mean nothing; ``model.load_state_dict(state)`` follows. Parameters stay
    the same objects. ``optimizer``, one or several that hold them and have no state yet, forget those of layers that
    were deleted; an optimizer that is made afterwards does not know them.

    Raises: StructureError - the model has other names, other numbers of dimensions, or is smaller somewhere. Nothing
        was changed then.
    Cost: a copy of each tensor that shrinks.
    """
    present = read_structure(model)
    modules = {name: spec for name, spec in structure.modules.items() if present.modules.get(name) != spec}
    if unknown := sorted(present.modules.keys() - structure.modules.keys()):
        raise StructureError(
            f"{some(unknown)} was changed in the model but not in the structure; start from a fresh one"
        )
    shapes = {name: shape for name, shape in present.shapes.items() if not is_gone(name, modules)}
    if missing := sorted(shapes.keys() - structure.shapes.keys()):
        raise StructureError(
            f"the structure does not say what shape {some(missing)} should have; is it of another model?"
        )
    if unknown := sorted(structure.shapes.keys() - shapes.keys()):
        raise StructureError(f"the model has no {some(unknown)}, which the structure names; is it of another model?")
    kept: dict[str, Slices] = {}
    for name, shape in structure.shapes.items():
        now = shapes[name]
        if len(now) != len(shape) or any(new > old for new, old in zip(shape, now, strict=True)):
            raise StructureError(
                f"{name!r} has shape {now} and cannot shrink to {shape}; start from the original model"
            )
        sizes = enumerate(zip(shape, now, strict=True))
        kept[name] = tuple((dim, torch.arange(new)) for dim, (new, old) in sizes if new != old)
    change = StructureChange(kept, modules)
    for name in present.groups.keys() | structure.groups.keys():
        had, has = present.groups.get(name, 1), structure.groups.get(name, 1)
        is_described = name in modules or any(owner_of(tensor) == name for tensor in change.kept)
        if had != has and not is_described:
            raise StructureError(f"{name!r} has {had} groups and should have {has}; is the structure of another model?")
    if unknown := sorted(structure.sizes.keys() - present.sizes.keys()):
        raise StructureError(f"the model has no {some(unknown)}, which the structure names; is it of another model?")
    plan = StructurePlan()
    plan.add_module(model, change, "the model", groups=structure.groups)
    for one in (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer or ()):
        plan.add_optimizer(one, model, change)
    plan.commit()
    for name, size in structure.sizes.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, size)
