"""The channel graph of a model, and which of its channels can go."""

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from scrimp._core.stand_ins import Spec, constant_spec, scatter_spec, specs_of
from scrimp._core.structure_plan import named_tensors, owner_of, some
from scrimp.bits.channels.constraints import AtLeastOne, Constraint, EqualParts, Heads, MultipleOf, Scattered
from scrimp.bits.channels.empty import empty_layers
from scrimp.bits.channels.facts import Facts, ParamAxis, SizeAttribute
from scrimp.bits.layers import quantized_layers
from scrimp.errors import ConfigError

OUTPUT = "an output of the model"
"""Why the channels of an output stay."""


@dataclass(frozen=True)
class Barrier:
    """Something that keeps channels from being removed. ``layers``: whose outputs; ``num_channels``: how many.

    ``is_unknown``: an operation that scrimp does not know, rather than one that cannot be shrunk exactly.
    """

    reason: str
    layers: tuple[str, ...]
    num_channels: int
    is_unknown: bool


class ChannelGraph:
    """Which channels of a model belong together, which are constant, and what keeps them.

    ``classes``: for each atom the class that it goes with; ``facts``: what the watched pass found.
    """

    def __init__(self, model: nn.Module, facts: Facts) -> None:
        self.facts = facts
        self.classes = facts.atoms.classes()
        self.num_classes = int(self.classes.max()) + 1
        self.names: dict[int, str] = {}
        tensors = named_tensors(model)
        for name, tensor in tensors.items():
            self.names.setdefault(id(tensor), name)
        for layer in quantized_layers(model).values():
            weight = facts.axes.get((id(layer.raw_weight), layer.channel_dim))
            if weight is not None:
                for name in layer.parameter_names:
                    facts.axes[id(tensors[name]), 0] = ParamAxis(tensors[name], 0, weight.labels)
        self.empty = empty_layers(model, self)

    def joined(self, model: nn.Module) -> "ChannelGraph":
        """The same with channels before and behind zeros that were put back as one: what a layer contributes to."""
        facts = dataclasses.replace(self.facts, scatters=[])
        for point in self.facts.scatters:
            facts.atoms.tie(point.inputs, point.outputs[point.index])
        return ChannelGraph(model, facts)

    def outputs(self) -> dict[str, Int64[Tensor, " channels"]]:
        """For each layer the classes of its output channels, in the order in which the model calls the layers."""
        axes = [axis for axis in self.facts.axes.values() if axis.is_output]
        named = {owner_of(self.names[id(axis.tensor)]): self.classes[axis.labels] for axis in axes}
        return {name: named[name] for name in [*self.facts.order, *named] if name in named}

    def inputs(self) -> dict[str, Int64[Tensor, " channels"]]:
        """For each layer the classes of its input channels."""
        return {name: self.classes[labels] for name, labels in self.facts.inputs.items()}

    def axes(self) -> dict[tuple[str, int], Int64[Tensor, " size"]]:
        """The classes along each dimension of each parameter and buffer that follows channels."""
        return {(self.names[id(a.tensor)], a.dim): self.classes[a.labels] for a in self.facts.axes.values()}

    def pinned(self) -> Bool[Tensor, " classes"]:
        """Which classes must stay whatever dies."""
        result = torch.zeros(self.num_classes, dtype=torch.bool)
        result[0] = True
        for pin in self.facts.atoms.pins:
            result[self.classes[pin.atoms]] = True
        return result

    def dead_outputs(self, layer: str) -> Bool[Tensor, " channels"]:
        """Which outputs of a layer are dead."""
        axis = next(axis for axis in self._output_axes() if owner_of(self.names[id(axis.tensor)]) == layer)
        mask = self.facts.dead.get(layer)
        return mask if mask is not None else (axis.tensor.detach() == 0).all(dim=0).cpu()  # columns of an embedding

    def dead(self) -> Bool[Tensor, " classes"]:
        """Which classes have at least one dead output channel in them."""
        result = torch.zeros(self.num_classes, dtype=torch.bool)
        for name, classes in self.outputs().items():
            result[classes[self.dead_outputs(name)]] = True
        return result

    def silent_but_for_constants(self) -> Bool[Tensor, " classes"]:
        """Which classes would be silent if their constants were zero; those that are silent are not among them."""
        result = ~self.pinned() & ~self.silent()
        for sink in self.facts.sinks:
            result[self.classes[sink.labels[~sink.is_silent & sink.value.isnan()]]] = False
        return result

    def unread(self, gone: Collection[str]) -> Bool[Tensor, " classes"]:
        """Which classes are only read by layers that are ``gone`` or dead as a whole: what leads to an empty branch."""
        result = torch.zeros(self.num_classes, dtype=torch.bool)
        others = torch.zeros(self.num_classes, dtype=torch.bool)
        for sink in self.facts.sinks:
            is_unread = torch.zeros_like(sink.is_silent) if sink.is_unread is None else sink.is_unread
            if sink.layer in gone:
                is_unread = torch.ones_like(is_unread)
            result[self.classes[sink.labels[is_unread]]] = True
            others[self.classes[sink.labels[~is_unread]]] = True
        result &= ~others & ~self.pinned()
        for point in self.facts.scatters:
            inputs, outputs = self.classes[point.inputs], self.classes[point.outputs[point.index]]
            result[inputs] |= result[outputs] & ~others[inputs]
        for heads in self.facts.constraints:
            if isinstance(heads, Heads) and bool(result[self.classes[heads.values]].all()):
                for atoms in (heads.queries, heads.keys):
                    result[self.classes[atoms]] |= ~others[self.classes[atoms]]
        return result

    def silent(self, *, fold: bool = False) -> Bool[Tensor, " classes"]:
        """Which classes nobody hears: zero wherever they are read. With ``fold`` also constants that can be folded."""
        result = torch.ones(self.num_classes, dtype=torch.bool)
        for sink in self.facts.sinks:
            if sink.layer in self.empty:
                continue
            is_free = sink.is_silent | (~sink.value.isnan() & sink.can_fold) if fold else sink.is_silent
            result[self.classes[sink.labels[~is_free]]] = False
        return result

    def removable(
        self, *, fold: bool = False, multiple_of: int = 1, keep: Iterable[str] = ()
    ) -> Bool[Tensor, " classes"]:
        """Which classes can go now, all together."""
        heads = torch.zeros(self.num_classes, dtype=torch.bool)
        for atoms in (*self.facts.head_atoms, *(point.outputs for point in self.facts.scatters)):
            heads[self.classes[atoms]] = True
        removed = (self.dead() | self.unread(self.empty) | heads) & self.silent(fold=fold) & ~self.pinned()
        outputs = self.outputs()
        for name in keep:
            if name not in outputs:
                raise ConfigError(
                    f"keep names {name!r}, which is no layer of the model; layers are {some(list(outputs))}"
                )
            removed[outputs[name]] = False
        choices: list[Constraint] = [one for one in self.facts.constraints if isinstance(one, EqualParts)]
        needs = [one for one in self.facts.constraints if not isinstance(one, EqualParts)]
        axes = [*self._output_axes(), *self.facts.axes.values()]  # the outputs of layers choose first
        needs += [AtLeastOne(axis.labels, _scores(axis)) for axis in axes]
        for point in self.facts.scatters:
            may_go = (
                point.is_zero if point.exists or point.module not in self.empty else torch.zeros_like(point.is_zero)
            )
            needs.append(Scattered(point.inputs, point.outputs[point.index], may_go))
        if multiple_of > 1:
            choices += [MultipleOf(axis.labels, multiple_of) for axis in self._output_axes()]
        self._settle(removed, needs)
        # which of several channels stays is chosen only among those that could go
        while self._settle(removed, choices):
            self._settle(removed, needs)
        return removed

    def _settle(self, removed: Tensor, constraints: Iterable[Constraint]) -> bool:
        """Apply constraints until nothing changes; whether anything did."""
        start = int(removed.sum())
        while True:
            before = int(removed.sum())
            for constraint in constraints:
                constraint.keep(removed, self.classes)
            self._keep_unequal_sizes(removed)
            if int(removed.sum()) == before:
                return before != start

    def specs(self, model: nn.Module, removed: Bool[Tensor, " classes"], keep: Collection[str]) -> dict[str, Spec]:
        """What takes the place of modules that are empty, and where zeros are put back, when these classes go."""
        outputs = self.outputs()
        widths = {norm.module: self.classes[norm.labels] for norm in self.facts.norms} | outputs
        specs: dict[str, Spec] = {}
        behind = {point.module: point for point in self.facts.scatters}
        standing = specs_of(model)
        for name, is_read in self.empty.items():
            point = behind.get(name)
            is_scattered = point is not None and point.exists
            classes = self.classes[point.outputs] if point is not None and point.exists else widths[name]
            module = model.get_submodule(name)
            with_bias = is_read and not is_scattered and module._parameters.get("bias") is not None
            if name not in keep:
                specs[name] = constant_spec(module, int((~removed[classes]).sum()), with_bias=with_bias)
        for name, point in behind.items():
            left = [~removed[self.classes[atoms]] for atoms in (point.inputs, point.outputs)]
            index = (left[1].cumsum(0) - 1)[point.index[left[0]]]
            spec = scatter_spec(point.axis, int(left[1].sum()), index.tolist())
            is_needed = point.exists or int(left[0].sum()) < int(left[1].sum())
            if name not in specs and is_needed and spec != standing.get(name):
                specs[name] = spec
        return specs

    def sizes(self, removed: Bool[Tensor, " classes"]) -> dict[tuple[nn.Module, str], int]:
        """What the attributes that modules cut tensors by become when these classes go."""
        return {(size.module, size.name): self._size_left(size, removed) for size in self.facts.attributes}

    def _size_left(self, size: SizeAttribute, removed: Tensor) -> int:
        gone = removed[self.classes[size.labels]].movedim(size.axis, 0)
        return int((~gone.reshape(len(gone), -1).all(dim=1)).sum())

    def _keep_unequal_sizes(self, removed: Tensor) -> None:
        """Where one attribute would have to become two numbers, nothing that it cuts goes."""
        found: dict[tuple[nn.Module, str], set[int]] = {}
        for size in self.facts.attributes:
            found.setdefault((size.module, size.name), set()).add(self._size_left(size, removed))
        for size in self.facts.attributes:
            if len(found[size.module, size.name]) > 1:
                removed[self.classes[size.labels]] = False

    def barriers(self) -> tuple[Barrier, ...]:
        """What keeps channels, other than being the model's outputs; one entry per reason."""
        found: dict[str, Barrier] = {}
        outputs = self.outputs()
        for pin in self.facts.atoms.pins:
            if pin.reason.startswith(OUTPUT):
                continue
            held = torch.zeros(self.num_classes, dtype=torch.bool)
            held[self.classes[pin.atoms]] = True
            counts = {name: int(held[own].sum()) for name, own in outputs.items()}
            names = tuple(name for name, count in counts.items() if count)
            if names:
                found.setdefault(pin.reason, Barrier(pin.reason, names, sum(counts.values()), pin.is_unknown))
        return tuple(found.values())

    def _output_axes(self) -> list[ParamAxis]:
        return [axis for axis in self.facts.axes.values() if axis.is_output]


def _scores(axis: ParamAxis) -> Tensor | None:
    """How much there is to the channels of a layer, even if their bits are zero: the one to keep when all are dead."""
    if not axis.is_output or axis.tensor.dim() < 2:
        return None
    norms: Tensor = torch.linalg.vector_norm(axis.tensor.detach().movedim(axis.dim, 0).flatten(1), dim=1)
    return norms.cpu()
