"""Dead channels taken out of a model in training, with everything that follows them."""

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from scrimp._core import ranks
from scrimp._core.stand_ins import is_gone
from scrimp._core.structure import Copy, Slices, StructureChange, apply_structure_change, planned_change
from scrimp._core.structure_plan import named_tensors
from scrimp.bits.channels.graph import Barrier, ChannelGraph
from scrimp.bits.channels.watch import channel_graph, example_of, plain_outputs, share_example_
from scrimp.bits.channels.wire import shrink_wiring_
from scrimp.bits.copies import settle_dead_in_copies_
from scrimp.bits.layers import unique_layers
from scrimp.bits.live_graphs import refuse_live_graphs
from scrimp.errors import ConfigError, NoEffectWarning, StructureError

Residual = Literal["group", "branch"]
Masks = Mapping[str, Bool[Tensor, " channels"]]


@dataclass(frozen=True)
class RemovalReport:
    """What ``remove_dead_channels_`` took out, or with ``dry_run`` would take out.

    ``num_channels``: output channels of layers, those of deleted ones among them. ``num_weights_before``,
    ``num_weights_after``: elements of all parameters with two and more dimensions. ``channels``: by layer, outputs
    before and after, for layers that shrank. ``deleted``: layers and norms of dead branches, in whose place a constant
    stands from then on. ``scattered``: modules behind which zeros are put back. ``waiting``: by layer, dead channels
    that stay; ``waiting_for_constant``: those of them that only stay because they leave a constant other than zero
    behind. ``ghosts``: by layer, dead channels that could go and fill widths up to a multiple; they are not among the
    waiting. ``barriers``: what keeps channels from ever going. ``change``: the slices.
    """

    num_channels: int
    num_weights_before: int
    num_weights_after: int
    channels: Mapping[str, tuple[int, int]]
    deleted: tuple[str, ...]
    scattered: tuple[str, ...]
    waiting: Mapping[str, int]
    waiting_for_constant: Mapping[str, int]
    ghosts: Mapping[str, int]
    barriers: tuple[Barrier, ...]
    change: StructureChange


