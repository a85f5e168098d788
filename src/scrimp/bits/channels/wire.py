"""From the channel graph to the wiring that the size of a model depends on."""

import dataclasses
from collections.abc import Collection

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from scrimp.bits.channels.graph import OUTPUT, ChannelGraph
from scrimp.bits.channels.watch import channel_graph
from scrimp.bits.example import ExampleInputs
from scrimp.bits.layers import quantized_layers
from scrimp.bits.wiring import Wiring, num_inputs_and_outputs, set_wiring_, trace_modules
from scrimp.errors import StructureError


def graph_wiring(model: nn.Module, example_inputs: ExampleInputs) -> Wiring:
    """The wiring of a quantised model, from its channel graph; the poorer one where the model cannot be followed.

    ``self_compress_`` sets it, and a removal keeps it up. A fresh model that was given the structure of a shrunk one
    needs it anew: ``bits.set_wiring_(model, bits.graph_wiring(model, example_inputs))``.

    Cost: two forward passes in evaluation mode.
    """
    poor = trace_modules(model, example_inputs)
    try:
        graph = channel_graph(model, example_inputs).joined(model)
    except StructureError:
        return poor
    inputs, outputs = graph.inputs(), graph.outputs()
    layers = quantized_layers(model)
    is_external = _external(graph, set(layers))
    for name, layer in layers.items():
        for classes, size in zip((inputs, outputs), num_inputs_and_outputs(layer), strict=True):
            if name not in classes:  # not called in this pass
                classes[name] = torch.arange(size) + len(is_external)
                is_external = torch.cat([is_external, torch.ones(size, dtype=torch.bool)])
    return dataclasses.replace(
        poor,
        inputs={name: inputs[name] for name in layers},
        outputs={name: outputs[name] for name in layers},
        is_external=is_external,
    )


def _external(graph: ChannelGraph, learning: Collection[str]) -> Bool[Tensor, " classes"]:
    """Classes that never go because of zero bits alone: no layer that learns makes them, or another one does, too."""
    result = torch.ones(graph.num_classes, dtype=torch.bool)
    outputs = graph.outputs()
    for name in outputs.keys() & set(learning):
        result[outputs[name]] = False
    for name in outputs.keys() - set(learning):
        result[outputs[name]] = True
    for pin in graph.facts.atoms.pins:
        if not pin.reason.startswith(OUTPUT):
            result[graph.classes[pin.atoms]] = True
    return result


def shrink_wiring_(model: nn.Module, graph: ChannelGraph, removed: Bool[Tensor, " classes"]) -> None:
    """After a removal: the wiring of a quantised model, for the channels that are left."""
    layers = quantized_layers(model)
    wiring = next((layer.quantizer.wiring for layer in layers.values()), None)
    if wiring is None:
        return
    inputs, outputs = dict(wiring.inputs), dict(wiring.outputs)
    for all_classes, found in ((inputs, graph.inputs()), (outputs, graph.outputs())):
        for name in all_classes.keys() & found.keys():
            if len(found[name]) == len(all_classes[name]):
                all_classes[name] = all_classes[name][~removed[found[name]]]
    set_wiring_(model, dataclasses.replace(wiring, inputs=inputs, outputs=outputs, plans={}))
