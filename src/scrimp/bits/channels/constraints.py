"""What has to hold between channels that go, beyond going together: tensors stay rectangular, groups equally wide.

Each constraint takes classes out of the set that would be removed, never adds one, so that applying all of them again
and again comes to an end.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Removed = Bool[Tensor, " classes"]


class Constraint(Protocol):
    """A condition on the set of classes that are removed."""

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """Clear in ``removed``, in place, what cannot be removed together with the rest."""


@dataclass(frozen=True)
class Grid:
    """A tensor with channels along several axes loses whole planes across one of ``axes``, and never all of them."""

    labels: Tensor
    axes: tuple[int, ...]

    def planes(self, removed: Removed, classes: Tensor, axis: int) -> Bool[Tensor, " size"]:
        """Which planes across ``axis`` are wholly removed."""
        gone = removed[classes[self.labels]]
        return gone.movedim(axis, 0).flatten(1).all(dim=1)

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        gone = removed[classes[self.labels]]
        allowed = torch.zeros_like(gone)
        for axis in self.axes:
            whole = gone.movedim(axis, 0).flatten(1).all(dim=1)
            if bool(whole.all()):
                whole[0] = False
            allowed |= whole.view([-1 if other == axis else 1 for other in range(gone.dim())])
        removed[classes[self.labels[gone & ~allowed]]] = False


@dataclass(frozen=True)
class EqualParts:
    """Parts of a tensor that the model cuts into equally many stay equally wide. One row of ``labels`` per part."""

    labels: Int64[Tensor, "parts width"]

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        gone = removed[classes[self.labels]]
        fewest = int(gone.sum(dim=1).min())
        surplus = gone & (gone.cumsum(dim=1) > fewest)
        removed[classes[self.labels[surplus]]] = False


@dataclass(frozen=True)
class GroupedInputs:
    """A grouped convolution loses the same input positions in every group, or whole groups with all their outputs."""

    inputs: Int64[Tensor, "groups width"]
    outputs: Int64[Tensor, "groups out_width"]

    def whole_groups(self, removed: Removed, classes: Tensor) -> Bool[Tensor, " groups"]:
        """Which groups go with all that they have."""
        return removed[classes[self.inputs]].all(dim=1) & removed[classes[self.outputs]].all(dim=1)

    def positions(self, removed: Removed, classes: Tensor) -> Bool[Tensor, " width"]:
        """Which input positions go in all the groups that stay."""
        left = ~self.whole_groups(removed, classes)
        gone = removed[classes[self.inputs]][left]
        return gone.all(dim=0) if bool(left.any()) else torch.zeros(self.inputs.shape[1], dtype=torch.bool)

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        whole = self.whole_groups(removed, classes)
        if bool(whole.all()):
            whole[0] = False
        left = self.inputs[~whole]
        gone = removed[classes[left]]
        position = gone.all(dim=0)
        if bool(position.all()):
            position[0] = False
        removed[classes[left[gone & ~position]]] = False
        outputs = self.outputs[~whole]
        gone = removed[classes[outputs]]
        fewest = min(int(gone.sum(dim=1).min()), outputs.shape[1] - 1)
        removed[classes[outputs[gone & (gone.cumsum(dim=1) > fewest)]]] = False


@dataclass(frozen=True)
class Heads:
    """An attention head goes as a whole: with its queries, keys and values. Only values may become narrower."""

    queries: Int64[Tensor, "heads width"]
    keys: Int64[Tensor, "heads width"]
    values: Int64[Tensor, "heads value_width"]

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        parts = (self.queries, self.keys, self.values)
        gone = [removed[classes[part]].all(dim=1) for part in parts]
        whole = gone[0] & gone[1] & gone[2]
        if bool(whole.all()):
            whole[0] = False
        for part in parts[:2]:
            removed[classes[part[~whole]]] = False
        removed[classes[self.values[gone[2] & ~whole]]] = False


@dataclass(frozen=True)
class AtLeastOne:
    """A dimension of a tensor never becomes empty: the best channel then stays, the first one without ``scores``."""

    labels: Int64[Tensor, " size"]
    scores: Float[Tensor, " size"] | None = None

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        own = classes[self.labels]
        if bool(removed[own].all()):
            removed[own[0 if self.scores is None else int(self.scores.argmax())]] = False


@dataclass(frozen=True)
class Scattered:
    """Where zeros are put back behind a module: what is seen there goes only if the module's channel goes, too.

    A channel of the module can go alone if it ``may_go``.
    """

    inputs: Int64[Tensor, " inputs"]
    outputs: Int64[Tensor, " inputs"]
    may_go: Bool[Tensor, " inputs"]

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        inputs, outputs = classes[self.inputs], classes[self.outputs]
        removed[outputs[removed[outputs] & ~removed[inputs]]] = False
        removed[inputs[removed[inputs] & ~removed[outputs] & ~self.may_go]] = False


@dataclass(frozen=True)
class MultipleOf:
    """As many channels stay as fill a multiple of ``number``; some dead ones stay to make up for it."""

    labels: Int64[Tensor, " size"]
    number: int

    def keep(self, removed: Removed, classes: Int64[Tensor, " atoms"]) -> None:
        """See the class."""
        own = classes[self.labels]
        gone = removed[own]
        wanted = -(-int((~gone).sum()) // self.number) * self.number
        surplus = gone & (gone.cumsum(dim=0) <= wanted - int((~gone).sum()))
        removed[own[surplus]] = False
