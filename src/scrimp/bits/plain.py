"""A compressed model as the plain one that computes the same."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp.bits.example import call_with
from scrimp.bits.layers import quantized_layers, unique_layers


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without quantisers, whose weights are the quantised ones, bit by bit.

    It needs nothing of scrimp to run, and its state has the names that the model had before ``self_compress_``.
    """
    result = copy.deepcopy(model)
    for layer in quantized_layers(result).values():
        original = layer.raw_weight
        with torch.no_grad():
            original.data = layer.quantized_weight()
        _without_parametrization(layer.module, original)
    return result


def _without_parametrization(module: nn.Module, weight: Tensor) -> None:
    """Give ``module`` a plain weight again.

    torch's own function takes the property from the module's class, which copies share, and so breaks the original.
    """
    kind = type(module)
    chains = module.parametrizations
    assert isinstance(chains, nn.ModuleDict)
    del chains["weight"]
    if len(chains):
        properties = {name: value for name, value in vars(kind).items() if name != "weight"}
        module.__class__ = type(kind.__name__, kind.__bases__, properties)
    else:
        del module.parametrizations
        module.__class__ = kind.__bases__[0]
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({"weight": nn.Parameter(weight) if not isinstance(weight, nn.Parameter) else weight})
    module._parameters.update(others)


@torch.no_grad()
def finalize_(model: nn.Module, batches: Iterable[Any] | None = None) -> None:
    """Settle the bits of ``model``: what each channel does not use goes, and bits and exponents are frozen.

    Depths become the least that hold the codes that are there, and none where all are zero; no weight changes by it.
    With ``batches`` (each what the model is called with: a tensor, a tuple, a mapping) the running statistics of batch
    norms are then computed anew, as plain means over these batches, with the model as it is now.

    Cost: one look at the weights; a forward pass per batch.
    """
    drop_unused_bits_(model)
    freeze_bits_(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if batches is not None and norms:
        _recalibrate(model, norms, batches)


@torch.no_grad()
def drop_unused_bits_(model: nn.Module) -> None:
    """Lower bits to the least that hold the codes that are there; no weight changes by it."""
    for layer in unique_layers(model):
        codes = layer.codes().movedim(layer.channel_dim, 0).flatten(1)
        # codes lie in -reach .. reach - 1, or symmetrically in 1/2 - reach .. reach - 1/2
        over = 0.5 if layer.quantizer.symmetric else 1
        reach = torch.maximum(1 - over - codes.amin(1), codes.amax(1) + over)
        _, exponent = layer.quantizer.learned()
        present = layer.bits
        # a depth of log2(2 * reach) has exactly these codes; the learned one may be lower and have them all the same
        bits = torch.where(codes.any(1), torch.minimum(present, 1 + torch.log2(reach.clamp(min=1).to(present))), 0.0)
        layer.quantizer.set_(bits, exponent)


def _recalibrate(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Any]) -> None:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    try:
        for batch in batches:
            call_with(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


def freeze_bits_(model: nn.Module, *, frozen: bool = True) -> None:
    """Stop bits and exponents from learning, or let them go on."""
    for layer in unique_layers(model):
        layer.quantizer.requires_grad_(not frozen)
        if frozen:
            for parameter in layer.quantizer.parameters():
                parameter.grad = None


def live_inputs(model: nn.Module) -> dict[str, Tensor]:
    """By layer, which of its inputs have a producer that is alive (or is not quantised)."""
    layers = unique_layers(model)
    wiring = layers[0].quantizer.wiring if layers else None
    if wiring is None:
        return {}
    alive = wiring.is_external.clone()
    for layer in layers:
        alive[wiring.outputs[layer.quantizer.name][~layer.dead.cpu()]] = True
    return {layer.name: alive[wiring.inputs[layer.quantizer.name]] for layer in layers}
