"""Modules that take the place of what has gone: a constant where a layer was, and zeros where channels were.

A model's own code goes on calling what it called, so that a branch can be deleted without touching its forward. What
stands where is described by JSON values (a ``Spec``), from which ``Structure`` makes it again on a fresh model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from scrimp.errors import FormatError, StructureError

Spec = Mapping[str, Any]
_SCATTER = "scrimp_scatter"


class ConstantOutput(nn.Module):
    """What is left of a layer, or of a norm behind one, whose weights are all zero: its bias everywhere, or zeros.

    Of the input only the shape is used. ``axis`` has the channels; the positions are those that the layer would give,
    by ``geometry``: for each of them kernel, stride, padding on both sides together, dilation, and what a transposed
    convolution adds (None for others).
    """

    def __init__(
        self, num_channels: int, axis: int, geometry: Iterable[Iterable[int | None]], bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.num_channels, self.axis = num_channels, axis
        self.geometry = tuple(tuple(one) for one in geometry)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """The constant at every position, in memory of its own, so that it may be changed in place."""
        sizes = list(x.shape)
        sizes[self.axis] = self.num_channels
        for dim, (kernel, stride, padding, dilation, added) in enumerate(self.geometry, start=2):
            assert kernel is not None and stride is not None and padding is not None and dilation is not None  # noqa: PT018
            reach = dilation * (kernel - 1)
            if added is None:
                sizes[dim] = (x.shape[dim] + padding - reach - 1) // stride + 1
            else:
                sizes[dim] = (x.shape[dim] - 1) * stride - padding + reach + added + 1
        bias = self._parameters["bias"]
        if bias is None:
            return x.new_zeros(sizes)
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return bias.to(x.dtype).view(shape).expand(sizes).clone(memory_format=torch.contiguous_format)

    def extra_repr(self) -> str:
        """Its width."""
        return f"{self.num_channels}, bias={self._parameters['bias'] is not None}"


class Scatter(nn.Module):
    """Channels put back where they were among ``width``, with zeros where others were. ``index`` is ascending."""

    def __init__(self, axis: int, width: int, index: Iterable[int]) -> None:
        super().__init__()
        self.axis, self.width = axis, width
        self.index = torch.tensor(list(index), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """A copy of ``x`` with ``width`` channels. Cost: writing the result."""
        if self.index.device != x.device:
            self.index = self.index.to(x.device)
        sizes = list(x.shape)
        sizes[self.axis] = self.width
        is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if is_last else torch.contiguous_format
        out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=order).zero_()
        return out.index_copy_(self.axis, self.index, x)

    def extra_repr(self) -> str:
        """From how many to how many."""
        return f"{len(self.index)} of {self.width}"


def scatter_behind(module: nn.Module) -> Scatter | None:
    """What stands behind ``module``."""
    child = module._modules.get(_SCATTER)
    return child if isinstance(child, Scatter) else None


def can_stand_for(module: nn.Module) -> bool:
    """Whether a ``ConstantOutput`` can take the place of a module of this kind."""
    return isinstance(module, nn.Linear | _ConvNd | _BatchNorm)


def constant_spec(module: nn.Module, num_channels: int, *, with_bias: bool) -> Spec:
    """A constant in the place of ``module``; ``with_bias`` its bias stays, a parameter that learns on."""
    geometry: list[list[int | None]] = []
    if isinstance(module, _ConvNd):
        for i, kernel in enumerate(module.kernel_size):
            dilation = module.dilation[i]
            padding = module.padding
            both = (dilation * (kernel - 1) if padding == "same" else 0) if isinstance(padding, str) else 2 * padding[i]
            added = module.output_padding[i] if module.transposed else None
            geometry.append([kernel, module.stride[i], both, dilation, added])
    axis = -1 if isinstance(module, nn.Linear) else 1
    return {"kind": "constant", "channels": num_channels, "axis": axis, "geometry": geometry, "bias": with_bias}


def scatter_spec(axis: int, width: int, index: Iterable[int]) -> Spec:
    """Zeros between the channels that a module gives."""
    return {"kind": "scatter", "axis": axis, "width": width, "index": list(index)}


def checked(modules: Mapping[str, Spec]) -> dict[str, Spec]:
    """``modules``, if they can be made. Raises FormatError."""
    for name, spec in modules.items():
        try:
            _built(spec, None)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"{name!r} is described by {str(spec)[:80]}, which is no stand-in: {error!r}") from error
    return {str(name): modules[name] for name in sorted(modules)}


def specs_of(model: nn.Module) -> dict[str, Spec]:
    """All that stands in a model, by the names of the modules."""
    found: dict[str, Spec] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConstantOutput):
            found[name] = {
                "kind": "constant", "channels": int(module.num_channels), "axis": module.axis,
                "geometry": [list(one) for one in module.geometry], "bias": module._parameters["bias"] is not None,
            }  # fmt: skip
        elif (scatter := scatter_behind(module)) is not None:
            found[name] = scatter_spec(scatter.axis, scatter.width, scatter.index.tolist())
    return found


def is_gone(name: str, modules: Mapping[str, Spec]) -> bool:
    """Whether a tensor of that name goes with the module that it belongs to."""
    for module, spec in modules.items():
        if spec["kind"] == "constant" and name.startswith(f"{module}."):
            return not (spec["bias"] and name == f"{module}.bias")
    return False


def installation(model: nn.Module, name: str, spec: Spec) -> Callable[[], None]:
    """What puts a stand-in into ``model``; all that could fail is tried here. Raises StructureError."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise StructureError(f"the model has no module {name!r}, where something is to stand in") from None
    if spec["kind"] == "scatter":
        return lambda: _scatter_(module, spec)
    bias = module._parameters.get("bias") if spec["bias"] else None
    if not name or (spec["bias"] and bias is None):
        what = "is the model itself" if not name else "has no bias"
        raise StructureError(f"{name!r} ({type(module).__name__}) {what}, so a constant cannot take its place")
    made = _built(spec, bias)
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)

    def install() -> None:
        made.training = module.training
        owner._modules[child] = made

    return install


def _built(spec: Spec, bias: nn.Parameter | None) -> nn.Module:
    if spec["kind"] == "scatter":
        return Scatter(int(spec["axis"]), int(spec["width"]), spec["index"])
    if spec["kind"] != "constant":
        raise ValueError(f"of the kind {spec['kind']!r}")
    bool(spec["bias"])
    return ConstantOutput(int(spec["channels"]), int(spec["axis"]), spec["geometry"], bias)


def _scatter_(module: nn.Module, spec: Spec) -> None:
    is_new = scatter_behind(module) is None
    module._modules[_SCATTER] = _built(spec, None)
    if is_new:
        module.register_forward_hook(_put_back)


def _put_back(module: nn.Module, _args: Any, out: Tensor) -> Tensor:
    scatter = scatter_behind(module)
    return out if scatter is None else scatter(out)
