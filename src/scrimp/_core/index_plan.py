"""An epoch as data: which samples are visited, in which order, with which weight.

Whoever chooses samples (a shuffle, a pruner, any torch Sampler) is an ``IndexPlan``; whoever loads them takes the plan
whole. Plans live on the CPU and know nothing of batches or ranks: every rank holds the same plan, the loader splits it.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError

_MAX_DRAWS_PER_SAMPLE = 100
_DRAWS_AT_A_TIME = 65_536
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@runtime_checkable
class IndexPlan(Protocol):
    """What a loader needs to know of an epoch. ``epoch`` counts from 0 and may grow beyond the last trained one."""

    num_samples: int
    """The size of the data set that the indices point into."""

    @property
    def epoch(self) -> int:
        """The epoch that ``epoch_indices`` describes."""

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch. The present one again: no effect."""

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """The samples of the present epoch in the order of their visits, on the CPU; alike until the epoch changes."""

    def epoch_weights(self) -> Float[Tensor, " visits"] | None:
        """One weight per visit, in the same order; ``None`` if all are 1."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values from which ``load_state_dict`` gives the same present and later epochs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises: ConfigError - it belongs to another plan; nothing was changed."""


class PlanSampler(Sampler[int]):
    """Base of plans that are also torch Samplers, for use as ``DataLoader(data, sampler=plan)``.

    Two iterators taken one after the other without finishing the first give the same epoch: torch 2.6 and later may
    call ``iter`` more than once for one pass. The epoch moves on in two ways only: by ``set_epoch``, or by itself when
    a pass was drained to its end. So the plain loop

        for epoch in range(num_epochs):
            for batch in loader: ...

    gets a new order each epoch without ``set_epoch``, a loop that does call ``set_epoch(epoch)`` gets the very same
    orders, and a loop left by ``break`` begins the same epoch again. ``len`` is that of the present epoch.

    A DataLoader with workers draws ahead of the training, so take a plan's state between epochs; to stop inside an
    epoch, use ``scrimp.steps.DeviceLoader``, which counts steps.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = _checked_count(num_samples)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The present epoch, from 0."""
        return self._epoch

    @property
    def num_visits(self) -> int:
        """Visits of the present epoch, over all ranks and from its beginning; ``len`` may be a part of that."""
        return len(self)

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch. Raises: ConfigError - negative or no integer."""
        self._epoch = _checked_epoch(epoch)

    @abstractmethod
    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """The samples of the present epoch, in order."""

    def epoch_weights(self) -> Float[Tensor, " visits"] | None:
        """No weights: every visit counts 1."""
        return None

    def __len__(self) -> int:
        return self.epoch_indices().numel()

    def __iter__(self) -> Iterator[int]:
        return self._drain(self._epoch, self.epoch_indices().tolist())

    def _drain(self, epoch: int, indices: list[int]) -> Iterator[int]:
        yield from indices
        if self._epoch == epoch:
            self.set_epoch(epoch + 1)


class ShufflePlan(PlanSampler):
    """Every sample once per epoch, in an order that is a pure function of ``(num_samples, seed, epoch)``.

    Args: num_samples - size of the data set. seed - names the run's orders.
    Raises: ConfigError - num_samples is not a positive integer, or the seed no integer.
    Cost: one permutation on the CPU per call (8 bytes per sample); nothing is kept.
    """

    def __init__(self, num_samples: int, *, seed: int = 0) -> None:
        super().__init__(num_samples)
        generator(seed)  # refuses a bad seed here and not in the first epoch
        self.seed = seed

    def __len__(self) -> int:
        return self.num_samples

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """A permutation of all samples."""
        return torch.randperm(self.num_samples, generator=generator(self.seed, "shuffle", self._epoch))

    def state_dict(self) -> dict[str, Any]:
        """``seed``, ``epoch`` and ``num_samples``."""
        return {"seed": self.seed, "epoch": self._epoch, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the saved epoch. Raises: ConfigError - other seed, other num_samples, or no such state."""
        _check_matches(state, {"seed": self.seed, "num_samples": self.num_samples}, also=("epoch",), what="ShufflePlan")
        self.set_epoch(state["epoch"])


