"""What one change of structure will assign, computed and checked before the first assignment is made."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from scrimp._core.module_shapes import num_groups_left, shape_attributes
from scrimp._core.stand_ins import installation
from scrimp._core.structure_change import Slices, StructureChange
from scrimp.errors import StructureError


class StructurePlan:
    """The assignments of one change. Each ``add_...`` checks and computes; ``commit`` assigns, and cannot fail.

    ``where`` names what is added in messages; ``like`` is the model that a copy must have the shapes of.
    """

    def __init__(self) -> None:
        self._data: list[tuple[Tensor, Tensor]] = []
        self._entries: list[tuple[MutableMapping[Any, Any], Any, Tensor | list[Tensor]]] = []
        self._attributes: list[tuple[nn.Module, dict[str, object]]] = []
        self._deleted: list[tuple[MutableMapping[Any, Any], Any]] = []
        self._actions: list[Callable[[], None]] = []

    def commit(self) -> None:
        """Make all assignments."""
        for tensor, new in self._data:
            _set_data(tensor, new)
        for mapping, key, entry in self._entries:
            mapping[key] = entry
        for module, attributes in self._attributes:
            for name, value in attributes.items():
                setattr(module, name, value)
        for mapping, key in self._deleted:
            mapping.pop(key, None)
        for act in self._actions:
            act()

    def add_module(
        self,
        model: nn.Module,
        change: StructureChange,
        where: str,
        *,
        like: nn.Module | None = None,
        groups: Mapping[str, int] | None = None,
    ) -> StructureChange:
        """Plan a module; returns the change with all names of tied tensors. Without ``groups`` the slices decide."""
        if isinstance(model, DistributedDataParallel | DataParallel):
            raise StructureError(
                f"{where} is wrapped in {type(model).__name__}; pass its .module, and wrap it again afterwards"
            )
        tensors = {name: tensor for name, tensor in named_tensors(model).items() if not change.is_gone(name)}
        self._actions += [installation(model, name, spec) for name, spec in change.modules.items()]
        if unknown := sorted(change.kept.keys() - tensors.keys()):
            raise StructureError(f"{where} has no tensor {some(unknown)}; names are those of the unwrapped model")
        change = _with_tied_names(change, tensors)
        _check_like(change, tensors, like, where)
        _check_touchable(change, tensors, where)
        planned: dict[int, Tensor] = {}
        for name in change.kept:
            tensor = tensors[name]
            if id(tensor) not in planned:
                planned[id(tensor)] = change.slice(name, tensor)
                self._data.append((tensor, planned[id(tensor)]))
        after = {name: planned.get(id(tensor), tensor) for name, tensor in tensors.items()}
        owners = {owner_of(name) for name in change.kept}
        for name, module in model.named_modules():
            if name in owners and not change.is_gone(f"{name}."):
                try:
                    prefix = f"{name}." if name else ""
                    told = _num_groups_left(module, prefix, change) if groups is None else groups.get(name, 1)
                    self._attributes.append((module, shape_attributes(module, _shapes(module, prefix, after), told)))
                except StructureError as error:
                    message = f"{where}: {name or 'the root'!r} ({type(module).__name__}): {error}"
                    raise StructureError(message) from error
        return change

    def add_dict(
        self,
        copy: MutableMapping[str, Any],
        change: StructureChange,
        where: str,
        *,
        names: Iterable[str],
        like: nn.Module | None = None,
    ) -> None:
        """Plan a dict of tensors by name, which may lack some; ``names`` are those it may hold."""
        if copy and not change.is_empty and not any(name in copy for name in names):
            raise StructureError(
                f"{where} holds none of the tensors by name; it has {some([str(key) for key in copy])}"
            )
        tensors = {name: copy[name] for name in change.kept if name in copy}
        self._deleted += [(copy, name) for name in copy if change.is_gone(str(name))]
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise StructureError(f"{where}: {name!r} is no tensor but a {type(tensor).__name__}")
        _check_like(change, tensors, like, where)
        planned: dict[object, Tensor] = {}
        for name, tensor in tensors.items():
            alias = (tensor.data_ptr() or id(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride())
            if alias not in planned:
                planned[alias] = change.slice(name, tensor)
            self._entries.append((copy, name, planned[alias]))

    def add_optimizer(self, optimizer: Optimizer, model: nn.Module, change: StructureChange) -> None:
        """Plan the state that ``optimizer`` holds of the parameters of ``model``."""
        every = list(model.named_parameters(remove_duplicate=False))
        names = {parameter: name for name, parameter in every}
        gone = set(names) - {parameter for name, parameter in every if not change.is_gone(name)}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kind = type(optimizer).__name__
        if not any(parameter in names for parameter in held):
            raise StructureError(f"{kind} holds no parameter of the model; was it made for another instance?")
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state and not change.is_empty:
            raise StructureError(
                "LBFGS keeps one flat history of all parameters, which cannot be sliced; make a new one"
            )
        for group in optimizer.param_groups:
            if any(parameter in gone for parameter in group["params"]):
                left = [parameter for parameter in group["params"] if parameter not in gone]
                self._entries.append((group, "params", left))
        self._deleted += [(optimizer.state, parameter) for parameter in gone]
        for parameter in held:
            name = names.get(parameter, "")
            if parameter in gone or name not in change.kept or parameter not in optimizer.state:
                continue
            state = optimizer.state[parameter]
            for slot, value in state.items():
                if _follows(parameter, slot, value, f"{kind} state {slot!r} of {name!r}"):
                    self._entries.append((state, slot, change.slice(name, value)))


def _set_data(tensor: Tensor, new: Tensor) -> None:
    if tensor.requires_grad:
        # While an earlier loss is alive (in every loop the last one is), so is the parameter's gradient accumulator,
        # which would go on to expect the old shape. torch makes a new one only when the dtype changes.
        other = torch.float32 if tensor.dtype is torch.float16 else torch.float16
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under each of their names."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return named


def some(names: list[str]) -> str:
    """The first five of ``names``, for a message."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _follows(parameter: Tensor, slot: str, value: object, where: str) -> bool:
    """Whether a state value is sliced like its parameter (True) or stays (False); what is neither is refused."""
    if value is None or isinstance(value, bool | int | float | str):
        return False
    # Adafactor's factored moments can have the parameter's shape by accident.
    if isinstance(value, Tensor) and slot not in {"row_var", "col_var"}:
        if value.shape == parameter.shape:
            return True
        if value.dim() == 0:
            return False
    what = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
    raise StructureError(
        f"{where} {what}, beside the parameter's {tuple(parameter.shape)}: how to slice it is not known; "
        "use an optimizer whose state has the shape of its parameters, or make a new one after the change"
    )


