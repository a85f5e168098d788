"""Which slices of which named tensors survive, as a value."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from scrimp._core.stand_ins import Spec, checked, is_gone
from scrimp.errors import FormatError, StructureError

_MODULES = "/modules"
Slices = tuple[tuple[int, Int64[Tensor, " _kept"]], ...]


@dataclass(frozen=True, eq=False)
class StructureChange:
    """Which slices of which named tensors survive.

    ``kept`` maps the name of a parameter or buffer (as ``model.named_parameters()`` gives it) to pairs of a dimension
    and the indices kept along it, ascending. One change may slice several dimensions of a tensor. A tensor that is not
    named keeps everything; nothing can be reduced to zero width, because torch cannot compute with that.

    ``modules`` has what is deleted as a whole, by the names of modules, as descriptions of what stands there from then
    on (``_core.stand_ins``): a constant in the place of a layer, whose tensors are gone but for its bias; or zeros put
    back behind a module that keeps some of its channels. ``kept`` names the tensors that there are afterwards.

    Two changes are equal when their ``digest()`` is. The indices are copied to the CPU.

    Example::

        left = torch.tensor([0, 2])
        change = StructureChange({"conv.weight": ((0, left),), "conv.bias": ((0, left),), "next.weight": ((1, left),)})
        apply_structure_change(change, model=model, optimizer=optimizer, copies=[average])

    Raises: StructureError - indices that are not int64, 1-D, ascending, unique, non-negative, or that keep nothing; a
        dimension that is negative or given twice.
    """

    kept: Mapping[str, Slices]
    modules: Mapping[str, Spec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", checked(self.modules))
        clean = {name: _clean_slices(name, slices) for name, slices in self.kept.items()}
        object.__setattr__(self, "kept", {name: slices for name, slices in sorted(clean.items()) if slices})

    @property
    def is_empty(self) -> bool:
        """Whether every tensor keeps everything."""
        return not self.kept and not self.modules

    def is_gone(self, name: str) -> bool:
        """Whether a tensor of that name is deleted with its module."""
        return is_gone(name, self.modules)

    def slices(self, name: str) -> Slices:
        """The pairs of dimension and kept indices of one tensor, by ascending dimension; empty when it is not named."""
        return self.kept.get(name, ())

    def then(self, other: "StructureChange") -> "StructureChange":
        """One change that does what ``self`` and, after it, ``other`` do; ``other`` counts in the result of ``self``.

        Raises: StructureError - ``other`` keeps an index that ``self`` has not left.
        """
        both: dict[str, Slices] = {}
        for name in self.kept.keys() | other.kept.keys():
            dims = dict(self.slices(name))
            for dim, index in other.slices(name):
                if dim in dims and int(index[-1]) >= len(dims[dim]):
                    raise StructureError(
                        f"cannot compose: the second change keeps index {int(index[-1])} of {name!r} along dimension "
                        f"{dim}, but the first one leaves only {len(dims[dim])}"
                    )
                dims[dim] = dims[dim][index] if dim in dims else index
            both[name] = tuple(dims.items())
        modules = {name: spec for name, spec in self.modules.items() if not is_gone(f"{name}.", other.modules)}
        left = {name: slices for name, slices in both.items() if not other.is_gone(name)}
        return StructureChange(left, {**modules, **other.modules})

    def check(self, name: str, shape: Iterable[int]) -> None:
        """Raise StructureError when ``shape`` is not one that the slices of ``name`` can be taken from."""
        sizes = tuple(shape)
        for dim, index in self.slices(name):
            if dim >= len(sizes):
                raise StructureError(f"{name!r} has shape {sizes}, so it has no dimension {dim} to slice")
            if int(index[-1]) >= sizes[dim]:
                raise StructureError(
                    f"{name!r} has shape {sizes}, so index {int(index[-1])} of dimension {dim} is out of range; "
                    "was the change already applied, or made for another model?"
                )

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of ``tensor`` under ``name``: a new dense tensor, or ``tensor`` itself when it is not named.

        The order of its dimensions in memory is kept, so channels_last stays channels_last. No gradient flows.

        Raises: StructureError - the tensor has not the shape that the change is for.
        Cost: one copy of what survives; on an accelerator also the indices are copied to it.
        """
        self.check(name, tensor.shape)
        slices = self.slices(name)
        if not slices:
            return tensor
        # a dimension of one has any stride; behind its equals, the order is the same however often it is sliced
        in_memory = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride()[dim], tensor.shape[dim] == 1))
        result = tensor.detach().permute(in_memory)
        for dim, index in slices:
            result = result.index_select(in_memory.index(dim), index.to(tensor.device))
        back = [in_memory.index(dim) for dim in range(tensor.dim())]
        return result.contiguous().permute(back)

    def to_state(self) -> dict[str, Tensor]:
        """A flat dict of int64 tensors; the keys are ``<tensor name>/<dimension>``.

        ``modules``, if there are any, are the codes of a JSON text under ``/modules``.
        """
        state = {f"{name}/{dim}": index for name, slices in self.kept.items() for dim, index in slices}
        if self.modules:
            text = json.dumps(self.modules, sort_keys=True, separators=(",", ":"))
            state[_MODULES] = torch.tensor(list(text.encode()))
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "StructureChange":
        """The inverse of ``to_state``. Raises FormatError for a key of another form, else as the constructor."""
        kept: dict[str, Slices] = {}
        modules: dict[str, Spec] = {}
        for key, index in state.items():
            if key == _MODULES:
                try:
                    modules = dict(json.loads(bytes(index.tolist())))
                except (ValueError, TypeError) as error:
                    raise FormatError(f"the modules of a stored structure change cannot be read: {error}") from error
                continue
            name, slash, dim = key.rpartition("/")
            if not (slash and name and dim.isdecimal()):
                raise FormatError(f"{key!r} is not a key of a stored structure change (<tensor name>/<dimension>)")
            kept[name] = (*kept.get(name, ()), (int(dim), index))
        return cls(kept, modules)

    def digest(self) -> str:
        """32 hexadecimal digits that are the same for equal changes on every machine, to compare ranks with."""
        result = hashlib.blake2b(digest_size=16)
        for key, index in self.to_state().items():
            result.update(f"{len(key)}:{key}:{len(index)}:".encode())
            result.update(index.numpy().astype("<i8", copy=False).tobytes())
        return result.hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest() == other.digest() if isinstance(other, StructureChange) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        parts = (f"{name}[{', '.join(f'dim {d}: {len(i)}' for d, i in slices)}]" for name, slices in self.kept.items())
        return f"StructureChange(keeps {'; '.join(parts) or 'everything'})"


def _clean_slices(name: str, slices: Slices) -> Slices:
    clean: dict[int, Tensor] = {}
    for dim, index in slices:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 0:
            raise StructureError(f"{name!r}: dimension {dim!r} must be an integer from 0")
        if dim in clean:
            raise StructureError(f"{name!r}: dimension {dim} is given twice; give one index tensor for each dimension")
        clean[dim] = _clean_index(name, dim, index)
    return tuple(sorted(clean.items()))


def _clean_index(name: str, dim: int, index: Tensor) -> Tensor:
    where = f"the indices kept of {name!r} along dimension {dim}"
    if not isinstance(index, Tensor) or index.dtype is not torch.int64 or index.dim() != 1:
        kind = f"{index.dim()}-D {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise StructureError(f"{where} are {kind}; give a 1-D int64 tensor")
    if index.numel() == 0:
        raise StructureError(
            f"{where} are none; torch cannot compute with zero width: keep at least one, or drop the layer"
        )
    copy = index.detach().to("cpu", copy=True).contiguous()
    if int(copy[0]) < 0 or bool((copy[1:] <= copy[:-1]).any()):
        raise StructureError(f"{where} must be non-negative, ascending and unique, not {copy[:8].tolist()}...")
    return copy