def remove_dead_channels_(
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    also: Iterable[Copy] = (),
    *,
    example_inputs: Any = None,
    masks: Masks | None = None,
    keep: Iterable[str] = (),
    residual: Residual = "group",
    multiple_of: int = 1,
    fold_constants: bool = False,
    dry_run: bool = False,
) -> RemovalReport:
    """Take dead channels out of ``model``, in place: the model computes the same with less.

    Dead is a channel of zero bits, one that ``masks`` names, and one whose weights are all exactly zero. It goes when
    nothing is left of it wherever it is read: its bias, or that of the batch norm behind it, must come to zero behind
    the activation (at most 0 before a ReLU). Channels that are added go when all that is added there is dead. The
    others wait; ``waiting`` counts them.

    A layer that is dead as a whole while the model still gets from its inputs to its outputs by another way (a
    residual branch, a weighted shortcut) is deleted, with all that only leads to it: its parameters leave model and
    optimizer, and a constant, its bias or that of the norm behind it, which learns on, stands in its place. Where there
    is no other way the layer keeps its best channel, and a warning says so.

    A batch norm in training mode gives a dead channel its bias exactly; its running statistics only follow step by
    step. Removal goes by what they come to: outputs in evaluation mode can move by what had not faded yet.

    Call it between steps, while no loss waits for its backward pass (which is looked for, see ``StructureError`` below;
    a graph in which nothing is saved, as of a sum of parameters, is not seen). Gradients are sliced. Wrap
    DistributedDataParallel anew afterwards when ``num_channels`` is not 0 (drop the old wrapper first: its hooks stay
    as long as it lives). All ranks must call it alike; they are compared before anything changes, and what one of them
    cannot do none does. See ``same_structure_on_all_ranks``.

    Averages in ``also`` end with what the model has: a channel that goes leaves them, too, and of dead channels that
    wait the averaged bits are set to the model's. Without that an average would hold a channel that has died at the
    few bits on which no weight makes sense, and a Lookahead would bring it back.

    Args: model - the unwrapped module. optimizer - whose state is sliced along. also - copies of the model's tensors,
        such as a ``WeightAverage``. example_inputs - what the model is called with: a tensor, a tuple of arguments, a
        dict of keyword arguments; needed once (``self_compress_`` remembers its own). masks - by layer, a boolean per
        output channel; one that is named must be silent already, since outputs have to stay. keep - layers whose
        outputs all stay. residual - ``"branch"``: a layer whose output is only added to something loses its dead
        channels even if what it is added to lives; zeros are put back behind it, which costs a copy of its output.
        multiple_of - widths stay multiples of this (8 is what tensor cores like): some dead channels stay as ghosts,
        which ``size_report``, ``pack`` and ``export`` leave out. fold_constants - also take out channels that are a
        constant other than zero for a linear layer or an unpadded convolution with a bias, and add it to that bias: the
        output is the same, what is learned later is not, so do it at the end, without copies. dry_run - change nothing,
        only report.
    Raises: StructureError - the model cannot be followed (see ``channel_graph``) or copied, the optimizer's state or a
        copy cannot be sliced, a loss waits for its backward pass, a gradient is sparse, or the smaller model gives
        other outputs. ConfigError - no example, unknown names, ranks that differ. Model, optimizer and copies are then
        as before; see ``apply_structure_change`` for several copies.
    Warns: NoEffectWarning - an operation that is not known keeps channels; the outputs depend on the inputs no more.
    Cost: a forward pass of two samples with bookkeeping; when something goes, also two copies of the model to try the
        change on and a pass of each; host syncs; two small collectives.
    Source: Csefalvay and Imber, arXiv 2301.13142, where a channel also waits for its bias to vanish.
    """
    if multiple_of < 1:
        raise ConfigError(f"remove_dead_channels_: multiple_of is {multiple_of}; it has to be at least 1")
    if residual not in get_args(Residual):
        raise ConfigError(f"remove_dead_channels_: residual is {residual!r}; it has to be 'group' or 'branch'")
    copies, keep = list(also), list(keep)
    with ranks.failing_together("looking for channels to remove"):
        graph = channel_graph(model, example_inputs, masks, branches=residual == "branch")
        removed = graph.removable(fold=fold_constants, multiple_of=multiple_of, keep=keep)
        change = _change(model, graph, removed, keep)
        could_go = removed if multiple_of == 1 else graph.removable(fold=fold_constants, keep=keep)
        report = _report(model, graph, removed, could_go, change)
    ranks.assert_same_on_all_ranks(change.digest(), "what remove_dead_channels_ would remove")
    if dry_run:
        return report
    if not graph.facts.depends_on_inputs:
        warnings.warn(
            f"the outputs of {type(model).__name__} depend on its inputs no more: every way from one to the other "
            "leads through a layer that is dead as a whole. One channel of each is kept",
            NoEffectWarning,
            stacklevel=2,
        )
    if not change.is_empty:
        _remove(model, optimizer, copies, graph, removed, change, fold_constants=fold_constants)
    settle_dead_in_copies_(model, copies)
    return report


def _remove(
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None,
    copies: list[Copy],
    graph: ChannelGraph,
    removed: Bool[Tensor, " classes"],
    change: StructureChange,
    *,
    fold_constants: bool,
) -> None:
    with ranks.failing_together("trying to remove channels"):
        named = model.named_parameters()
        refuse_live_graphs(one for name, one in named if name in change.kept or change.is_gone(name))
        shifts = _folded(model, graph, removed) if fold_constants else {}
        if shifts and copies:
            raise ConfigError(
                "remove_dead_channels_: fold_constants adds constants of the model to its biases, which are not those "
                "of its copies; fold after training, without also="
            )
        sizes = _sizes(model, graph, removed, change)
        _try_on_a_copy(model, change, shifts, sizes, _running_means(graph, removed, change))
        with _without_gradients(model):
            planned_change(change, model=model, optimizer=optimizer, copies=copies)
    with _without_gradients(model, change), _shifted(model, shifts):
        apply_structure_change(change, model=model, optimizer=optimizer, copies=copies)
    for module in (model, *(one for one in copies if isinstance(one, nn.Module))):
        _set_sizes(module, sizes)
    shrink_wiring_(model, graph, removed)


def without_ghosts(model: nn.Module) -> nn.Module:
    """``model``, or a copy of it without the dead channels that evaluation can do without. No collective.

    Cost: without dead channels a look at the bits; with them a forward pass of the example with bookkeeping, and when
    something goes three copies of the model.
    """
    if not any(bool(layer.dead.any()) for layer in unique_layers(model)):
        return model
    smaller = copy.deepcopy(model).eval()  # where running statistics decide what a dead channel comes to
    if not share_example_(model, smaller):
        return model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            graph = channel_graph(smaller)
        removed = graph.removable()
        change = _change(smaller, graph, removed, ())
        if change.is_empty:
            return model
        sizes = _sizes(smaller, graph, removed, change)
        _try_on_a_copy(smaller, change, {}, sizes, {})
        with _without_gradients(smaller):
            apply_structure_change(change, model=smaller)
    except StructureError:  # it cannot be followed, so nothing has been or will be removed from it
        return model
    _set_sizes(smaller, sizes)
    shrink_wiring_(smaller, graph, removed)
    return smaller


