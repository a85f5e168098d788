"""From a model and an example to its channel graph."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from scrimp._core.rng import capture_global_rng, restore_global_rng
from scrimp._core.structure_plan import named_tensors, some
from scrimp.bits.channels import layers, movement, passing, replaced
from scrimp.bits.channels import pointwise as elements
from scrimp.bits.channels.checks import check_masks, check_model
from scrimp.bits.channels.graph import OUTPUT, ChannelGraph
from scrimp.bits.channels.trace import ChannelTrace
from scrimp.bits.layers import quantized_layers
from scrimp.errors import ConfigError, NoEffectWarning, StructureError

_RULES = {**elements.RULES, **movement.RULES, **layers.RULES, **passing.RULES, **replaced.RULES}


@dataclass(frozen=True)
class _Example:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    pointwise: frozenset[type[nn.Module]]


_EXAMPLES: WeakKeyDictionary[nn.Module, _Example] = WeakKeyDictionary()


def remember_example_(model: nn.Module, example_inputs: Any, pointwise: Iterable[type[nn.Module]] = ()) -> None:
    """Keep two samples of ``example_inputs`` beside ``model``, for later calls that need its graph.

    Args as in ``channel_graph``.
    """
    _EXAMPLES[model] = _Example(*_arguments(example_inputs), frozenset(pointwise))


def share_example_(model: nn.Module, other: nn.Module) -> bool:
    """Let ``other``, a copy, have the example that is remembered for ``model``; whether there is one."""
    if model in _EXAMPLES:
        _EXAMPLES[other] = _EXAMPLES[model]
    return model in _EXAMPLES


def channel_graph(
    model: nn.Module,
    example_inputs: Any = None,
    masks: Mapping[str, Bool[Tensor, " channels"]] | None = None,
    *,
    pointwise: Iterable[type[nn.Module]] = (),
    branches: bool = False,
) -> ChannelGraph:
    """Watch one forward pass of ``model`` and say which channels belong together.

    The pass runs in evaluation mode on two samples of ``example_inputs``; parameters, buffers, modes and global random
    states are as before afterwards. Code that takes another way in training, or depending on values, is not seen.

    Args: example_inputs - a tensor, a tuple of arguments or a dict of keyword arguments; None takes those remembered.
        masks - by layer, which of its outputs are dead; for other layers, those whose weights are all exactly zero.
        pointwise - module classes of yours whose forward treats each element by itself, where that is not found out;
        remembered with the example. branches - channels that are added need not go together where zeros can be put
        back behind one of them: see ``remove_dead_channels_``.
    Raises: StructureError - lazy, parametrised or compiled modules, sparse tensors, or the model does not run on
        the example. ConfigError - no example, or a mask that fits no layer.
    Warns: NoEffectWarning - an operation that is not known, with the layers that it keeps from shrinking.
    Cost: one forward pass of two samples, and a few times that for the bookkeeping, on the CPU.
    """
    if example_inputs is not None:
        remember_example_(model, example_inputs, pointwise)
    if model not in _EXAMPLES:
        raise ConfigError(
            "channel_graph needs example_inputs once: inputs as the model takes them, two samples are enough"
        )
    check_model(model)
    masks = {**{name: layer.dead for name, layer in quantized_layers(model).items()}, **(masks or {})}
    check_masks(model, masks)
    trace = ChannelTrace(model, _RULES, masks, _EXAMPLES[model].pointwise, branches=branches)
    args, kwargs = example_of(model)
    random_state = capture_global_rng()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with trace.watching(tree_leaves((args, kwargs))):
            out = model(*args, **kwargs)
    except Exception as error:
        raise StructureError(
            f"{type(model).__name__} does not run on the example inputs in evaluation mode "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); give inputs that it takes"
        ) from error
    finally:
        restore_global_rng(random_state)
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.copy_(before)
    for leaf in tree_leaves(plain_outputs(out)):
        if isinstance(leaf, Tensor):
            value = trace.value(leaf)
            trace.facts.depends_on_inputs |= trace.depends_on_inputs(leaf)
            if value.labels is not None:
                trace.facts.atoms.pin(value.labels, OUTPUT)
    trace.finish()
    graph = ChannelGraph(model, trace.facts)
    if unknown := [barrier for barrier in graph.barriers() if barrier.is_unknown]:
        told = "; ".join(f"{barrier.reason} keeps the outputs of {some(list(barrier.layers))}" for barrier in unknown)
        warnings.warn(f"channels cannot be followed everywhere: {told}", NoEffectWarning, stacklevel=2)
    return graph


def plain_outputs(out: Any) -> Any:
    """The tensors in what a model returns, as nested lists: in dicts, sequences, and as attributes of an object.

    What an object holds deeper down, such as the keys and values in a cache, is its own affair.
    """
    if isinstance(out, Tensor):
        return out
    if isinstance(out, Mapping):
        return [plain_outputs(value) for value in out.values()]
    if isinstance(out, tuple | list):
        return [plain_outputs(value) for value in out]
    return [value for value in vars(out).values() if isinstance(value, Tensor)] if hasattr(out, "__dict__") else []


def example_of(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example remembered for ``model``, positional and keyword arguments, on the model's device."""
    device = next((tensor.device for tensor in named_tensors(model).values()), torch.device("cpu"))
    example = (_EXAMPLES[model].args, _EXAMPLES[model].kwargs)
    args, kwargs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)
    return args, kwargs


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ConfigError(
            f"example_inputs is {type(example_inputs).__name__} without a tensor; give what the model takes"
        )
    lengths = {tensor.shape[0] for tensor in tensors if tensor.dim()}
    can_cut = len(lengths) == 1 and all(tensor.dim() for tensor in tensors)

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return (leaf[:2] if can_cut else leaf).detach().clone()

    args, kwargs = tree_map(cut, (args, kwargs))
    return args, kwargs
