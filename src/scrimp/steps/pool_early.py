"""Pooling before the activation (the same function, cheaper) and, on request, before the norm (another function)."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps.module_tree import evaluating, slots_of, trace

_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# Non-decreasing for every value of their settings; LeakyReLU, ELU and CELU for those that anybody uses.
_MONOTONE = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.SELU, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign,
    nn.Tanh,
)  # fmt: skip

Undo = Callable[[], None]


def pool_early_(model: nn.Module, example_inputs: Any = None, *, before_norm: bool = False) -> int:
    """Move each max pooling that follows an activation before it, so that the activation has a quarter of the work.

    For an activation that never falls, ``max(act(x)) == act(max(x))``: the model computes the same. Found are modules
    that are neighbours in an ``nn.Sequential``, and modules that torch.fx finds to be called one after the other in
    anybody's ``forward``, each called once and hanging in one place. In a Sequential the order changes and every
    module keeps its name; elsewhere the two modules trade places. Names in ``state_dict()`` stay as they were.

    ``before_norm`` also moves each max pooling that then follows a batch norm in a Sequential before the norm. That
    **changes the function** (the statistics are of the maxima, and where a norm's scale is negative it picks minima),
    and saves the norm the same three quarters. Do it before training, never to a trained model.

    Args: model - changed in place. example_inputs - one tensor, or a tuple of arguments: the outputs in evaluation mode
        are computed before and after the moves that must not change them, and compared. before_norm - see above.
    Returns: how many times a pooling was moved past a module. A second call finds nothing.
    Raises: ConfigError - the outputs differ (the forward pass uses parts of a Sequential, say); the model is then as
        it was. Warns: NoEffectWarning - nothing to move; activations and poolings that are called as functions, and
        activations that are not monotone (GELU, SiLU, Mish), stay where they are.
    Cost: two traces; two forward passes if there is an example.
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", "moving max-pool layers" (there by hand).
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    before = _outputs(model, inputs) if example_inputs is not None else None
    undo = _reorder_sequentials(model, _is_monotone)
    undo += _trade_places(model)
    if before is not None:
        try:
            torch.testing.assert_close(_outputs(model, inputs), before)
        except Exception as error:
            for take_back in reversed(undo):
                take_back()
            raise ConfigError(
                "pool_early_: the outputs change when pooling is moved before the activation, so the forward pass uses "
                "the modules in another way than one after the other; reorder this model by hand. Nothing was changed."
            ) from error
    if before_norm:
        undo += _reorder_sequentials(model, lambda module: isinstance(module, _BatchNorm))
    if not undo:
        warnings.warn(
            f"pool_early_ found no max pooling behind a monotone activation in {type(model).__name__}, as modules that "
            "are called once (is it early already? functions and GELU, SiLU, Mish are left alone)",
            NoEffectWarning,
            stacklevel=2,
        )
    return len(undo)


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    with evaluating(model), torch.no_grad():
        return model(*inputs)


def _is_monotone(module: nn.Module) -> bool:
    if isinstance(module, nn.LeakyReLU):
        return module.negative_slope >= 0
    if isinstance(module, nn.ELU | nn.CELU):
        return module.alpha >= 0
    return isinstance(module, _MONOTONE)


def _is_pool(module: nn.Module | None) -> bool:
    return isinstance(module, _POOLS) and not module.return_indices


def _reorder_sequentials(model: nn.Module, passes: Callable[[nn.Module], bool]) -> list[Undo]:
    """Let poolings pass the modules before them; one undo for each step taken."""
    undo: list[Undo] = []
    for parent in model.modules():
        if type(parent).forward is not nn.Sequential.forward:
            continue
        items: list[tuple[str, Any]] = list(parent._modules.items())
        for end in range(1, len(items)):
            place = end
            while place and _is_pool(items[place][1]) and passes(items[place - 1][1]):
                undo.append(_order(parent, items))
                items[place - 1], items[place] = items[place], items[place - 1]
                place -= 1
        _order(parent, items)()
    return undo


def _order(parent: nn.Module, items: list[tuple[str, nn.Module | None]]) -> Undo:
    """Give the children of ``parent`` the present order of ``items``, when called."""
    children = dict(items)

    def set_order() -> None:
        parent._modules.clear()
        parent._modules.update(children)

    return set_order


def _trade_places(model: nn.Module) -> list[Undo]:
    """Let poolings and the activations right before them in the model's graph take each other's place in the tree."""
    undo: list[Undo] = []
    while pairs := _adjacent(model, trace(model)):
        for activation, pool in pairs:
            trade = _trade(*slots_of(model, activation), *slots_of(model, pool))
            trade()
            undo.append(trade)
    return undo


def _adjacent(model: nn.Module, graph: fx.Graph | None) -> list[tuple[nn.Module, nn.Module]]:
    """Activations and the poolings that alone use what they give; both called once, and hanging in one place."""
    calls = [node for node in graph.nodes if node.op == "call_module"] if graph is not None else []
    modules = {node: model.get_submodule(str(node.target)) for node in calls}
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in modules or set(before.users) != {node}:
            continue
        pair = (modules[before], modules[node])
        once = all(list(modules.values()).count(m) == 1 and len(slots_of(model, m)) == 1 for m in pair)
        fresh = not any(m in used for m in pair for used in pairs)
        if once and fresh and _is_monotone(pair[0]) and _is_pool(pair[1]):
            pairs.append(pair)
    return pairs


def _trade(first: tuple[nn.Module, str], second: tuple[nn.Module, str]) -> Undo:
    """Exchange what hangs in two places, when called; called again, it takes that back."""

    def exchange() -> None:
        one, other = getattr(*first), getattr(*second)
        setattr(*first, other)
        setattr(*second, one)

    return exchange
