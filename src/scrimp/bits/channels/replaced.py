"""What the modules that took the place of others do to channels."""

from collections.abc import Callable

import torch

from scrimp._core.stand_ins import ConstantOutput, Scatter
from scrimp.bits.channels.constraints import AtLeastOne
from scrimp.bits.channels.facts import Call, ScatterPoint, Sink, SizeAttribute
from scrimp.bits.channels.trace import ChannelTrace
from scrimp.bits.channels.values import Value, known


def constant(trace: ChannelTrace, call: Call) -> None:
    """A layer that has become a constant reads nothing, and begins channels."""
    module = trace.module
    assert isinstance(module, ConstantOutput)
    read = trace.value(call.args[0]).labels
    if read is not None:
        atoms = read.unique()
        nothing = torch.ones(len(atoms), dtype=torch.bool)
        trace.facts.sinks.append(Sink(atoms, nothing, torch.full([len(atoms)], torch.nan), nothing))
    width = int(module.num_channels)
    bias = module._parameters["bias"]
    labels = trace.facts.atoms.fresh(width) if bias is None else trace.axis(bias, 0)
    constants = torch.zeros(width) if bias is None else bias.detach().cpu()
    trace.facts.constraints.append(AtLeastOne(labels))
    trace.facts.attributes.append(SizeAttribute(module, "num_channels", labels, 0))
    shape = [1] * call.out.dim()
    shape[module.axis] = -1
    trace.set(call.out, Value(tuple(call.out.shape), labels.view(shape), known(constants.double().view(shape))))


def put_back(trace: ChannelTrace, call: Call) -> None:
    """Zeros stand between the channels that go in."""
    module, source, out = trace.module, call.args[0], call.out
    assert isinstance(module, Scatter)
    value = trace.value(source)
    if value.labels is None or any(axis != module.axis for axis in value.axes):
        trace.barrier(call, "channels that are put back along another dimension")
        return
    axis = module.axis
    inputs = value.labels.flatten()
    outputs = trace.facts.atoms.fresh(module.width)
    index = module.index.cpu()
    shape = [1] * out.dim()
    shape[axis] = -1
    constants = value.full_constants()
    own = torch.full(value.shape, torch.nan, dtype=torch.float64) if constants is None else constants
    among = torch.zeros(tuple(out.shape), dtype=torch.float64).index_copy(axis, index, own)
    trace.set(out, Value(tuple(out.shape), outputs.view(shape), known(among)))
    zeros = value.zeros_along(axis)
    trace.facts.scatters.append(ScatterPoint(trace.parent_name, axis, inputs, outputs, index, zeros, exists=True))


RULES: dict[str, Callable[[ChannelTrace, Call], None]] = {"ConstantOutput": constant, "Scatter": put_back}
