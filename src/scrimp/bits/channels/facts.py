"""What a watched pass notes: the calls, and what they say about channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from scrimp.bits.channels.atoms import Atoms
from scrimp.bits.channels.constraints import Constraint, GroupedInputs


@dataclass(frozen=True)
class Call:
    """One call of a torch function. ``args`` and ``kwargs`` may hold ``Size`` in the place of integers."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    def rerun(self, replace: Callable[[Tensor], Any]) -> Any:
        """The function again, on other tensors."""
        args, kwargs = tree_map(
            lambda leaf: replace(leaf) if isinstance(leaf, Tensor) else plain(leaf), (self.args, dict(self.kwargs))
        )
        kwargs.pop("out", None)
        return self.func(*args, **kwargs)


class Size(int):
    """A size that was read from a tensor, so that code which computes with it follows when the tensor shrinks."""

    source: "Callable[[], None]"

    def _derived(self, value: Any) -> Any:
        if type(value) is not int:
            self.source()  # a width that scales numbers must not change
            return value
        result = Size(value)
        result.source = self.source
        return result

    def __float__(self) -> float:
        self.source()
        return float(int(self))

    def __add__(self, other: Any) -> Any:
        return self._derived(int(self) + plain(other))

    def __sub__(self, other: Any) -> Any:
        return self._derived(int(self) - plain(other))

    def __mul__(self, other: Any) -> Any:
        return self._derived(int(self) * plain(other)) if isinstance(other, int | float) else NotImplemented

    def __floordiv__(self, other: Any) -> Any:
        return self._derived(int(self) // plain(other))

    def __truediv__(self, other: Any) -> Any:
        return self._derived(int(self) / plain(other))

    def __rtruediv__(self, other: Any) -> Any:
        return self._derived(plain(other) / int(self))

    def __rfloordiv__(self, other: Any) -> Any:
        return self._derived(plain(other) // int(self))

    def __pow__(self, other: Any) -> Any:  # type: ignore[override]
        return self._derived(int(self) ** plain(other))

    __radd__, __rmul__ = __add__, __mul__


class KeptSize(int):
    """A size that a module keeps as its attribute ``name``, so that it is known again where it cuts a tensor."""

    module: nn.Module
    name: str


def plain(value: Any) -> Any:
    """An ordinary integer for a ``Size`` or ``KeptSize``; anything else as it is."""
    return int(value) if isinstance(value, Size | KeptSize) else value


@dataclass
class Sink:
    """A layer, or a sum, that reads channels: their part is nothing where it is zero, or where no row is alive.

    ``value``: the one constant that the channel has at every position, NaN where there is none. ``is_unread``: no row
    of the layer is alive to read it, whatever it is.
    """

    labels: Tensor
    is_silent: Tensor
    value: Tensor
    is_unread: Tensor | None = None
    layer: str = ""
    can_fold: bool = False
    weight: Tensor | None = None
    axis: int = 1


@dataclass
class ParamAxis:
    """A dimension of a parameter or buffer whose indices are channel slots."""

    tensor: Tensor
    dim: int
    labels: Tensor
    is_output: bool = False


@dataclass
class RunningMean:
    """Running statistics of a batch norm that trains, and what is constant where it reads; NaN where nothing is."""

    tensor: Tensor
    labels: Tensor
    constants: Tensor


@dataclass
class NormCall:
    """A batch norm as it was called: its channels, and whether what it gives is its bias, whatever the input."""

    module: str
    labels: Tensor
    is_constant: bool


@dataclass
class ScatterPoint:
    """A module behind which zeros can be put back, or are (``exists``), so that its channels go without those there.

    ``inputs`` are the channels that it gives, ``outputs`` those that are seen behind, ``index`` where the inputs are
    among them; ``is_zero``: which inputs are zero everywhere.
    """

    module: str
    axis: int
    inputs: Tensor
    outputs: Tensor
    index: Tensor
    is_zero: Tensor
    exists: bool


@dataclass
class SizeAttribute:
    """A number that a module keeps and cuts tensors by; it becomes what is left of ``labels`` across ``axis``."""

    module: nn.Module
    name: str
    labels: Tensor
    axis: int


@dataclass
class Facts:
    """All that a watched pass found."""

    atoms: Atoms = field(default_factory=Atoms)
    axes: dict[tuple[int, int], ParamAxis] = field(default_factory=dict)
    sinks: list[Sink] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    running: list[RunningMean] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    scatters: list[ScatterPoint] = field(default_factory=list)
    num_calls: dict[str, int] = field(default_factory=dict)
    depends_on_inputs: bool = False
    attributes: list[SizeAttribute] = field(default_factory=list)
    grouped: dict[int, tuple[Tensor, GroupedInputs]] = field(default_factory=dict)
    head_atoms: list[Tensor] = field(default_factory=list)
    dead: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
