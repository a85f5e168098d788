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
from scrimp.errors import ConfigError, DataError, FormatError


def _on_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*numbers: Any) -> Any:
        if not all(isinstance(one, bool | int | float) for one in numbers):
            raise FormatError(f"the packed file has a graph that computes {function.__name__} of what is no number")
        return function(*numbers)

    return apply


def _item(values: Any, position: Any) -> Any:
    if not (isinstance(values, tuple | list) and isinstance(position, int)):
        raise FormatError("the packed file has a graph that takes an item of what is no list")
    return values[position]


_ON_SIZES: dict[str, Callable[..., Any]] = {
    function.__name__: _on_numbers(function)
    for function in (
        operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
        operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    )
} | {"getitem": _item}  # fmt: skip

# A file may come from anywhere, so it can name only functions whose result depends on their arguments and that check
# them: what torch tags as its core operations, without those that show raw memory, and these, which are made of them.
_NAMES = """
linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm layer_norm group_norm
instance_norm rms_norm dropout alpha_dropout feature_dropout scaled_dot_product_attention matmul einsum softmax
log_softmax silu mish hardswish hardsigmoid relu6 celu selu prelu softplus softsign logsigmoid glu elu leaky_relu
hardtanh relu_ relu6_ silu_ hardswish_ hardsigmoid_ hardtanh_ leaky_relu_ elu_ celu_ selu_ mish_ add_ sub_ mul_ div_
masked_fill masked_fill_ max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d flatten
unflatten reshape transpose t chunk split split_with_sizes tensor_split unbind stack contiguous to type_as float
half double bfloat16 detach detach_ lift_fresh_copy clone alias pad upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_trilinear3d upsample_bicubic2d pixel_shuffle
pixel_unshuffle channel_shuffle arange ones zeros ones_like zeros_like full full_like tril triu outer square movedim
swapaxes narrow roll rsub sum mean std var expand_as view_as repeat_interleave tile baddbmm addmm bmm mm
index_select index_add take_along_dim one_hot norm linalg_vector_norm cosine_similarity normalize size sym_size
numel sym_numel is_floating_point concat concatenate hstack vstack ne eq lt le gt ge logical_and logical_or
logical_not clamp clamp_min clamp_max minimum maximum where cumsum cumprod floor_divide true_divide multiply
subtract negative absolute __and__ __or__ _assert_tensor_metadata _assert_scalar _unsafe_view
"""
_MADE_OF_CORE = frozenset(_NAMES.split())
_SHOW_MEMORY = ("as_strided", "empty", "resize", "set_", "sparse", "storage", "from_")
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
    given: list[Any] = []
    result: dict[str, Any] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            number[node] = len(inputs)
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(None)
                value = node.meta["val"]
                sides = [length if isinstance(length, int) else str(length) for length in value.shape]
                given.append([str(value.dtype).removeprefix("torch."), sides])
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
    return {
        "inputs": inputs, "given": given, "names": list(kwargs), "buffers": buffers, "steps": steps, **result,
    }  # fmt: skip


class Program(nn.Module):
    """A model that is its description: carries out one operation after the other. For evaluation.

    Its parameters and buffers have the names that they have in the packed model. Raises: FormatError.
    """

    def __init__(self, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        try:
            self._inputs = list(description["inputs"])
            self._names = [str(name) for name in description["names"]]
            self._given = [(_named("dtype", dtype), list(sides)) for dtype, sides in description["given"]]
            self._steps = [(_operation(name), args, kwargs) for name, args, kwargs in description["steps"]]
            self._out, self._keys = description["out"], description["keys"]
            buffers = set(description["buffers"])
            written = [(number, _read(one)) for number, one in enumerate(self._inputs) if isinstance(one, dict)]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, FormatError) as error:
            raise FormatError(f"the packed file has a graph that cannot be read: {error!r}") from error
        if missing := [name for name in self._inputs if isinstance(name, str) and name not in state]:
            raise FormatError(f"the packed file has a graph that needs {missing[0]!r}, which is not in the file")
        for name, value in state.items():
            _register(self, name, value, is_buffer=name in buffers)
        for number, value in written:
            self._inputs[number] = f"written_{number}"
            self.register_buffer(f"written_{number}", value, persistent=False)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """The model, on what it was packed with: as many positional arguments, the same names of others.

        Raises: ConfigError - other arguments. DataError - another dtype or shape; a batch may have any size if the
            model can be followed for any.
        """
        given = iter(self._checked(args, kwargs))
        values = [next(given) if name is None else _get(self, name) for name in self._inputs]
        for function, args_of, kwargs_of in self._steps:
            values.append(function(*_filled(args_of, values), **_filled(kwargs_of, values)))
        out = [_filled(one, values) for one in self._out]
        if self._keys is None:
            return out[0]
        return tuple(out) if self._keys == "tuple" else dict(zip(self._keys, out, strict=True))

    def _checked(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        num_args = len(self._given) - len(self._names)
        if len(args) != num_args or kwargs.keys() != set(self._names):
            names = f" and {', '.join(self._names)} by name" if self._names else ""
            raise ConfigError(
                f"the model was packed with {num_args} positional argument(s){names}; it got {len(args)} and "
                f"{', '.join(kwargs) or 'none'} by name"
            )
        values = [*args, *(kwargs[name] for name in self._names)]
        free: dict[str, int] = {}
        for number, (value, (dtype, sides)) in enumerate(zip(values, self._given, strict=True), 1):
            shape = tuple(value.shape)
            wanted = [free.setdefault(side, have) if isinstance(side, str) else side
                      for side, have in zip(sides, shape, strict=False)]  # fmt: skip
            if value.dtype != dtype or len(shape) != len(sides) or wanted != list(shape):
                known = ", ".join("any" if isinstance(side, str) else str(side) for side in sides)
                raise DataError(
                    f"input {number} is {value.dtype} {shape}; the graph in the packed file is for {dtype} ({known})"
                    " and computes something else for other shapes. Unpack into an instance of the model instead"
                )
        return values


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
    if isinstance(target, torch._ops.OpOverload) and _is_allowed(target):
        return str(target)
    if getattr(target, "__name__", None) in _ON_SIZES and target is getattr(operator, target.__name__):
        return str(target.__name__)
    raise ConfigError(
        f"pack: the model computes {target}, which is no operation of torch's own; pack without its graph"
    )


def _operation(name: str) -> Callable[..., Any]:
    if name in _ON_SIZES:
        return _ON_SIZES[name]
    library, packet, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    if library != "aten" or not isinstance(found, torch._ops.OpOverload) or not _is_allowed(found):
        raise ValueError(f"{name!r} is not allowed")
    return found


def _is_allowed(target: "torch._ops.OpOverload") -> bool:
    library, _, packet = target._schema.name.partition("::")
    if library != "aten" or any(word in packet for word in _SHOW_MEMORY):
        return False
    is_core = torch.Tag.core in target.tags and not target._schema.is_mutable
    return is_core or packet in _MADE_OF_CORE


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
    return _named(kind, own)


def _named(kind: str, own: str) -> Any:
    found = getattr(torch, own, None)
    if kind not in _KINDS or not isinstance(found, _KINDS[kind]):
        raise FormatError(f"the packed file has a graph with a {kind} called {own!r}, which is none")
    return found


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
    return torch.tensor(values, dtype=_named("dtype", dtype)).reshape(shape)


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
