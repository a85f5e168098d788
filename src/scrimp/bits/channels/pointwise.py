"""What operations on single elements do to channels: activations, sums, products, casts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scrimp.bits.channels.facts import Call
from scrimp.bits.channels.trace import ChannelTrace
from scrimp.bits.channels.values import Value, align, compact, known

Shape = tuple[int, ...]


def unary(trace: ChannelTrace, call: Call) -> None:
    """An activation, a cast or a dropout: each element by itself."""
    source = next(iter(call.tensors()))
    value = trace.value(source)
    constants = trace.constants(source) if not call.name.startswith("to") else value.constants
    if constants is not None and call.name not in _CASTS:
        own = constants
        constants = known(call.rerun(lambda t: own.clone() if t is source else t.detach().cpu().double()))
    trace.set(_only(call.out), Value(value.shape, value.labels, constants, value.varies))


def prelu(trace: ChannelTrace, call: Call) -> None:
    """A slope per channel, or one for all."""
    source, slope = call.argument(0, "input"), call.argument(1, "weight")
    value = trace.value(source)
    constants = value.constants
    if slope.numel() > 1:
        _tie_axis(trace, value, 1, trace.axis(slope, 0))
        slopes = slope.detach().cpu().double().view([-1 if axis == 1 else 1 for axis in range(len(value.shape))])
    else:
        slopes = slope.detach().cpu().double()
    if constants is not None:
        constants = known(torch.where(constants < 0, constants * slopes, constants))
    trace.set(call.out, Value(value.shape, value.labels, constants, value.varies))


def elementwise(trace: ChannelTrace, call: Call) -> None:
    """A sum, a product or another operation on tensors of broadcastable shapes."""
    shape = tuple(call.out.shape)
    values = [(tensor, trace.value(tensor)) for tensor in call.tensors()]
    varies = any(value.varies for _, value in values)
    shapes, labels = shape, None
    for number, (tensor, value) in enumerate(values):
        own = _labels_beside(trace, tensor, value, labels)
        if call.name in _SUMS and value.labels is not None and value.varies and len(call.tensors()) > 1:
            own = trace.scattered(tensor, value)
        if own is not None and varies and not value.varies and not _fits(own, labels, shapes, value.shape):
            own = None  # a table whose width cannot follow
        if not number:
            shapes, labels = value.shape, own
        else:
            shapes, labels = _merge(trace, (shapes, labels), (value.shape, own), shape, varies, call)
    trace.set(call.out, Value(shape, labels, _constants(trace, call), varies))


def _fits(own: Tensor, labels: Tensor | None, shape: Shape, own_shape: Shape) -> bool:
    """Whether a table's channels lie along the one axis along which the other tensor has channels."""
    if labels is None:
        return True
    num_axes = max(len(shape), len(own_shape))
    mine, other = (compact(align(part, num_axes)) for part in (own, labels))
    return mine.shape == other.shape or mine.numel() == 1


def _labels_beside(trace: ChannelTrace, tensor: Tensor, value: Value, other: Tensor | None) -> Tensor | None:
    """The labels of a tensor; a table such as a position embedding has those of the axis along which ``other`` has."""
    if value.labels is not None or value.varies or other is None or id(tensor) not in trace.names:
        return value.labels
    offset = other.dim() - tensor.dim()
    axes = [axis for axis, size in enumerate(other.shape) if size > 1]
    if len(axes) != 1 or offset < 0 or axes[0] < offset or tensor.shape[axes[0] - offset] != other.shape[axes[0]]:
        return None
    axis = axes[0] - offset
    return trace.axis(tensor, axis).view([-1 if a == axis else 1 for a in range(tensor.dim())])


def _merge(
    trace: ChannelTrace,
    first: tuple[Shape, Tensor | None],
    second: tuple[Shape, Tensor | None],
    shape: Shape,
    varies: bool,
    call: Call,
) -> tuple[Shape, Tensor | None]:
    """The labels of an operation on two tensors; what meets is tied."""
    (one, one_axes), (other, other_axes) = _aligned(first, len(shape)), _aligned(second, len(shape))
    one_shape, other_shape = ((1,) * (len(shape) - len(part[0])) + part[0] for part in (first, second))
    out = torch.broadcast_shapes(one_shape, other_shape)
    if not one_axes and not other_axes:
        if one is not None and other is not None:
            trace.facts.atoms.tie(one, other)
        return tuple(out), one if one is not None else other
    if not one_axes:
        (one, one_axes, one_shape), (other, other_axes, other_shape) = (
            (other, other_axes, other_shape),
            (one, one_axes, one_shape),
        )
    assert one is not None
    is_full = all(other_shape[axis] == out[axis] for axis in one_axes)
    is_neutral = not other_axes and all(other_shape[axis] == 1 for axis in one_axes)
    one_is_full = all(one_shape[axis] == out[axis] for axis in other_axes)
    if is_neutral:
        return tuple(out), one
    if not varies:
        return tuple(out), None
    if is_full and one_is_full and other is not None:
        trace.facts.atoms.tie(one, other)
        return tuple(out), one if len(one_axes) >= len(other_axes) else other
    if other is None:
        axes = [axis for axis in one_axes if other_shape[axis] > 1]
        trace.fix(Value(tuple(out), one), axes, f"{call.name!r}: it meets values that have no channels")
        return tuple(out), one
    for labels in (one, other):
        trace.pin(Value(tuple(out), labels), f"{call.name!r}: channels meet across different dimensions")
    return tuple(out), one


