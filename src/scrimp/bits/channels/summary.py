"""A model's layers and what they feed, as data: what a picture of the architecture is drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from scrimp.bits.channels.watch import channel_graph
from scrimp.bits.layers import quantized_layers


@dataclass(frozen=True)
class LayerSummary:
    """One layer. JSON values only.

    ``num_inputs``, ``num_outputs``: channels. ``num_dead``: outputs of zero bits, or whose weights are all zero.
    ``num_waiting``: those of them that could not be removed now. ``mean_bits``: over the live outputs, None for a layer
    that learns no bits. ``num_weights``: in the layer's weight. ``inputs_from``: the layers whose outputs it reads.
    ``added_to``: layers whose outputs meet its own element by element, as on the two sides of an addition.
    """

    name: str
    kind: str
    num_inputs: int
    num_outputs: int
    num_dead: int
    num_waiting: int
    mean_bits: float | None
    num_weights: int
    inputs_from: tuple[str, ...]
    added_to: tuple[str, ...]


def channel_summary(
    model: nn.Module, example_inputs: Any = None, masks: Mapping[str, Bool[Tensor, " channels"]] | None = None
) -> tuple[LayerSummary, ...]:
    """The layers of ``model`` in the order in which they are called.

    Called before and after a training it gives the architecture before and after. Args, errors, warnings and cost as
    ``channel_graph``; bits are read from the device.
    """
    graph = channel_graph(model, example_inputs, masks)
    removed, own = graph.removable(), graph.outputs()
    joined = graph.joined(model)
    outputs, inputs = joined.outputs(), joined.inputs()
    members = {name: set(classes.tolist()) for name, classes in outputs.items()}
    learning = quantized_layers(model)
    result = []
    for name, classes in outputs.items():
        dead = graph.dead_outputs(name)
        module = model.get_submodule(name)
        read = set(inputs[name].tolist()) if name in inputs else set()
        weight = learning[name].raw_weight if name in learning else module.weight
        assert isinstance(weight, Tensor)
        live = learning[name].bits.cpu()[~dead] if name in learning else None
        result.append(
            LayerSummary(
                name=name,
                kind=type(module).__name__.removeprefix("Parametrized"),
                num_inputs=len(inputs[name]) if name in inputs else 0,
                num_outputs=len(classes),
                num_dead=int(dead.sum()),
                num_waiting=int((dead & ~removed[own[name]]).sum()) if name not in graph.empty else 0,
                mean_bits=float(live.mean()) if live is not None and len(live) else None,
                num_weights=weight.numel(),
                inputs_from=tuple(other for other in outputs if other != name and members[other] & read),
                added_to=tuple(other for other in outputs if other != name and members[other] & members[name]),
            )
        )
    return tuple(result)
