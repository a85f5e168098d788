"""What a tensor is to training, so that a codec can treat it by its role and never by its owner.

Whatever is stored is a nested state; a tensor in it has a path, keys joined by ``/`` (``optimizer/state/0/exp_avg``).
The functions here give the role of each path. A tensor that nobody speaks for is ``EXACT``: no loss by accident.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from scrimp.errors import ConfigError

ROLES_KEY = "tensor_roles"


class TensorRole(Enum):
    """What a tensor is to training. The values are what is stored in files."""

    WEIGHT = "weight"
    """Trained, or an average of what is trained."""
    FIRST_MOMENT = "first moment"
    """A running mean of gradients that is divided by the root of a second moment (Adam's ``exp_avg``)."""
    SECOND_MOMENT = "second moment"
    """A running mean, sum or maximum of squared gradients; non-negative, used under a root."""
    MOMENTUM = "momentum"
    """A decaying sum of gradients that is the step itself (SGD's ``momentum_buffer``)."""
    SCORE = "score"
    """One value per sample."""
    BUFFER = "buffer"
    """A floating-point buffer of a module, such as the running statistics of a normalisation."""
    EXACT = "exact"
    """Everything else: counters, indices, random states, scales. Must be stored bit by bit."""


@runtime_checkable
class HasTensorRoles(Protocol):
    """A module or owner of state that knows the roles of its tensors."""

    def tensor_roles(self) -> Mapping[str, TensorRole]:
        """Roles by path in its ``state_dict()``; a module speaks for its own parameters and buffers by name."""


# As the optimizers of torch 2.13 name them. Not here, so exact: `step`, `mu_product`, `eta`, `mu` are counters;
# `row_var`, `col_var` are small factors; `exp_inf` divides without a root; `prev`, `step_size` decide by signs.
_SLOTS = {
    "exp_avg": TensorRole.FIRST_MOMENT,
    "grad_avg": TensorRole.FIRST_MOMENT,
    "exp_avg_sq": TensorRole.SECOND_MOMENT,
    "max_exp_avg_sq": TensorRole.SECOND_MOMENT,
    "square_avg": TensorRole.SECOND_MOMENT,
    "acc_delta": TensorRole.SECOND_MOMENT,
    "sum": TensorRole.SECOND_MOMENT,
    "variance": TensorRole.SECOND_MOMENT,
    "momentum_buffer": TensorRole.MOMENTUM,
    "ax": TensorRole.WEIGHT,
}


def optimizer_slot_role(slot: str) -> TensorRole:
    """The role of a slot of an optimizer's state by its name, as torch's optimizers use it; ``EXACT`` when unknown."""
    return _SLOTS.get(slot, TensorRole.EXACT)


def roles_of_model(model: nn.Module) -> dict[str, TensorRole]:
    """The role of every parameter and buffer by its name in ``model.state_dict()``.

    Floating-point parameters are ``WEIGHT``, floating-point buffers ``BUFFER``, all else ``EXACT``. A module with a
    method ``tensor_roles`` decides for its own tensors (a quantiser's bit depths are ``EXACT``).

    Raises: ConfigError - a module names a tensor that it has not.
    """
    named = (
        (model.named_parameters(remove_duplicate=False), TensorRole.WEIGHT),
        (model.named_buffers(remove_duplicate=False), TensorRole.BUFFER),
    )
    roles = {name: _unless_exact(tensor, role) for tensors, role in named for name, tensor in tensors}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HasTensorRoles):
            told = {f"{prefix}.{name}" if prefix else name: role for name, role in module.tensor_roles().items()}
            if unknown := sorted(told.keys() - roles.keys()):
                raise ConfigError(f"{type(module).__name__}.tensor_roles() names {unknown}, which the model has not")
            roles.update(told)
    return roles


def roles_of_optimizer(state: Mapping[str, Any]) -> dict[str, TensorRole]:
    """The role of every tensor in ``optimizer.state_dict()`` by its path, such as ``state/0/exp_avg``."""
    slots = {
        f"state/{index}/{slot}": _unless_exact(tensor, optimizer_slot_role(slot) if tensor.dim() else TensorRole.EXACT)
        for index, values in state.get("state", {}).items()
        for slot, tensor in (values.items() if isinstance(values, Mapping) else ())
        if isinstance(tensor, Tensor)
    }
    return {path: slots.get(path, TensorRole.EXACT) for path, _ in _tensors(state)}


def tag(state: Mapping[str, Any], roles: Mapping[str, TensorRole]) -> dict[str, Any]:
    """``state`` with the roles of its tensors written into it, for an owner's ``state_dict()`` to return.

    A key of ``roles`` is the path of a tensor, or of a dict or list whose floating-point tensors all have the role.
    They are stored along as strings under the key ``tensor_roles``, which ``load_state_dict`` ignores.

    Example::

        return tag({"scores": self.scores, "epoch": self.epoch}, {"scores": TensorRole.SCORE})

    Raises: ConfigError - a role for a path without any tensor.
    """
    paths = [path for path, _ in _tensors(state)]
    if unknown := [key for key in roles if not any(_is_under(path, key) for path in paths)]:
        raise ConfigError(f"roles are given for {unknown}, but the state has no tensor there; it has {paths}")
    return {**state, ROLES_KEY: {key: role.value for key, role in roles.items()}}


def roles_of_state(state: Mapping[str, Any]) -> dict[str, TensorRole]:
    """The role of every tensor in a nested state by its path, as its parts were tagged; ``EXACT`` where nobody said.

    The nearest tag decides. A role that this release does not know reads as ``EXACT``. The states of modules and of
    torch's optimizers carry no tags: ``roles_of_model`` and ``roles_of_optimizer`` know those.
    """
    roles: dict[str, TensorRole] = {path: TensorRole.EXACT for path, _ in _tensors(state)}
    tensors = dict(_tensors(state))
    for begin, told in _tags(state):
        for key, value in sorted(told.items(), key=lambda item: item[0].count("/")):
            role = next((known for known in TensorRole if known.value == value), TensorRole.EXACT)
            where = f"{begin}{key}"
            for path in roles:
                if path == where:
                    roles[path] = role
                elif _is_under(path, where):
                    roles[path] = _unless_exact(tensors[path], role)
    return roles


def _unless_exact(tensor: Tensor, role: TensorRole) -> TensorRole:
    return role if tensor.is_floating_point() else TensorRole.EXACT


def _is_under(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}/")


def _items(state: object) -> Iterator[tuple[object, object]]:
    if isinstance(state, Mapping):
        yield from state.items()
    elif isinstance(state, list | tuple):
        yield from enumerate(state)


def _tensors(state: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield path, state
    for key, value in _items(state):
        yield from _tensors(value, f"{path}/{key}" if path else str(key))


def _tags(state: object, begin: str = "") -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every tag with the path that it counts from, outer ones first."""
    if isinstance(state, Mapping) and isinstance(told := state.get(ROLES_KEY), Mapping):
        yield begin, {str(key): value for key, value in told.items() if isinstance(value, str)}
    for key, value in _items(state):
        if key != ROLES_KEY:
            yield from _tags(value, f"{begin}{key}/")
