"""Which layer feeds which: what the size of a model depends on beyond its own layers' bits.

Channels that are the same for the model (the outputs of a layer and the inputs of the next, both sides of an addition)
are of one class. A ``Wiring`` is plain data; the channel graph makes it, and ``trace_modules`` makes a poorer one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from scrimp.bits.example import ExampleInputs, call_with, evaluating
from scrimp.bits.layers import QuantizedLayer, quantized_layers, unique_layers

if TYPE_CHECKING:
    from scrimp.bits.size_plan import Objective, SizePlan

Classes = Int64[Tensor, " channels"]


@dataclass(frozen=True, eq=False)
class Constant:
    """What the channels of ``layer`` become when they have zero bits: the value of ``parameter`` at their place.

    ``parameter`` is the bias of the layer or of the norm that follows it. With ``is_free_below_zero`` (a ReLU comes
    next) a channel leaves nothing behind as soon as its constant is not positive; otherwise it has to be zero.
    """

    layer: str
    parameter: nn.Parameter
    is_free_below_zero: bool


@dataclass(frozen=True, eq=False)
class Wiring:
    """Classes of channels, by the names of the quantised layers.

    ``inputs`` has a class for each input channel of a layer, ``outputs`` for each output channel; numbers count from 0
    to ``len(is_external)``. A class that ``is_external`` also has channels that are never removed by zero bits: the
    model's input, or the output of something that is not quantised. ``norms`` has, by layer, the batch norm that its
    output goes to, and to nothing else; both are called once.
    """

    inputs: Mapping[str, Classes]
    outputs: Mapping[str, Classes]
    is_external: Bool[Tensor, " classes"]
    constants: tuple[Constant, ...] = ()
    norms: Mapping[str, nn.Module] = field(default_factory=dict)
    plans: "dict[Objective, SizePlan]" = field(default_factory=dict, repr=False)  # kept by size_plan


def set_wiring_(model: nn.Module, wiring: Wiring) -> None:
    """Let ``scrimp.size_penalty`` and packing of ``model`` use ``wiring``, whose names are those in ``model``."""
    for layer in unique_layers(model):
        layer.quantizer.name = layer.name
        layer.quantizer.wiring = wiring


def trace_modules(model: nn.Module, example_inputs: ExampleInputs) -> Wiring:
    """The wiring as far as it can be seen from the calls of modules: chains of layers, norms, activations and pools.

    What happens between modules (additions, concatenations, functions) is not seen; a layer behind it counts as fed
    from outside. Cost: one forward pass in evaluation mode.
    """
    tracer = _Tracer(quantized_layers(model))
    handles = [
        module.register_forward_hook(tracer.note)
        for module in model.modules()
        if module in tracer.names or not any(True for _ in module.children())
    ]
    try:
        with evaluating(model), torch.no_grad(), tracer:
            call_with(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tracer.wiring()


_FREE_BELOW_ZERO = (nn.ReLU, nn.ReLU6)
_ZERO_AT_ZERO = (
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Tanh, nn.Tanhshrink,
    nn.Hardtanh, nn.Softsign, nn.RReLU,
)  # fmt: skip
_KEEPS_CHANNELS = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, *_FREE_BELOW_ZERO, *_ZERO_AT_ZERO,
)  # fmt: skip


@dataclass(frozen=True)
class _Flow:
    """A tensor on its way: the classes of its channels, the layer it comes from, and what happened since."""

    tensor: Tensor
    classes: Classes
    source: str | None = None
    norm: nn.Module | None = None
    is_raw: bool = False  # just what the layer gave
    is_settled: bool = False  # its constant is known, or nothing is


class _Tracer(TorchFunctionMode):
    def __init__(self, layers: Mapping[str, QuantizedLayer]) -> None:
        super().__init__()
        self.layers = layers
        self.names = {layer.module: name for name, layer in layers.items()}
        self._flows: dict[int, _Flow] = {}
        self._inputs: dict[str, Classes] = {}
        self._outputs: dict[str, Classes] = {}
        self._external: list[bool] = []
        self._constants: dict[str, Constant] = {}
        self._norms: dict[str, nn.Module] = {}
        self._readers: dict[str, int] = {}
        self._calls: Counter[nn.Module] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs)) if isinstance(result, Tensor) else ():
            flow = self._flows.get(id(value)) if isinstance(value, Tensor) else None
            if flow is not None and flow.is_raw and flow.source is not None:
                self._readers[flow.source] = self._readers.get(flow.source, 0) + 1
        return result

    def note(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook."""
        self._calls[module] += 1
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not isinstance(output, Tensor) or len(tensors) != 1:
            return
        flow = self._flows.get(id(tensors[0]))
        if module in self.names:
            name = self.names[module]
            self._flows[id(output)] = _Flow(output, self._pass_layer(name, flow), name, is_raw=True)
        elif flow is not None:
            after = self._follow(module, flow, output)
            if after is not None:
                self._flows[id(output)] = after
            else:
                self._flows.pop(id(output), None)

    def wiring(self) -> Wiring:
        """All that was seen."""
        for name in self.layers:  # never called as a module
            if name not in self._outputs:
                self._pass_layer(name, None)
        norms = {
            name: norm
            for name, norm in self._norms.items()
            if self._readers.get(name) == self._calls[norm] == self._calls[self.layers[name].module] == 1
        }
        external = torch.tensor(self._external, dtype=torch.bool)
        return Wiring(self._inputs, self._outputs, external, tuple(self._constants.values()), norms)

    def _pass_layer(self, name: str, flow: _Flow | None) -> Classes:
        num_inputs, num_outputs = num_inputs_and_outputs(self.layers[name])
        if flow is not None:
            self._settle(flow, is_free_below_zero=False)
        known = flow.classes if flow is not None and len(flow.classes) == num_inputs else None
        if name in self._outputs:  # called again, perhaps on other channels: then nobody can say
            self._external_again(name, known)
            return self._outputs[name]
        self._inputs[name] = known if known is not None else self._new_classes(num_inputs, is_external=True)
        self._outputs[name] = self._new_classes(num_outputs, is_external=False)
        return self._outputs[name]

    def _follow(self, module: nn.Module, flow: _Flow, output: Tensor) -> _Flow | None:
        if isinstance(module, _BatchNorm):
            if flow.source is not None and flow.norm is None and not flow.is_settled:
                is_linear = isinstance(self.layers[flow.source].module, nn.Linear | nn.Embedding)
                if flow.is_raw and (output.dim() == 2 or not is_linear):  # or channels are not what is normalised
                    self._norms[flow.source] = module
                return _Flow(output, flow.classes, flow.source, module)
            return _Flow(output, flow.classes, is_settled=True)
        if isinstance(module, nn.Flatten):
            self._settle(flow, is_free_below_zero=False)
            repeats = output.shape[1] // len(flow.classes) if output.dim() == 2 else 0
            return _Flow(output, flow.classes.repeat_interleave(repeats), is_settled=True) if repeats else None
        if not isinstance(module, _KEEPS_CHANNELS):
            self._settle(flow, is_free_below_zero=False)
            return None
        if isinstance(module, _FREE_BELOW_ZERO + _ZERO_AT_ZERO):
            self._settle(flow, is_free_below_zero=isinstance(module, _FREE_BELOW_ZERO))
            return _Flow(output, flow.classes, is_settled=True)
        return _Flow(output, flow.classes, flow.source, flow.norm, is_settled=flow.is_settled)

    def _settle(self, flow: _Flow, *, is_free_below_zero: bool) -> None:
        if flow.is_settled or flow.source is None:
            return
        bias = getattr(flow.norm if flow.norm is not None else self.layers[flow.source].module, "bias", None)
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            was_free = self._constants[flow.source].is_free_below_zero if flow.source in self._constants else True
            self._constants[flow.source] = Constant(flow.source, bias, is_free_below_zero and was_free)

    def _external_again(self, name: str, known: Classes | None) -> None:
        for classes in (self._inputs[name], self._outputs[name], *([] if known is None else [known])):
            for number in classes.tolist():
                self._external[number] = True

    def _new_classes(self, number: int, *, is_external: bool) -> Classes:
        start = len(self._external)
        self._external.extend([is_external] * number)
        return torch.arange(start, start + number)


def num_inputs_and_outputs(layer: QuantizedLayer) -> tuple[int, int]:
    """How many channels a layer takes and gives."""
    first, second = layer.raw_weight.shape[:2]
    groups: int = getattr(layer.module, "groups", 1)
    return (first, second * groups) if layer.channel_dim == 1 else (second * groups, first)
