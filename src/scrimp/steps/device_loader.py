"""A loader for data sets that fit on the training device: whole batches by indexing, no Python per sample."""

import hashlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Sampler

from scrimp._core import ranks
from scrimp._core.index_plan import IndexPlan, PlanSampler, ShufflePlan, as_index_plan
from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.steps.batch import Batch, BatchTransform
from scrimp.steps.memory_format import select_samples


class DeviceLoader:
    """Batches of a data set that lies as one tensor on one device, in the order of a plan, changed by transforms.

    An epoch is laid out before its first batch: the plan's indices, and one row of random choices per visit and
    transform, drawn from ``generator(seed, "transform", position in the list, epoch)``. A batch is then a pure function
    of the epoch and its number in it. That is why a run that was stopped inside an epoch continues bit for bit from two
    integers, and why any number of ranks makes the same global batches.

    Epochs. Iterating gives the epoch ``epoch``; when the last batch has been trained and the loop comes back for more,
    ``epoch`` grows by one. ``set_epoch`` goes elsewhere. A loop that is left by ``break`` begins the same epoch
    again next time. So ``for epoch in range(loader.epoch, num_epochs): for batch in loader: ...`` needs nothing else,
    before and after a resume.

    State. ``state_dict`` counts a batch as done from the moment it is handed out: taken after the k-th batch of an
    epoch was trained, the next iteration of a loader that loads it begins with batch k + 1. (After the last batch it
    gives none, and moves on to the next epoch.) The plan's state is part of it.

    Ranks. ``batch_size`` is per rank. A global batch is ``batch_size * world_size`` consecutive visits of the plan, of
    which rank r takes the r-th part, and every rank makes the same number of steps. The last, incomplete global batch
    is split as evenly as possible (sizes differ by at most one; ``Batch.global_size`` is for weighting); if it has
    fewer visits than there are ranks it is dropped.

    Args: inputs - for example uint8 images (N, C, H, W), channels_last or not, or rows of tokens (N, length).
        targets - one row per sample, or ``None``. batch_size - samples per rank and step.
        sampler - an IndexPlan or a torch Sampler of the whole epoch; a ShufflePlan of ``seed`` if left out.
        transforms - applied in this order. drop_last - leave out an incomplete last global batch.
        device - where the data set is moved; where ``inputs`` are, if left out.
    Raises: ConfigError - an impossible batch size, rank, seed or transform. DataError - inputs and targets of different
        lengths, no samples, a sampler for another number of samples, an index out of range; from an iteration, an epoch
        without a single batch.
    Cost: the data set on the device once, as it is; per epoch one copy of the indices and choices to the device, and,
        under torch.distributed, a comparison of the ranks' plans (two small collectives); per batch no host sync.
    Source: the on-device data set of D. Page's "Bag of Tricks", without his grouping of samples by augmentation.
    """

    def __init__(
        self,
        inputs: Shaped[Tensor, "samples ..."],
        targets: Shaped[Tensor, "samples ..."] | None,
        batch_size: int,
        *,
        sampler: IndexPlan | Sampler[int] | None = None,
        transforms: Sequence[BatchTransform] = (),
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_data(inputs, targets)
        num_samples = inputs.shape[0]
        _check_sizes(batch_size, rank, world_size, num_samples)
        for transform in transforms:
            if not isinstance(transform, BatchTransform):
                raise ConfigError(
                    f"{transform!r} is no transform for DeviceLoader: it needs the methods draw and apply"
                )
        generator(seed)  # refuses a bad seed here and not in the first epoch
        self.plan = ShufflePlan(num_samples, seed=seed) if sampler is None else as_index_plan(sampler, num_samples)
        self.inputs = inputs if device is None else inputs.to(device)
        self.targets = None if targets is None else targets.to(self.inputs.device)
        self.batch_size = batch_size
        self.transforms = tuple(transforms)
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self._position = _Position(self.plan.epoch, 0)
        self._is_resuming = False

    @property
    def num_samples(self) -> int:
        """Samples in the data set."""
        return self.plan.num_samples

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives, or the present one gives; from 0."""
        return self.plan.epoch

    @property
    def steps_done(self) -> int:
        """Batches of the present epoch that were handed out, counted from its beginning also after a resume."""
        return self._position.steps_done if self._position.epoch == self.epoch else 0

    @property
    def num_visits(self) -> int:
        """Samples that the present epoch visits, over all ranks, without those that ``drop_last`` leaves out."""
        return sum(self._global_sizes(self._num_planned()))

    def __len__(self) -> int:
        """Steps in the present epoch, the same on every rank."""
        return len(self._global_sizes(self._num_planned()))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of another epoch. The present one again: no effect, a loaded position stays.

        Raises: ConfigError - negative or no integer.
        """
        before = self.epoch
        self.plan.set_epoch(epoch)
        if epoch != before:
            self._position, self._is_resuming = _Position(epoch, 0), False

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        first_step = self.steps_done if self._is_resuming else 0
        self._position, self._is_resuming = _Position(epoch, first_step), False
        layout = self._lay_out_epoch()
        for step in range(first_step, len(layout.global_sizes)):
            self._position = _Position(epoch, step + 1)
            yield self._batch(layout, step)
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """``epoch``, ``steps_done`` in it, what they depend on, and the state of the ``plan``. Alike on all ranks."""
        return {
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            **self._settings(),
            "plan": self.plan.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state: the next iteration begins after the ``steps_done`` batches of its epoch.

        The number of ranks may have changed, if the global batch has not.

        Raises: ConfigError - saved with another data set size, seed, global batch size, drop_last or plan; the loader
            is as it was.
        """
        missing = [key for key in ("epoch", "steps_done", "plan", *self._settings()) if key not in state]
        if missing:
            raise ConfigError(f"this is no state of a DeviceLoader: it lacks {', '.join(missing)}")
        for key, value in self._settings().items():
            if state[key] != value:
                raise ConfigError(f"the DeviceLoader was saved with {key}={state[key]} but this one has {key}={value}")
        self.plan.load_state_dict(state["plan"])
        self.plan.set_epoch(state["epoch"])
        self._position, self._is_resuming = _Position(state["epoch"], state["steps_done"]), True

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "global_batch_size": self.batch_size * self.world_size,
            "drop_last": self.drop_last,
        }

    def _num_planned(self) -> int:
        if isinstance(self.plan, PlanSampler):
            return self.plan.num_visits
        return len(self.plan) if isinstance(self.plan, Sized) else self.plan.epoch_indices().numel()

    def _global_sizes(self, num_planned: int) -> list[int]:
        """How many visits each step makes over all ranks."""
        full_size = self.batch_size * self.world_size
        num_full, rest = divmod(num_planned, full_size)
        keeps_rest = rest >= self.world_size and not self.drop_last
        return [full_size] * num_full + [rest] * keeps_rest

    def _lay_out_epoch(self) -> "_EpochLayout":
        """Everything about the present epoch that does not depend on the data."""
        index, weights = self._checked_plan()
        global_sizes = self._global_sizes(index.numel())
        if not global_sizes:
            raise DataError(
                f"epoch {self.epoch} visits {index.numel()} samples, too few for one batch of {self.batch_size} on "
                f"each of {self.world_size} rank(s) with drop_last={self.drop_last}; use a smaller batch_size"
            )
        drawn = []
        for position, transform in enumerate(self.transforms):
            rows = transform.draw(index, self.epoch, generator(self.seed, "transform", position, self.epoch))
            if rows is not None and rows.shape[:1] != index.shape:
                raise DataError(
                    f"{type(transform).__name__}.draw gave {tuple(rows.shape)} for {index.numel()} visits; "
                    "it has to give one row per visit"
                )
            drawn.append(None if rows is None else rows.to(self.inputs.device))
        device = self.inputs.device
        return _EpochLayout(
            index.to(device), None if weights is None else weights.to(device), tuple(drawn), tuple(global_sizes)
        )

    def _checked_plan(self) -> tuple[Tensor, Tensor | None]:
        """The plan's indices and weights of this epoch, refused if they do not fit the data or the other ranks."""
        index, weights = self.plan.epoch_indices(), self.plan.epoch_weights()
        if index.dtype != torch.int64 or index.ndim != 1:
            raise DataError(
                f"the plan of epoch {self.epoch} is {index.dtype} {tuple(index.shape)}, not int64 in one axis"
            )
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < self.num_samples):
            raise DataError(
                f"the plan of epoch {self.epoch} has indices from {int(index.min())} to {int(index.max())}, "
                f"but the data set has {self.num_samples} samples"
            )
        if weights is not None and weights.shape != index.shape:
            raise DataError(f"the plan of epoch {self.epoch} has {len(weights)} weights for {index.numel()} visits")
        if self.world_size > 1 and ranks.world_size() == self.world_size:
            digest = hashlib.blake2b(index.numpy().tobytes())
            digest.update(b"" if weights is None else weights.cpu().numpy().tobytes())
            ranks.assert_same_on_all_ranks(digest.digest(), f"the plan of epoch {self.epoch}")
        return index, weights

    def _batch(self, layout: "_EpochLayout", step: int) -> Batch:
        """This rank's part of one step."""
        global_size = layout.global_sizes[step]
        share, num_longer = divmod(global_size, self.world_size)
        start = step * self.batch_size * self.world_size + self.rank * share + min(self.rank, num_longer)
        rows = slice(start, start + share + (self.rank < num_longer))
        index = layout.index[rows]
        inputs = select_samples(self.inputs, index)
        for transform, drawn in zip(self.transforms, layout.drawn, strict=True):
            inputs = transform.apply(inputs, None if drawn is None else drawn[rows])
        return Batch(
            index=index,
            inputs=inputs,
            targets=None if self.targets is None else self.targets.index_select(0, index),
            weights=None if layout.weights is None else layout.weights[rows],
            global_size=global_size,
        )


@dataclass(frozen=True)
class _Position:
    epoch: int
    steps_done: int


@dataclass(frozen=True)
class _EpochLayout:
    """One row per visit of the whole epoch, over all ranks; and the visits of each step."""

    index: Tensor
    weights: Tensor | None
    drawn: tuple[Tensor | None, ...]
    global_sizes: tuple[int, ...]


def _check_data(inputs: Tensor, targets: Tensor | None) -> None:
    for name, value in (("inputs", inputs), ("targets", targets)):
        if value is not None and not isinstance(value, Tensor):
            raise DataError(f"{name} are a {type(value).__name__}; give a tensor (torch.from_numpy, torch.tensor)")
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise DataError(f"the data set has no samples: inputs are {tuple(inputs.shape)}")
    if targets is not None and (targets.ndim == 0 or targets.shape[0] != inputs.shape[0]):
        raise DataError(
            f"{inputs.shape[0]} inputs but targets of shape {tuple(targets.shape)}; each sample needs one row"
        )


def _check_sizes(batch_size: int, rank: int, world_size: int, num_samples: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("world_size", world_size, 1), ("rank", rank, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; it has to be an integer from {least}")
    if rank >= world_size:
        raise ConfigError(f"rank is {rank} but world_size is {world_size}; ranks count from 0 to world_size - 1")
    if batch_size * world_size > num_samples:
        each = "" if world_size == 1 else f" on each of {world_size} ranks"
        raise ConfigError(f"batch_size is {batch_size}{each}, but the data set has only {num_samples} samples")
