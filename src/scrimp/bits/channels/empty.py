"""Layers that have nothing left to do: all their weights are zero, or nobody reads what they give."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from scrimp._core.stand_ins import can_stand_for, scatter_behind

if TYPE_CHECKING:
    from scrimp.bits.channels.graph import ChannelGraph


def empty_layers(model: nn.Module, graph: "ChannelGraph") -> Mapping[str, bool]:
    """The layers and norms that a constant can take the place of, and whether anybody reads that constant.

    None when the outputs of the model depend on its inputs no more: then there is no other branch to live on.
    """
    if not graph.facts.depends_on_inputs:
        return {}
    outputs = graph.outputs()
    can_go = {name for name in outputs if _is_alone(model, graph, name)}
    gone = {name for name in can_go if bool(graph.dead_outputs(name).all())}
    while True:
        unread = graph.unread(gone)
        more = {name for name in can_go - gone if bool(unread[outputs[name]].all())}
        if not more:
            break
        gone |= more
    found = {name: not bool(unread[outputs[name]].all()) for name in gone}
    for norm in graph.facts.norms:
        is_unread = bool(unread[graph.classes[norm.labels]].all())
        if (is_unread or norm.is_constant) and _is_alone(model, graph, norm.module):
            found[norm.module] = not is_unread
    return found


def _is_alone(model: nn.Module, graph: "ChannelGraph", name: str) -> bool:
    """Whether the module is one that can be replaced, is called once, and shares no tensor with others."""
    if not name or graph.facts.num_calls.get(name) != 1:
        return False
    module = model.get_submodule(name)
    if not can_stand_for(module):
        return False
    if scatter_behind(module) is not None and not any(
        point.module == name and bool(point.is_zero.all()) for point in graph.facts.scatters
    ):
        return False
    if sum(other is module for _, other in model.named_modules(remove_duplicate=False)) > 1:
        return False
    own = {id(parameter) for parameter in module.parameters()}
    begin = f"{name}."
    others = model.named_parameters(remove_duplicate=False)
    return not any(id(parameter) in own and not other.startswith(begin) for other, parameter in others)