def _with_tied_names(change: StructureChange, tensors: Mapping[str, Tensor]) -> StructureChange:
    aliases: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        aliases.setdefault(id(tensor), []).append(name)
    kept: dict[str, Slices] = {}
    for name in change.kept:
        slices = change.slices(name)
        for other in aliases[id(tensors[name])]:
            if other in change.kept and StructureChange({"": slices}) != StructureChange({"": change.slices(other)}):
                raise StructureError(f"{name!r} and {other!r} are the same tensor but would keep different slices")
            kept[other] = slices
    return StructureChange(kept, change.modules)


def _check_like(change: StructureChange, tensors: Mapping[str, Tensor], like: nn.Module | None, where: str) -> None:
    originals = named_tensors(like) if like is not None else {}
    for name in change.kept:
        if name in tensors and name in originals and tensors[name].shape != originals[name].shape:
            raise StructureError(
                f"{where}: {name!r} has shape {tuple(tensors[name].shape)}, in the model "
                f"{tuple(originals[name].shape)}; it must have followed every change before this one"
            )


def _check_touchable(change: StructureChange, tensors: Mapping[str, Tensor], where: str) -> None:
    for name in change.kept:
        change.check(name, tensors[name].shape)
    if graded := [name for name in change.kept if tensors[name].grad is not None]:
        raise StructureError(
            f"{where}: {some(graded)} has a gradient; call optimizer.zero_grad(set_to_none=True) first"
        )
    if sharded := [name for name in change.kept if hasattr(tensors[name], "device_mesh")]:
        raise StructureError(f"{where}: {some(sharded)} is sharded over ranks, which is not supported")
    _check_no_overlap(change, tensors, where)


def _check_no_overlap(change: StructureChange, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse to slice a tensor that shares memory with another one: the two would come apart."""
    single = {id(tensor): (name, tensor) for name, tensor in tensors.items() if tensor.numel() and not tensor.is_meta}
    extents = sorted((str(tensor.device), *_extent(tensor), name) for name, tensor in single.values())
    reach = ("", 0, 0, "")
    aliases = {id(tensors[name]) for name in change.kept}
    for extent in extents:
        device, begin, end, name = extent
        names = (name, reach[3])
        if device == reach[0] and begin < reach[2] and any(id(tensors[n]) in aliases for n in names):
            raise StructureError(
                f"{where}: {reach[3]!r} and {name!r} share memory but are two tensors; tie them as one Parameter"
            )
        if device != reach[0] or end > reach[2]:
            reach = extent


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the first byte to behind the last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def owner_of(name: str) -> str:
    """The name of the module whose shapes a tensor decides: a parametrization's is the module that it is on."""
    module = f".{name}".split(".parametrizations.")[0]
    return (module if module != f".{name}" else module.rpartition(".")[0]).lstrip(".")


def _num_groups_left(module: nn.Module, prefix: str, change: StructureChange) -> int:
    weight = (f"{prefix}weight", *(f"{prefix}parametrizations.weight.original{suffix}" for suffix in ("", "0", "1")))
    return num_groups_left(module, next((s[0][1] for n in weight if (s := change.slices(n)) and s[0][0] == 0), None))


def _shapes(module: nn.Module, prefix: str, after: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of the module's own tensors after the change, parametrized ones evaluated without touching them."""
    own = (*module._parameters, *module._buffers)
    shapes = {name: tuple(after[prefix + name].shape) for name in own if prefix + name in after}
    chains = getattr(module, "parametrizations", None)
    for attribute, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
        begin = f"{prefix}parametrizations.{attribute}."
        inner = {name.removeprefix(begin): tensor for name, tensor in after.items() if name.startswith(begin)}
        # torch's weight norm computes something, wrong, when direction and length have unequal numbers of rows.
        rows = [tuple(inner[name].shape) for name in ("original0", "original1") if name in inner]
        if len({shape[0] for shape in rows if shape} - {1}) > 1:
            raise StructureError(f"its parametrization would have unequal numbers of rows: {rows[0]}, {rows[1]}")
        try:
            with torch.no_grad():
                shapes[attribute] = tuple(torch.func.functional_call(chain, inner, ()).shape)
        except (RuntimeError, IndexError, ValueError) as error:
            raise StructureError(f"its parametrization does not work with the new shapes ({error})") from error
    return shapes