def _aligned(part: tuple[Shape, Tensor | None], num_axes: int) -> tuple[Tensor | None, list[int]]:
    labels = None if part[1] is None else align(part[1], num_axes)
    return labels, [] if labels is None else [axis for axis, size in enumerate(labels.shape) if size > 1]


def _constants(trace: ChannelTrace, call: Call) -> Tensor | None:
    """What is known of the result. Zero times whatever is zero."""
    operation = _ARITHMETIC.get(call.name)
    if operation is None:
        return None
    numbers: list[Any] = []
    for operand in call.args[:2]:
        if isinstance(operand, Tensor):
            constants = trace.constants(operand)
            numbers.append(torch.tensor(math.nan, dtype=torch.float64) if constants is None else constants)
        else:
            numbers.append(torch.tensor(float(operand), dtype=torch.float64))
    if "other" in call.kwargs and len(numbers) == 1:
        other = call.kwargs["other"]
        numbers.append(trace.constants(other) if isinstance(other, Tensor) else torch.tensor(float(other)))
    if len(numbers) != 2 or any(number is None for number in numbers):
        return None
    first, second = (align(number, call.out.dim()) for number in numbers)
    if "alpha" in call.kwargs:
        second = second * float(call.kwargs["alpha"])
    result = operation(first, second)
    if call.name in ("mul", "imul", "rmul", "multiply"):
        result = torch.where((first == 0) | (second == 0), torch.zeros((), dtype=torch.float64), result)
    return known(result)


def glu(trace: ChannelTrace, call: Call) -> None:
    """One half of the channels, gated by the other half."""
    value = trace.value(call.argument(0, "input"))
    dim = call.argument(1, "dim", -1) % len(value.shape)
    labels, constants = value.full_labels(), value.full_constants()
    if labels is not None:
        first, second = labels.chunk(2, dim)
        trace.facts.atoms.tie(first, second)
        labels = compact(first)
    if constants is not None:
        first, second = constants.chunk(2, dim)
        constants = known(torch.where(first == 0, first, first * second.sigmoid()))
    trace.set(call.out, Value(tuple(call.out.shape), labels, constants, value.varies))


def _tie_axis(trace: ChannelTrace, value: Value, axis: int, atoms: Tensor) -> Tensor:
    """Tie the channels of a tensor along ``axis`` with ``atoms``, across all its other axes."""
    labels = value.labels
    if labels is None:
        if value.varies:
            trace.facts.atoms.pin(atoms, f"values without channels in {trace.place}")
    else:
        trace.facts.atoms.tie(labels, atoms.view([-1 if a == axis else 1 for a in range(labels.dim())]))
    return atoms


tie_axis = _tie_axis


def _only(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(("add", "iadd", "radd"), torch.add),
    **dict.fromkeys(("sub", "isub", "subtract"), torch.sub),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), torch.mul),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide"), torch.div),
    "rsub": lambda first, second: second - first,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
_SUMS = frozenset(("add", "iadd", "radd", "sub", "isub", "subtract", "rsub"))
_CASTS = frozenset(
    ["float", "double", "half", "bfloat16", "to", "type", "type_as", "contiguous", "clone", "detach", "data", "alias",
     "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
     "cpu", "cuda", "requires_grad"]
)  # fmt: skip
_ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid", "log_sigmoid", "threshold", "hardshrink",
    "softshrink", "tanhshrink", "rrelu", "exp", "expm1", "neg", "abs", "absolute", "square", "sqrt", "rsqrt", "sin",
    "cos", "erf", "reciprocal", "log", "log1p", "clamp", "clip", "clamp_min", "clamp_max", "sign", "round", "floor",
)  # fmt: skip
_PAIRS = (
    "pow", "rpow", "ipow", "eq", "ne", "lt", "le", "gt", "ge", "where", "masked_fill", "lerp", "addcmul", "rdiv",
    "rtruediv", "floor_divide", "remainder", "logical_and", "logical_or", "and", "or", "atan2", "rsub", "xor", "copy",
)  # fmt: skip

RULES: dict[str, Callable[[ChannelTrace, Call], None]] = {
    **dict.fromkeys((*_CASTS, *_ACTIVATIONS), unary),
    **dict.fromkeys((*_ARITHMETIC, *_PAIRS), elementwise),
    "prelu": prelu,
    "glu": glu,
}
