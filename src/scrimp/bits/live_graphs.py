"""Whether some loss still waits for its backward pass through parameters that are about to be cut."""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scrimp.errors import StructureError


def refuse_live_graphs(parameters: Iterable[nn.Parameter]) -> None:
    """Raise StructureError when a tensor that Python holds could still be differentiated to one of ``parameters``.

    Told apart from what is left of earlier steps (in every loop the last loss is still there) by what the operations
    have saved: after a backward pass it is gone. Not seen are graphs that save nothing, such as that of a mere sum of
    parameters, and what is held by other than Python objects.

    Cost: with no graph at all, some microseconds per parameter; else a look at all objects that Python's garbage
    collector knows, about 0.1 s for a million of them.
    """
    watched = {parameter for parameter in parameters if parameter.requires_grad and _has_accumulator(parameter)}
    if not watched:
        return
    for one in gc.get_objects():
        if type(one) is Tensor and one.grad_fn is not None and _waits(one, watched):
            raise StructureError(
                "something that was computed with the model, a loss or an output, still waits for its backward pass, "
                "which could not go through a smaller model; call backward() first, or delete or detach() it. Nothing "
                "was changed"
            )


@torch.enable_grad()
def _has_accumulator(parameter: nn.Parameter) -> bool:
    """Whether anybody holds the node that collects the parameter's gradient, as every graph through it does."""
    mark = "scrimp: is it the same node?"
    _accumulator(parameter).metadata[mark] = True
    # without a holder the node went with the view, and the next one is new
    return bool(_accumulator(parameter).metadata.pop(mark, False))


def _accumulator(parameter: nn.Parameter) -> Any:
    function = parameter.view_as(parameter).grad_fn
    assert function is not None
    return function.next_functions[0][0]


def _waits(tensor: Tensor, watched: set[nn.Parameter]) -> bool:
    """Whether the graph of ``tensor`` leads to one of the parameters and still has what it needs for that."""
    seen, todo = set(), [tensor.grad_fn]
    leads_there = has_saved = False
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leads_there = leads_there or getattr(node, "variable", None) in watched
        has_saved = has_saved or _has_saved(node)
        if leads_there and has_saved:
            return True
        todo += [following for following, _ in node.next_functions]
    return False


def _has_saved(node: torch.autograd.graph.Node) -> bool:
    names = ["saved_tensors"] if hasattr(type(node), "saved_tensors") else []
    names += [name for name in dir(node) if name.startswith("_saved_")]
    for name in names:
        try:
            value = getattr(node, name)
        except RuntimeError:  # freed by a backward pass, or changed since, so that there can be none
            return False
        if isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(one, Tensor) for one in value)):
            return True
    return False