class SequentialPlan(PlanSampler):
    """Every sample once per epoch, from the first to the last: for evaluation and for comparisons.

    Raises: ConfigError - num_samples is not a positive integer.
    """

    def __len__(self) -> int:
        return self.num_samples

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """0, 1, ... num_samples - 1."""
        return torch.arange(self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        """``epoch`` and ``num_samples``."""
        return {"epoch": self._epoch, "num_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the saved epoch. Raises: ConfigError - other num_samples, or no such state."""
        _check_matches(state, {"num_samples": self.num_samples}, also=("epoch",), what="SequentialPlan")
        self.set_epoch(state["epoch"])


class SamplerPlan:
    """Any torch Sampler as an IndexPlan.

    The sampler is drained once per epoch, when the epoch's indices are first asked for, and what it gave is kept until
    the epoch changes. ``set_epoch`` is passed on to a sampler that has it. The state holds the drained indices (8 bytes
    per visit) and whatever the sampler lets one save: its own ``state_dict``, and its ``generator`` where that is a
    torch.Generator. A sampler that draws from a global generator (as RandomSampler does without a generator) repeats
    after a resume only if that is restored too.

    Args: sampler - yields integers in [0, num_samples), one epoch per iteration. num_samples - size of the data set.
    Raises: ConfigError - num_samples is not a positive integer, or the sampler splits over ranks itself.
        DataError - it is a batch sampler or no sampler at all. Later, from ``epoch_indices``: DataError - it
        yields something else than an integer, an index out of range, or more than 100 indices per sample.
    """

    def __init__(self, sampler: Sampler[int], num_samples: int) -> None:
        self.num_samples = _checked_count(num_samples)
        _refuse_unsuitable(sampler)
        self.sampler = sampler
        self._drained: Tensor | None = None
        self._go_to(0)

    @property
    def epoch(self) -> int:
        """The present epoch, from 0."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch; the sampler is told if it has ``set_epoch``. The present epoch again: no effect.

        Raises: ConfigError - negative or no integer.
        """
        if _checked_epoch(epoch) != self._epoch:
            self._drained = None
            self._go_to(epoch)

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """What the sampler yields in this epoch. Raises: DataError - as the class says."""
        if self._drained is None:
            self._drained = _drain_sampler(self.sampler, self.num_samples)
        return self._drained

    def epoch_weights(self) -> Float[Tensor, " visits"] | None:
        """No weights: a torch Sampler has none."""
        return None

    def __len__(self) -> int:
        if self._drained is None and isinstance(self.sampler, Sized):
            return len(self.sampler)
        return self.epoch_indices().numel()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, its indices if they were drawn, and the sampler's own state where it has one."""
        own_generator = getattr(self.sampler, "generator", None)
        return {
            "epoch": self._epoch,
            "num_samples": self.num_samples,
            "indices": self._drained,
            "sampler": self.sampler.state_dict() if hasattr(self.sampler, "state_dict") else None,
            "generator": own_generator.get_state() if isinstance(own_generator, torch.Generator) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises: ConfigError - it belongs to another plan; nothing was changed."""
        also = ("epoch", "indices", "sampler", "generator")
        _check_matches(state, {"num_samples": self.num_samples}, also=also, what="SamplerPlan")
        epoch = _checked_epoch(state["epoch"])
        own_generator = getattr(self.sampler, "generator", None)
        if isinstance(own_generator, torch.Generator) != (state["generator"] is not None):
            raise ConfigError("the saved sampler and this one differ: only one of them has a generator of its own")
        if hasattr(self.sampler, "load_state_dict") != (state["sampler"] is not None):
            raise ConfigError("the saved sampler and this one differ: only one of them has a state")
        if hasattr(self.sampler, "load_state_dict"):
            self.sampler.load_state_dict(state["sampler"])
        if isinstance(own_generator, torch.Generator):
            own_generator.set_state(state["generator"].to(device="cpu", copy=True))
        self._drained = None if state["indices"] is None else state["indices"].to(device="cpu", copy=True)
        self._go_to(epoch)

    def _go_to(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def as_index_plan(sampler: IndexPlan | Sampler[int], num_samples: int) -> IndexPlan:
    """``sampler`` itself if it is a plan already, else a ``SamplerPlan`` around it.

    Raises: DataError - a plan for a data set of another size; otherwise as ``SamplerPlan``.
    """
    if not isinstance(sampler, IndexPlan):
        return SamplerPlan(sampler, num_samples)
    if sampler.num_samples != num_samples:
        raise DataError(
            f"the sampler was made for {sampler.num_samples} samples, but the data set has {num_samples}; "
            f"make it as {type(sampler).__name__}({num_samples}, ...)"
        )
    return sampler


def _refuse_unsuitable(sampler: object) -> None:
    if isinstance(sampler, BatchSampler):
        raise DataError("a BatchSampler was given where a sampler of single indices belongs; pass its .sampler")
    if not hasattr(sampler, "__iter__"):
        raise DataError(f"a {type(sampler).__name__} is no sampler: it cannot be iterated")
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise ConfigError(
            "a DistributedSampler gives each rank its own share, but a loader splits the plan over the ranks itself; "
            "pass the sampler of the whole epoch (for DistributedSampler(shuffle=True): leave the sampler out)"
        )


def _drain_sampler(sampler: Sampler[int], num_samples: int) -> Int64[Tensor, " visits"]:
    """All indices of one iteration, checked."""
    name, limit = type(sampler).__name__, num_samples * _MAX_DRAWS_PER_SAMPLE
    iterator, parts, num_drawn = iter(sampler), [], 0
    while drawn := list(itertools.islice(iterator, _DRAWS_AT_A_TIME)):
        parts.append(_as_indices(drawn, name, num_drawn))
        num_drawn += len(drawn)
        if num_drawn > limit:
            raise DataError(
                f"{name} gave more than {limit} indices for a data set of {num_samples} samples and does not end; "
                "an epoch has to be finite (RandomSampler takes num_samples, for example)"
            )
    indices = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    out_of_range = (indices < 0) | (indices >= num_samples)
    if out_of_range.any():
        position = int(out_of_range.nonzero()[0])
        raise DataError(
            f"{name} gave index {int(indices[position])} at position {position}, "
            f"but the data set has {num_samples} samples (indices 0 to {num_samples - 1})"
        )
    return indices


def _as_indices(drawn: list[int], name: str, first_position: int) -> Int64[Tensor, " drawn"]:
    """Python, NumPy or torch integers as one tensor; anything else is refused, where it stands."""
    try:
        indices = torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError):
        indices = None
    if indices is not None and indices.ndim == 1 and indices.dtype in _INTEGERS:
        return indices.to(torch.int64)
    position, value = next(
        ((i, v) for i, v in enumerate(drawn) if isinstance(v, bool) or not hasattr(v, "__index__")), (0, drawn[0])
    )
    raise DataError(
        f"{name} gave {value!r} (a {type(value).__name__}) at position {first_position + position}; "
        "a sampler has to give single integers, not batches, masks or floats"
    )


def _checked_count(num_samples: int) -> int:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples!r}; it has to be a positive integer, the size of the data set")
    return num_samples


def _checked_epoch(epoch: int) -> int:
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise ConfigError(f"epoch is {epoch!r}; it has to be an integer from 0")
    return epoch


def _check_matches(state: dict[str, Any], own: dict[str, int], *, also: tuple[str, ...], what: str) -> None:
    """Refuse a state that lacks a key or was saved with other settings, before anything is changed."""
    missing = [key for key in (*own, *also) if key not in state]
    if missing:
        raise ConfigError(f"this is no state of a {what}: it lacks {', '.join(missing)}")
    for key, value in own.items():
        if state[key] != value:
            raise ConfigError(f"the {what} was saved with {key}={state[key]} but this one has {key}={value}")