def _change(
    model: nn.Module, graph: ChannelGraph, removed: Bool[Tensor, " classes"], keep: Collection[str]
) -> StructureChange:
    kept: dict[str, Slices] = {}
    specs = graph.specs(model, removed, keep)
    for (name, dim), classes in graph.axes().items():
        gone = removed[classes]
        if bool(gone.any()) and not is_gone(name, specs):
            kept[name] = (*kept.get(name, ()), (dim, (~gone).nonzero().flatten()))
    for weight, constraint in graph.facts.grouped.values():
        gone = constraint.positions(removed, graph.classes)
        name = graph.names[id(weight)]
        if bool(gone.any()) and not is_gone(name, specs):
            kept[name] = (*kept.get(name, ()), (1, (~gone).nonzero().flatten()))
    return StructureChange(kept, specs)


def _report(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, could_go: Tensor, change: StructureChange
) -> RemovalReport:
    outputs = graph.outputs()
    constant_in_place = {name for name, spec in change.modules.items() if spec["kind"] == "constant"}
    widths = {
        name: (len(own), 0 if name in constant_in_place else int((~removed[own]).sum()))
        for name, own in outputs.items()
    }
    would_go = graph.silent_but_for_constants() & ~removed
    waiting, constant, ghosts = {}, {}, {}
    for name in outputs.keys() - constant_in_place:
        own = outputs[name]
        dead = graph.dead_outputs(name) & ~could_go[own]
        if bool((could_go & ~removed)[own].any()):
            ghosts[name] = int((could_go & ~removed)[own].sum())
        if bool(dead.any()):
            waiting[name] = int(dead.sum())
        if bool((dead & would_go[own]).any()):
            constant[name] = int((dead & would_go[own]).sum())
    weights = {id(p): (name, p) for name, p in model.named_parameters() if p.dim() > 1}
    after = 0
    for name, parameter in weights.values():
        sizes = list(parameter.shape)
        for dim, index in change.slices(name):
            sizes[dim] = len(index)
        after += 0 if change.is_gone(name) else torch.Size(sizes).numel()
    return RemovalReport(
        num_channels=sum(before - left for before, left in widths.values()),
        num_weights_before=sum(parameter.numel() for _, parameter in weights.values()),
        num_weights_after=after,
        channels={name: pair for name, pair in widths.items() if pair[0] != pair[1]},
        deleted=tuple(sorted(constant_in_place)),
        scattered=tuple(sorted(change.modules.keys() - constant_in_place)),
        waiting={name: waiting[name] for name in outputs if name in waiting},
        waiting_for_constant={name: constant[name] for name in outputs if name in constant},
        ghosts={name: ghosts[name] for name in outputs if name in ghosts},
        barriers=graph.barriers(),
        change=change,
    )


