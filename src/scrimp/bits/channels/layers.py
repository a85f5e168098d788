"""What layers do to channels: they end some and begin others; batch norms follow them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp._core.structure_plan import owner_of
from scrimp.bits.channels.constraints import GroupedInputs
from scrimp.bits.channels.facts import Call, NormCall, RunningMean, Sink, plain
from scrimp.bits.channels.pointwise import tie_axis
from scrimp.bits.channels.trace import ChannelTrace
from scrimp.bits.channels.values import Value, known

_NAN = float("nan")


def linear(trace: ChannelTrace, call: Call) -> None:
    """A product with a weight of shape (outputs, inputs), over the last dimension."""
    weight = trace.parameter(call.argument(1, "weight"))
    if weight is None or weight.dim() != 2:
        trace.barrier(call, "a weight that is computed")
        return
    source = call.argument(0, "input")
    dead = trace.dead_rows(weight, 0)
    bias = trace.parameter(call.argument(2, "bias"), "bias")
    _read(trace, trace.value(source), len(source.shape) - 1, weight, 1, bool(dead.all()), bias is not None)
    _write(trace, call, len(call.out.shape) - 1, weight, 0, bias)


def addmm(trace: ChannelTrace, call: Call) -> None:
    """A product with a weight of shape (inputs, outputs), plus a bias."""
    weight = trace.parameter(call.argument(2, "mat2"))
    bias = trace.parameter(call.argument(0, "input"), "bias")
    if weight is None or bias is None or bias.dim() != 1 or id(weight) not in trace.names:
        trace.barrier(call, "a weight that is computed")
        return
    dead = trace.dead_rows(weight, 1)
    _read(trace, trace.value(call.argument(1, "mat1")), 1, weight, 0, bool(dead.all()), True)
    _write(trace, call, 1, weight, 1, bias)


def matmul(trace: ChannelTrace, call: Call) -> None:
    """A product of activations keeps all channels; with a parameter on the right it is a linear layer."""
    weight = call.argument(1, "other", call.kwargs.get("mat2"))
    if id(weight) in trace.names and weight.dim() == 2:
        source = call.argument(0, "input")
        dead = trace.dead_rows(weight, 1)
        _read(trace, trace.value(source), len(source.shape) - 1, weight, 0, bool(dead.all()), False)
        _write(trace, call, len(call.out.shape) - 1, weight, 1, None)
    else:
        trace.barrier(call, f"{call.name!r} of two activations")


def convolution(trace: ChannelTrace, call: Call) -> None:
    """A convolution: plain, depthwise or grouped."""
    weight = trace.parameter(call.argument(1, "weight"))
    source = call.argument(0, "input")
    if weight is None or len(source.shape) != weight.dim():
        trace.barrier(call, "a weight that is computed, or an input without batch dimension")
        return
    bias = trace.parameter(call.argument(2, "bias"), "bias")
    groups = int(plain(call.argument(6, "groups", 1)))
    value = trace.value(source)
    if groups == 1:
        dead = trace.dead_rows(weight, 0)
        padding = call.argument(4, "padding", 0)
        can_fold = bias is not None and _is_unpadded(padding, weight)
        _read(trace, value, 1, weight, 1, bool(dead.all()), can_fold)
        _write(trace, call, 1, weight, 0, bias)
    elif groups == source.shape[1]:
        _depthwise(trace, call, value, weight, bias)
    else:
        _grouped(trace, call, value, weight, bias, groups)


def _is_unpadded(padding: Any, weight: Tensor) -> bool:
    if padding == "same":
        return all(size == 1 for size in weight.shape[2:])
    sizes = padding if isinstance(padding, tuple | list) else [padding]
    return all(size in (0, "valid") for size in sizes)


def _depthwise(trace: ChannelTrace, call: Call, value: Value, weight: Tensor, bias: Tensor | None) -> None:
    outputs = trace.axis(weight, 0, is_output=True)
    num_inputs = value.shape[1]
    trace.facts.inputs[owner_of(trace.names[id(weight)])] = outputs.view(num_inputs, -1)[:, 0]
    tie_axis(trace, value, 1, outputs.view(num_inputs, -1)[:, 0])
    if len(outputs) > num_inputs:
        trace.facts.atoms.tie(outputs.view(num_inputs, -1), outputs.view(num_inputs, -1)[:, :1])
    dead = trace.dead_rows(weight, 0)
    constants = value.full_constants()
    if constants is None:
        constants = torch.full(value.shape, _NAN, dtype=torch.float64)
    shift = torch.zeros(len(outputs), dtype=torch.float64)
    if bias is not None:
        trace.facts.atoms.tie(trace.axis(bias, 0), outputs)
        shift = bias.detach().cpu().double()
    kernel = weight.detach().cpu().double()
    arguments = [plain(argument) for argument in call.args[3:]]
    options = {
        name: option for name, option in call.kwargs.items() if name in ("stride", "padding", "dilation", "groups")
    }
    out = call.func(constants, kernel, shift, *arguments, **options)
    out = torch.where(_beside(dead, out.dim()), _beside(shift, out.dim()), out)
    _set_channels(trace, call.out, 1, outputs, out)


def _grouped(trace: ChannelTrace, call: Call, value: Value, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    inputs = trace.facts.atoms.fresh(value.shape[1])
    trace.facts.inputs[owner_of(trace.names[id(weight)])] = inputs
    tie_axis(trace, value, 1, inputs)
    outputs = trace.axis(weight, 0, is_output=True)
    dead = trace.dead_rows(weight, 0)
    is_silent, constant = _silence(value, 1)
    rows = dead.view(groups, -1).all(dim=1).repeat_interleave(len(inputs) // groups)
    trace.facts.sinks.append(Sink(inputs, is_silent | rows, constant, rows, owner_of(trace.names[id(weight)])))
    constraint = GroupedInputs(inputs.view(groups, -1), outputs.view(groups, -1))
    trace.facts.constraints.append(constraint)
    trace.facts.grouped[id(weight)] = (weight, constraint)
    _write(trace, call, 1, weight, 0, bias)


def transposed(trace: ChannelTrace, call: Call) -> None:
    """A transposed convolution without groups; its weight has shape (inputs, outputs, ...)."""
    weight = trace.parameter(call.argument(1, "weight"))
    groups = int(plain(call.argument(6, "groups", 1)))
    if weight is None or groups != 1:
        trace.barrier(call, "a transposed convolution with groups or with a computed weight")
        return
    dead = trace.dead_rows(weight, 1)
    source = call.argument(0, "input")
    _read(trace, trace.value(source), 1, weight, 0, bool(dead.all()), False)
    _write(trace, call, 1, weight, 1, trace.parameter(call.argument(2, "bias"), "bias"))


def embedding(trace: ChannelTrace, call: Call) -> None:
    """Rows of a table, whose columns are channels."""
    weight = trace.parameter(call.argument(1, "weight"))
    if weight is None:
        trace.barrier(call, "a table that is computed")
        return
    outputs = trace.axis(weight, 1, is_output=True)
    trace.facts.atoms.pin(trace.axis(weight, 0), "the rows of an embedding")
    trace.facts.inputs[owner_of(trace.names[id(weight)])] = trace.axis(weight, 0)
    dead = (weight.detach() == 0).all(dim=0).cpu()
    constants = torch.where(dead, torch.zeros((), dtype=torch.float64), torch.full((), _NAN, dtype=torch.float64))
    _set_channels(trace, call.out, len(call.out.shape) - 1, outputs, constants)


def batch_norm(trace: ChannelTrace, call: Call) -> None:
    """Scale and shift per channel. While it trains, what is constant becomes exactly the shift."""
    source = call.argument(0, "input")
    value = trace.value(source)
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    scale, shift = call.argument(3, "weight"), call.argument(4, "bias")
    if value.labels is not None and any(axis != 1 for axis in value.axes):
        trace.barrier(call, "a batch norm over several dimensions of channels")
        return
    for tensor in (mean, variance, scale, shift):
        if tensor is not None and id(tensor) in trace.names:
            tie_axis(trace, value, 1, trace.axis(tensor, 0))
    constants = value.constants
    name = trace.module_name
    if constants is not None:
        tensors = [None if t is None else t.detach().cpu().double() for t in (mean, variance, scale, shift)]
        is_training = mean is None or trace.was_training.get(trace.module, True)
        if is_training and mean is not None and id(mean) in trace.names:
            trace.facts.running.append(RunningMean(mean, trace.axis(mean, 0), _silence(value, 1)[1]))
        eps = float(call.argument(7, "eps", 1e-5))
        constants = known(_normed(constants, value.shape[1], tensors, eps, is_training))
    if value.labels is not None and isinstance(trace.module, _BatchNorm):
        trace.facts.norms.append(NormCall(name, value.labels.flatten(), _is_shift(constants, shift)))
    trace.set(call.out, Value(value.shape, value.labels, constants, value.varies))


def _is_shift(constants: Tensor | None, shift: Tensor | None) -> bool:
    """Whether ``constants`` are known for all channels and are just the bias of the norm."""
    if constants is None:
        return False
    shifts = torch.zeros(1, dtype=torch.float64) if shift is None else shift.detach().cpu().double()
    return bool((constants == _beside(shifts, constants.dim())).all())


def _normed(
    constants: Tensor, channels: int, tensors: list[Tensor | None], eps: float, is_training: bool
) -> Tensor | None:
    mean, variance, scale, shift = tensors
    if is_training:
        # of a constant channel the batch has mean c and variance 0
        if any(size > 1 for axis, size in enumerate(constants.shape) if axis != 1):
            return None
        shifts = torch.zeros(channels, dtype=torch.float64) if shift is None else shift
        return torch.where(constants.isnan(), constants, _beside(shifts, constants.dim()))
    wide = constants.expand(-1, channels, *constants.shape[2:])
    return functional.batch_norm(wide, mean, variance, scale, shift, training=False, eps=eps)


def _read(
    trace: ChannelTrace, value: Value, axis: int, weight: Tensor, dim: int, has_no_rows: bool, can_fold: bool
) -> None:
    """A layer reads the channels of ``value`` along ``axis`` with dimension ``dim`` of its weight."""
    inputs = tie_axis(trace, value, axis, trace.axis(weight, dim))
    trace.facts.inputs[owner_of(trace.names[id(weight)])] = inputs
    if value.labels is not None:
        is_silent, constant = _silence(value, axis)
        is_unread = torch.full_like(is_silent, has_no_rows)
        layer = owner_of(trace.names[id(weight)])
        trace.facts.sinks.append(Sink(inputs, is_silent | is_unread, constant, is_unread, layer, can_fold, weight, dim))


def _silence(value: Value, axis: int) -> tuple[Tensor, Tensor]:
    """For each index along ``axis``: whether it is zero everywhere; and the one constant that it is, or NaN."""
    size = value.shape[axis]
    if value.constants is None:
        return torch.zeros(size, dtype=torch.bool), torch.full([size], _NAN, dtype=torch.float64)
    rows = value.constants.movedim(axis, 0).flatten(1)
    is_flat = (rows == rows[:, :1]).all(dim=1)
    constant = torch.where(is_flat, rows[:, 0], torch.full((), _NAN, dtype=torch.float64))
    return (rows == 0).all(dim=1).expand(size).clone(), constant.expand(size).clone()


def _write(trace: ChannelTrace, call: Call, axis: int, weight: Tensor, dim: int, bias: Tensor | None) -> None:
    """A layer begins channels along ``axis`` of its result. A dead one is the layer's bias there."""
    outputs = trace.axis(weight, dim, is_output=True)
    dead = trace.dead_rows(weight, dim)
    constants = torch.zeros(len(outputs), dtype=torch.float64)
    if bias is not None:
        trace.facts.atoms.tie(trace.axis(bias, 0), outputs)
        constants = bias.detach().cpu().double()
    constants = torch.where(dead, constants, torch.full((), _NAN, dtype=torch.float64))
    _set_channels(trace, call.out, axis, outputs, constants)


def _set_channels(trace: ChannelTrace, out: Tensor, axis: int, atoms: Tensor, constants: Tensor) -> None:
    shape = [-1 if other == axis else 1 for other in range(len(out.shape))]
    if constants.dim() == 1:
        constants = constants.view(shape)
    trace.set(out, Value(tuple(out.shape), atoms.view(shape), known(constants)))


def _beside(tensor: Tensor, num_axes: int) -> Tensor:
    return tensor.view([-1 if axis == 1 else 1 for axis in range(num_axes)])


RULES: dict[str, Callable[[ChannelTrace, Call], None]] = {
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("matmul", "mm", "rmatmul"), matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    "embedding": embedding,
    "batch_norm": batch_norm,
}
