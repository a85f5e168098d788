"""What a model computes, as data: the operations that ``torch.export`` finds, as JSON, and how to carry them out.

A packed file can hold it, so that it can be unpacked without the model's code. Nothing in it is code: it names
operations of torch's own library (``aten``) and a few of Python's on sizes, and their arguments.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from scrimp.bits.export import exported_program
from scrimp.errors import ConfigError, FormatError

_ON_SIZES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
        operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    )
}  # fmt: skip
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_MOST_VALUES = 4096  # of a tensor that is written into the program


def describe(plain: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The program of a plain model in evaluation mode, as JSON values. Raises: ExportError, ConfigError."""
    if not all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise ConfigError("pack: graph=True needs a model that is called with tensors alone")
    exported = exported_program(plain, args, dict(kwargs))
    state = plain.state_dict()
    number: dict[fx.Node, int] = {}
    inputs: list[Any] = []
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs if hasattr(spec.arg, "name")}
    steps: list[Any] = []
    result: dict[str, Any] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            number[node] = len(inputs)
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(None)
            elif spec.target in state:
                inputs.append(spec.target)
            else:
                inputs.append(_written(_constant_of(exported, plain, str(spec.target)), str(spec.target)))
        elif node.op == "call_function":
            number[node] = len(inputs) + len(steps)
            steps.append([_name_of(node.target), _plain(node.args, number), _plain(node.kwargs, number)])
        elif node.op == "output":
            result = _outputs(exported, node, number)
        else:
            raise ConfigError(f"pack: the graph of {type(plain).__name__} has a {node.op}, which cannot be packed")
    buffers = [name for name, _ in plain.named_buffers(remove_duplicate=False) if name in state]
    return {"inputs": inputs, "names": list(kwargs), "buffers": buffers, "steps": steps, **result}


class Program(nn.Module):
    """A model that is its description: carries out one operation after the other. For evaluation.

    Its parameters and buffers have the names that they have in the packed model. Raises: FormatError.
    """

    def __init__(self, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        try:
            self._inputs = list(description["inputs"])
            self._names = [str(name) for name in description["names"]]
            self._steps = [(_operation(name), args, kwargs) for name, args, kwargs in description["steps"]]
            self._out, self._keys = description["out"], description["keys"]
            buffers = set(description["buffers"])
            written = [(number, _read(one)) for number, one in enumerate(self._inputs) if isinstance(one, dict)]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FormatError(f"the packed file has a graph that cannot be read: {error!r}") from error
        if missing := [name for name in self._inputs if isinstance(name, str) and name not in state]:
            raise FormatError(f"the packed file has a graph that needs {missing[0]!r}, which is not in the file")
        for name, value in state.items():
            _register(self, name, value, is_buffer=name in buffers)
        for number, value in written:
            self._inputs[number] = f"written_{number}"
            self.register_buffer(f"written_{number}", value, persistent=False)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """The model, on what it was packed with: as many positional arguments, the same names of others."""
        given = iter([*args, *(kwargs[name] for name in self._names if name in kwargs)])
        values = [next(given) if name is None else _get(self, name) for name in self._inputs]
        for function, args_of, kwargs_of in self._steps:
            values.append(function(*_filled(args_of, values), **_filled(kwargs_of, values)))
        out = [_filled(one, values) for one in self._out]
        if self._keys is None:
            return out[0]
        return tuple(out) if self._keys == "tuple" else dict(zip(self._keys, out, strict=True))


def _outputs(exported: torch.export.ExportedProgram, node: fx.Node, number: Mapping[fx.Node, int]) -> dict[str, Any]:
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    if any(kind is not OutputKind.USER_OUTPUT for kind in kinds):
        raise ConfigError("pack: the model changes its own buffers in evaluation mode, so its graph cannot be packed")
    given = list(range(len(kinds)))
    tree = exported.call_spec.out_spec.unflatten(given)
    if isinstance(tree, dict) and all(type(value) is int for value in tree.values()):
        keys: Any = list(tree)
    elif isinstance(tree, tuple | list) and all(type(value) is int for value in tree):
        keys = "tuple"
    elif type(tree) is int:
        keys = None
    else:
        raise ConfigError(f"pack: the model returns a {type(tree).__name__}; graph=True knows tensors, tuples, dicts")
    return {"out": _plain(list(node.args[0]), number), "keys": keys}  # type: ignore[arg-type]


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and not _reads_files(target):
        return str(target)
    if target in _ON_SIZES.values():
        return str(target.__name__)
    raise ConfigError(
        f"pack: the model computes {target}, which is no operation of torch's own; pack without its graph"
    )


def _operation(name: str) -> Callable[..., Any]:
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    library, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    if library != "aten" or not isinstance(found, torch._ops.OpOverload) or _reads_files(found):
        raise ValueError(f"{name!r} is not allowed")
    return found


def _reads_files(target: "torch._ops.OpOverload") -> bool:
    return any(argument.name == "filename" for argument in target._schema.arguments)


def _plain(value: Any, number: Mapping[fx.Node, int]) -> Any:
    """Arguments as JSON values; what is neither a number nor a text is a dict of one entry."""
    if isinstance(value, fx.Node):
        return {"value": number[value]}
    if isinstance(value, tuple | list):
        return [_plain(one, number) for one in value]
    if isinstance(value, dict):
        return {"dict": {name: _plain(one, number) for name, one in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, own in _KINDS.items():
        if isinstance(value, own):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    raise ConfigError(f"pack: an operation of the model has an argument of {type(value).__name__}, which is not packed")


def _filled(value: Any, values: list[Any]) -> Any:
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, own),) = value.items()
    if kind == "value":
        return values[own]
    if kind == "dict":
        return {name: _filled(one, values) for name, one in own.items()}
    if kind == "float":
        return float(own)
    if kind == "device":
        return next((one.device for one in values if isinstance(one, Tensor)), torch.device("cpu"))
    return getattr(torch, own)


def _constant_of(exported: torch.export.ExportedProgram, plain: nn.Module, name: str) -> Tensor:
    value = exported.constants.get(name, dict(plain.named_buffers()).get(name))
    if not isinstance(value, Tensor) or value.numel() > _MOST_VALUES:
        raise ConfigError(f"pack: {name!r} is not in the state of the model and too large to be part of its graph")
    return value


def _written(tensor: Tensor, name: str) -> dict[str, Any]:
    values = tree_leaves(tensor.detach().cpu().tolist())
    if any(isinstance(one, float) and not math.isfinite(one) for one in values) or tensor.is_complex():
        raise ConfigError(f"pack: {name!r} has values that are not written into a graph")
    return {"tensor": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), values]}


def _read(written: Mapping[str, Any]) -> Tensor:
    dtype, shape, values = written["tensor"]
    return torch.tensor(values, dtype=getattr(torch, dtype)).reshape(shape)


def _register(module: nn.Module, name: str, value: Tensor, *, is_buffer: bool) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]  # type: ignore[assignment]
    if is_buffer:
        module.register_buffer(last, value)
    else:
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), last)
    return found