def _folded(model: nn.Module, graph: ChannelGraph, removed: Tensor) -> dict[str, Tensor]:
    """By the name of a bias, what the constants that go add to it."""
    shifts: dict[str, Tensor] = {}
    for sink in graph.facts.sinks:
        gone = removed[graph.classes[sink.labels]] & ~sink.is_silent
        if not bool(gone.any()) or sink.weight is None or sink.layer in graph.empty:
            continue
        layer = model.get_submodule(sink.layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        columns = weight.detach().to("cpu", torch.float64).movedim(sink.axis, 0)[gone]
        shift = torch.einsum("ior,i->o", columns.reshape(*columns.shape[:2], -1), sink.value[gone])
        name = f"{sink.layer}.bias" if sink.layer else "bias"
        shifts[name] = shifts[name] + shift if name in shifts else shift
    return shifts


def _running_means(graph: ChannelGraph, removed: Tensor, change: StructureChange) -> dict[str, Tensor]:
    """By name, what the running means of channels that go would come to; NaN for the others."""
    means = {}
    for one in graph.facts.running:
        name = graph.names[id(one.tensor)]
        goes = removed[graph.classes[one.labels]] | change.is_gone(name)
        means[name] = torch.where(goes, one.constants, torch.nan)
    return means


def _sizes(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, change: StructureChange
) -> dict[tuple[str, str], int]:
    """What the attributes of modules that are left become, by module and name."""
    names = {module: name for name, module in model.named_modules()}
    found = {(names[module], name): size for (module, name), size in graph.sizes(removed).items()}
    return {key: size for key, size in found.items() if not change.is_gone(".".join(key))}


def _set_sizes(model: nn.Module, sizes: Mapping[tuple[str, str], int]) -> None:
    for (module, name), size in sizes.items():
        setattr(model.get_submodule(module), name, size)


def _try_on_a_copy(
    model: nn.Module,
    change: StructureChange,
    shifts: Mapping[str, Tensor],
    sizes: Mapping[tuple[str, str], int],
    means: Mapping[str, Tensor],
) -> None:
    """Refuse a change after which a copy of the model does not run, or gives other outputs, in evaluation mode."""
    args, kwargs = example_of(model)
    try:
        before, after = copy.deepcopy(model), copy.deepcopy(model)
    except Exception as error:
        raise StructureError(
            f"{type(model).__name__} cannot be copied to try a removal on ({type(error).__name__}: {error}); make "
            "copy.deepcopy work on it. Nothing was changed"
        ) from error
    for one in (before, after):
        one.zero_grad(set_to_none=True)
        one.eval()
    with torch.no_grad():
        tensors = named_tensors(before)
        for name, mean in means.items():
            tensors[name].copy_(torch.where(mean.isnan(), tensors[name], mean.to(tensors[name])))
        _add_shifts(after, shifts)
        apply_structure_change(change, model=after)
        _set_sizes(after, sizes)
        wanted = [leaf for leaf in tree_leaves(plain_outputs(before(*args, **kwargs))) if isinstance(leaf, Tensor)]
        try:
            given = [leaf for leaf in tree_leaves(plain_outputs(after(*args, **kwargs))) if isinstance(leaf, Tensor)]
        except Exception as error:
            raise StructureError(
                f"{type(model).__name__} does not run any more without its dead channels ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}); some part of it depends on a width in a way "
                "that was not seen: name the layers before it in keep=. Nothing was changed"
            ) from error
    for old, new in zip(wanted, given, strict=True):
        if old.shape != new.shape or not _is_close(old, new):
            raise StructureError(
                f"{type(model).__name__} gives other outputs without its dead channels, so some part of it uses them "
                "in a way that was not seen: name the layers before it in keep=. Nothing was changed"
            )


def _is_close(old: Tensor, new: Tensor) -> bool:
    if not old.is_floating_point():
        return torch.equal(old, new)
    size = float(old.abs().nan_to_num(0.0).amax()) if old.numel() else 0.0
    exactness = 1e3 * torch.finfo(old.dtype).eps
    if old.device.type != "cpu":
        exactness = max(exactness, 1e-2)  # other algorithms at other widths, some of them in TF32
    return torch.allclose(old, new, rtol=exactness, atol=exactness * max(size, 1e-30), equal_nan=True)


@contextmanager
def _without_gradients(model: nn.Module, change: StructureChange | None = None) -> Iterator[None]:
    """Take all gradients away, and give them back afterwards: as they were, or what ``change`` leaves of them."""
    gradients = [(name, parameter, parameter.grad) for name, parameter in model.named_parameters()]
    for name, _, gradient in gradients:
        if change is not None and change.slices(name) and gradient is not None and gradient.layout is not torch.strided:
            raise StructureError(
                f"{name!r} has a {gradient.layout} gradient, which cannot be sliced; call "
                "optimizer.zero_grad(set_to_none=True) first. Nothing was changed"
            )
    for _, parameter, _ in gradients:
        parameter.grad = None
    done = None
    try:
        yield
        done = change
    finally:
        for name, parameter, gradient in gradients:
            if done is not None and gradient is not None:
                gradient = done.slice(name, gradient)  # noqa: PLW2901 - what is left of it
            parameter.grad = gradient


@contextmanager
def _shifted(model: nn.Module, shifts: Mapping[str, Tensor]) -> Iterator[None]:
    tensors = named_tensors(model)
    before = {name: tensors[name].detach().clone() for name in shifts}
    _add_shifts(model, shifts)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                tensors[name].copy_(value)
        raise


@torch.no_grad()
def _add_shifts(model: nn.Module, shifts: Mapping[str, Tensor]) -> None:
    tensors = named_tensors(model)
    for name, shift in shifts.items():
        tensors[name].add_(shift.to(tensors[name]))
