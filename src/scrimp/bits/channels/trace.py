"""One forward pass, watched: every torch function called on the way says what it does to channels.

Nothing of the model's code is rewritten and no symbolic tracer has to understand it: whatever runs can be watched. A
second, small computation goes along with each call: on the channel numbers of each element, and on the constants that
dead channels turn into. Operations that only move elements are carried out on those numbers themselves.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from scrimp._core.module_shapes import size_attributes
from scrimp._core.stand_ins import ConstantOutput, Scatter
from scrimp._core.structure_plan import owner_of
from scrimp.bits.channels.constraints import Grid
from scrimp.bits.channels.facts import Call, Facts, KeptSize, ParamAxis, ScatterPoint, Size, SizeAttribute, plain
from scrimp.bits.channels.values import Value, known

# They keep gates or heads side by side in one dimension, or call kernels that take all their weights at once.
_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


class ChannelTrace(TorchFunctionMode):
    """Watches torch functions while it is entered. ``rules`` are by the function's name; see ``operations``."""

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Callable[["ChannelTrace", Call], None]],
        masks: Mapping[str, Tensor],
        pointwise: frozenset[type[nn.Module]],
        *,
        branches: bool = False,
    ) -> None:
        super().__init__()
        self.facts = Facts()
        self.names: dict[int, str] = {}
        for kind in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in kind:
                self.names.setdefault(id(tensor), name)
        self.was_training = {module: module.training for module in model.modules()}
        self._rules, self._masks, self._pointwise = rules, masks, pointwise
        self._model = model
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._stack: list[tuple[str, nn.Module]] = []
        self._num_opaque = 0
        self._branches = branches
        self._made_by: dict[int, tuple[str, int]] = {}  # the module, and which version of the tensor it gave
        self._num_reads: dict[tuple[int, int], int] = {}
        self._points: list[tuple[tuple[int, int], ScatterPoint]] = []
        self._fixed: dict[int, Tensor] = {}
        self._inputs: set[int] = set()

    @property
    def module_name(self) -> str:
        """The name of the innermost module that is running."""
        return self._stack[-1][0] if self._stack else ""

    @property
    def module(self) -> nn.Module:
        """The innermost module that is running."""
        return self._stack[-1][1] if self._stack else self._model

    @property
    def place(self) -> str:
        """Where that is, for messages."""
        name, module = self._stack[-1] if self._stack else ("", self._model)
        return f"{name or 'the model'} ({type(module).__name__})"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__ if hasattr(func, "__name__") else str(func)
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        inner_args, inner_kwargs = tree_map(plain, (args, dict(kwargs)))
        if self._num_opaque:
            return func(*inner_args, **inner_kwargs)
        call = Call(name.strip("_"), func, args, kwargs, None)
        before = [self.value(tensor) for tensor in call.tensors()]
        versions = [tensor._version for tensor in call.tensors()]
        out = func(*inner_args, **inner_kwargs)
        if call.name in ("shape", "size"):
            return self._sizes(args[0], out)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._note_reading(call.tensors(), versions, results)
        call = Call(call.name, func, args, kwargs, out)
        has_labels = any(value.labels is not None for value in before)
        rule = self._rules.get(call.name)
        if rule is not None and results:
            rule(self, call)
        elif has_labels and (results or call.name in ("setitem", "item", "tolist", "bool", "numpy", "float", "int")):
            self.barrier(call)
        else:
            varies = any(value.varies for value in before) or "rand" in call.name
            for tensor in results:
                self.set(tensor, Value(tuple(tensor.shape), varies=varies))
        for tensor in results:
            if any(
                tensor is source for source in call.tensors()
            ):  # changed in place: what is read from now on is not what the module gave
                self._made_by.pop(id(tensor), None)
        return out

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor."""
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        shape = tuple(tensor.shape)
        labels = None
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if id(tensor) in self.names and len(wide) == 1:
            labels = self.axis(tensor, wide[0]).view([-1 if axis == wide[0] else 1 for axis in range(len(shape))])
        return Value(shape, labels, varies=False)

    def set(self, tensor: Tensor, value: Value) -> None:
        """Say what is known of a tensor that the pass has made."""
        if id(tensor) not in self.names:
            self._values[id(tensor)] = (tensor, value)

    def constants(self, tensor: Tensor) -> Tensor | None:
        """The constants of a tensor, which of parameters and the like are their present values."""
        value = self.value(tensor)
        if value.constants is None and not value.varies and tensor.dtype is not torch.bool:
            return known(tensor.detach().to("cpu", torch.float64))
        return value.constants

    def axis(self, tensor: Tensor, dim: int, *, is_output: bool = False) -> Tensor:
        """The atoms of a dimension of a parameter or buffer; always the same ones."""
        key = (id(tensor), dim)
        if key not in self.facts.axes:
            self.facts.axes[key] = ParamAxis(tensor, dim, self.facts.atoms.fresh(tensor.shape[dim]))
        self.facts.axes[key].is_output |= is_output
        return self.facts.axes[key].labels

    def pin(self, value: Value, reason: str, *, is_unknown: bool = False) -> None:
        """Keep all channels of a tensor."""
        if value.labels is not None and bool((value.labels != 0).any()):
            self.facts.atoms.pin(value.labels, f"{reason} in {self.place}", is_unknown=is_unknown)

    def fix(self, value: Value, axes: Iterable[int], reason: str) -> None:
        """Keep the widths of a tensor along ``axes``; along its other axes whole planes may still go."""
        fixed = set(axes)
        if value.labels is None or not fixed & set(value.axes):
            return
        if free := [axis for axis in value.axes if axis not in fixed]:
            self.facts.constraints.append(Grid(value.labels, tuple(free)))
        else:
            self.pin(value, reason)

    def barrier(self, call: Call, reason: str | None = None) -> None:
        """Keep all channels that go in; what comes out has none."""
        inputs = [self.value(tensor) for tensor in call.tensors()]
        why = reason or f"{call.name!r} is an operation that is not known"
        for value in inputs:
            self.pin(value, why, is_unknown=reason is None)
        for tensor in tree_leaves(call.out) if call.out is not None else call.tensors()[:1]:
            if isinstance(tensor, Tensor):
                self.set(tensor, Value(tuple(tensor.shape), varies=any(value.varies for value in inputs)))

    @property
    def parent_name(self) -> str:
        """The name of the module that the innermost running one stands behind."""
        return self._stack[-2][0]

    def parameter(self, tensor: Tensor | None, name: str = "weight") -> Tensor | None:
        """The parameter that a layer's weight is, or is computed from, if it can be told."""
        if tensor is None or id(tensor) in self.names:
            return tensor
        chains = getattr(self.module, "parametrizations", {})
        own = getattr(chains[name], "original", None) if name in chains else self.module._parameters.get(name)
        return own if own is not None and own.shape == tensor.shape else None

    def dead_rows(self, weight: Tensor, dim: int) -> Tensor:
        """Which outputs of a layer are dead: by the masks, else those whose weights are all exactly zero."""
        layer = owner_of(self.names[id(weight)])
        if layer not in self.facts.dead:
            given = self._masks.get(layer)
            if given is None:
                others = [axis for axis in range(weight.dim()) if axis != dim]
                given = (weight.detach() == 0).all(dim=others) if len(others) == 1 else _all_zero(weight, dim)
            self.facts.dead[layer] = given.to("cpu", torch.bool)
            self.facts.order.append(layer)
        return self.facts.dead[layer]

    def scattered(self, tensor: Tensor, value: Value) -> Tensor | None:
        """The labels with which a tensor enters a sum: those behind a point where zeros could be put back, or its own.

        Such a point is behind a module that is called once, and gives the tensor to this sum and to nothing else.
        """
        made = self._made_by.get(id(tensor))
        if not self._branches or made is None or value.labels is None or len(value.axes) != 1:
            return value.labels
        name, version = made
        axis = value.axes[0]
        inputs = value.labels.flatten()
        outputs = self.facts.atoms.fresh(len(inputs))
        point = ScatterPoint(
            name, axis, inputs, outputs, torch.arange(len(inputs)), value.zeros_along(axis), exists=False
        )
        self._points.append(((id(tensor), version), point))
        return outputs.view_as(value.labels)

    def finish(self) -> None:
        """After the pass: points that turned out to be read by others, or called again, are none."""
        for key, point in self._points:
            is_alone = self._num_reads[key] == 1 and self.facts.num_calls[point.module] == 1
            if is_alone and sum(key == other for other, _ in self._points) == 1:
                self.facts.scatters.append(point)
            else:
                self.facts.atoms.tie(point.inputs, point.outputs)

    def depends_on_inputs(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor have anything to do with the model's inputs."""
        if id(tensor) in self._inputs:
            return True
        value = self.value(tensor)
        is_known = value.constants is not None and not bool(value.constants.isnan().any())
        return value.varies and not is_known and id(tensor) not in self._fixed

    def _note_reading(self, sources: Sequence[Tensor], versions: Sequence[int], results: Sequence[Tensor]) -> None:
        """Count who reads which version of a tensor, and follow what the inputs have no part in."""
        for key in {(id(tensor), version) for tensor, version in zip(sources, versions, strict=True) if results}:
            self._num_reads[key] = self._num_reads.get(key, 0) + 1
        is_fixed = not any(self.depends_on_inputs(tensor) for tensor in sources)
        for tensor in results:
            if is_fixed:
                self._fixed[id(tensor)] = tensor
            else:
                self._fixed.pop(id(tensor), None)

    def follows_as(self, size: object, labels: Tensor, axis: int) -> bool:
        """Whether ``size`` is an attribute of a module that can be rewritten when ``axis`` shrinks; noted if so."""
        if isinstance(size, KeptSize):
            self.facts.attributes.append(SizeAttribute(size.module, size.name, labels, axis))
        return isinstance(size, KeptSize)

    @contextlib.contextmanager
    def watching(self, inputs: Iterable[Any]) -> Iterator[None]:
        """Follow which module is running, in evaluation mode, without gradients; all is put back afterwards."""
        self._inputs = {id(leaf) for leaf in inputs if isinstance(leaf, Tensor)}
        handles = []
        sizes = [(module, name, size) for module in self.was_training for name, size in size_attributes(module).items()]
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            for module in self.was_training:
                module.training = False
            for module, name, size in sizes:
                kept = KeptSize(size)
                kept.module, kept.name = module, name
                setattr(module, name, kept)
            with torch.no_grad(), self:
                yield
        finally:
            for module, mode in self.was_training.items():
                module.training = mode
            for module, name, size in sizes:
                setattr(module, name, size)
            for handle in handles:
                handle.remove()

    def _is_opaque(self, module: nn.Module) -> bool:
        kinds = (*_OPAQUE, parametrize.ParametrizationList, ConstantOutput, Scatter)
        return isinstance(module, kinds) or type(module) in self._pointwise

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, _args: Any, _kwargs: Any) -> None:
            self._stack.append((name, module))
            self.facts.num_calls[name] = self.facts.num_calls.get(name, 0) + 1
            self._num_opaque += self._is_opaque(module)

        return enter

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if self._stack and self._stack[-1][1] is module:
            if self._is_opaque(module):
                self._num_opaque -= 1
                if not self._num_opaque and out is not None and not isinstance(module, parametrize.ParametrizationList):
                    call = Call(type(module).__name__, module.forward, args, kwargs, out)
                    versions = [tensor._version for tensor in call.tensors()]
                    given = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
                    self._note_reading(call.tensors(), versions, given)
                    with torch._C.DisableTorchFunction():
                        if type(module) in self._pointwise:
                            self._rules["relu"](self, call)
                        elif isinstance(module, ConstantOutput | Scatter):
                            self._rules[type(module).__name__](self, call)
                        else:
                            self.barrier(call, f"{type(module).__name__} cannot be shrunk")
            name, _ = self._stack.pop()
            taken = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            if isinstance(out, Tensor) and id(out) not in taken and _can_be_followed_by_zeros(module):
                self._made_by.setdefault(id(out), (name, out._version))

    def _sizes(self, tensor: Tensor, out: Any) -> Any:
        value = self.value(tensor)
        if value.labels is None or not value.varies:
            return out

        def follow(size: int) -> Size:
            result = Size(size)
            result.source = lambda: self.pin(value, "a width that numbers are computed from")
            return result

        if isinstance(out, torch.Size):
            return torch.Size([follow(size) for size in out])
        return follow(out)


def _can_be_followed_by_zeros(module: nn.Module) -> bool:
    """Whether it has no parts that would come to stand behind it, and is not such a part itself."""
    is_leaf = all(child == "parametrizations" for child, _ in module.named_children())
    return is_leaf and not isinstance(module, ConstantOutput | Scatter)


def _all_zero(weight: Tensor, dim: int) -> Tensor:
    return (weight.detach().movedim(dim, 0).flatten(1) == 0).all(dim=1)
