"""Parameter groups taken apart: filters for Muon, the rest for another optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from scrimp.errors import ConfigError


def split_filters(
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    chosen: Callable[[str, nn.Module], bool] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Take the filters out of parameter groups: one group for ``Muon``, and those of the rest for another optimizer.

    The group of the filters has no options but Muon's own; frozen filters are in no group and stay out.

    Args: groups - as ``scrimp.param_groups`` makes them. chosen - whether the weight of a module is for Muon, by its
        qualified name; by default that of each convolution but the model's first, and where there is no other, as in
        transformers, that of each linear layer but the model's last.
    Raises: ConfigError - nothing is chosen, or nothing is left.
    """
    convs = [module for module in model.modules() if isinstance(module, _ConvNd)]
    hidden = convs[1:] or [module for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    pick = chosen or (lambda _name, module: module in hidden)
    modules = [(name, module) for name, module in model.named_modules() if hasattr(module, "weight")]
    wanted = {id(_weight(module)) for name, module in modules if pick(name, module)}
    filters = [_members(group, lambda p: id(p) in wanted) for group in groups]
    rest = [{**group, **_members(group, lambda p: id(p) not in wanted)} for group in groups]
    one = {key: [entry for group in filters for entry in group[key]] for key in filters[0]} if filters else {}
    rest = [group for group in rest if group["params"]]
    if not one.get("params") or not rest:
        raise ConfigError(
            f"split_filters: {len(one.get('params', []))} filters for Muon and {len(rest)} groups of other parameters; "
            "there have to be both. Muon is for networks with several trainable convolutions or linear layers, or say "
            "what is chosen"
        )
    return [{"name": "filters", **one}], rest


def _weight(module: nn.Module) -> Tensor:
    """The parameter, also where the weight is computed from it, as a layer that learns its bits does."""
    if is_parametrized(module, "weight"):
        original = getattr(module.parametrizations["weight"], "original", None)  # type: ignore[index]
        return module.weight if original is None else original  # type: ignore[return-value]
    return module.weight  # type: ignore[return-value]


def _members(group: Mapping[str, Any], wanted: Callable[[Tensor], bool]) -> dict[str, list[Any]]:
    """The wanted parameters of a group, with their names where it has them."""
    keep = [wanted(parameter) for parameter in group["params"]]
    lists = [key for key in ("params", "param_names") if key in group]
    return {key: [entry for entry, kept in zip(group[key], keep, strict=True) if kept] for key in lists}
