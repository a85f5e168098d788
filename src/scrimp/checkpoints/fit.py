"""Whether a stored state fits the model or optimizer at hand, answered before anything is copied, and made to fit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from scrimp._core.tensor_role import TensorRole, optimizer_slot_role

_KERNELS = ("foreach", "fused", "capturable", "differentiable")


def find_misfits(part: nn.Module | Optimizer, saved: Mapping[str, Any], optimizer_class: str | None) -> list[str]:
    """What in ``saved``, a state of a model or optimizer, has another name, shape or dtype than ``part``, in words.

    ``optimizer_class`` is the name of the class that the optimizer had. The list is empty when all fits.
    """
    if isinstance(part, nn.Module):
        return _misfits_of_model(part, saved)
    if optimizer_class != type(part).__name__:
        return [f"it was {optimizer_class} and is now {type(part).__name__}"]
    return _misfits_of_optimizer(part, saved)


def with_own_kernels(part: nn.Module | Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """``saved`` with those settings of an optimizer that say how it computes on the device where it is now.

    A state from CUDA may ask for fused or capturable steps, which a CPU cannot always make, and the other way round.
    """
    if not isinstance(part, Optimizer):
        return saved
    groups = [
        {**theirs, **{name: ours[name] for name in _KERNELS if name in ours}}
        for ours, theirs in zip(part.param_groups, saved["param_groups"], strict=True)
    ]
    return {**saved, "param_groups": groups}


def _misfits_of_model(model: nn.Module, saved: Mapping[str, Any]) -> list[str]:
    own = model.state_dict()
    return [
        *(f"{name} is not in the checkpoint" for name in own if name not in saved),
        *(f"{name} is not in the model" for name in saved if name not in own),
        *(
            f"{name} is {_described(saved[name])} in the checkpoint and {_described(tensor)} in the model"
            for name, tensor in own.items()
            if name in saved and not is_lazy(tensor) and _described(saved[name]) != _described(tensor)
        ),
    ]


def _misfits_of_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> list[str]:
    groups = saved["param_groups"]
    ours, theirs = ([len(group["params"]) for group in each] for each in (optimizer.param_groups, groups))
    if ours != theirs:
        return [f"its parameter groups had {theirs} parameters and now have {ours}"]
    misfits = []
    for own_group, saved_group in zip(optimizer.param_groups, groups, strict=True):
        names = own_group.get("param_names"), saved_group.get("param_names")
        if None not in names and names[0] != names[1]:
            misfits.append(f"a group was of the parameters {names[1]} and is now of {names[0]}")
        for parameter, key in zip(own_group["params"], saved_group["params"], strict=True):
            misfits += [
                f"{slot} of parameter {key} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}"
                for slot, tensor in saved["state"].get(key, {}).items()
                if _is_like_its_parameter(slot, tensor) and tensor.shape != parameter.shape
            ]
    return misfits


def _is_like_its_parameter(slot: str, value: object) -> bool:
    """Moments have the shape of their parameter; of slots by other names nothing is known."""
    return isinstance(value, Tensor) and value.dim() > 0 and optimizer_slot_role(slot) is not TensorRole.EXACT


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
