"""The passes that one rank makes over its share of an epoch, and how far they have come."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from scrimp._core import ranks
from scrimp.errors import ConfigError, DataError
from scrimp.samples.handout import Handout
from scrimp.samples.overlap import EarlierPasses

_IDLE_PASSES_ALLOWED = 2


class Passes:
    """One pass after another: what was handed out in the present one, and whether the epoch is trained.

    Args: rank, world_size - if not those of torch.distributed; both or neither.
    Raises: ConfigError - only one of them, or they do not fit.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise ConfigError("give both rank and world_size, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} but world_size is {world_size}; ranks count from 0")
        self._given_rank, self._given_world_size = rank, world_size
        self.handout: Handout | None = None
        self._earlier = EarlierPasses()
        self.is_resuming = False  # the next pass hands out only what is left of the epoch
        self.num_reduced = 0  # of this rank, in the present epoch
        self._num_idle = 0
        self._was_over = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy (pickle, copy.deepcopy) has no loop of its own yet, so it repeats the epoch that it is in."""
        return {**vars(self), "handout": None, "_earlier": EarlierPasses()}

    @property
    def rank(self) -> int:
        """The number of this rank."""
        return ranks.rank() if self._given_rank is None else self._given_rank

    @property
    def world_size(self) -> int:
        """How many ranks share an epoch."""
        return ranks.world_size() if self._given_world_size is None else self._given_world_size

    def share(self, order: Int64[Tensor, " visits"]) -> Int64[Tensor, " own"]:
        """This rank's part of ``order``; the same number of visits on every rank."""
        size = self.world_size
        return order if size == 1 else order[: order.numel() // size * size][self.rank :: size]

    @property
    def num_processes(self) -> int:
        """How many processes make the visits of an epoch together: also where a wrapper deals batches out to them."""
        if self.handout is None or not self.handout.is_explicit:
            return self.world_size
        return max(self.world_size, ranks.world_size(), self.handout.facts.num_dealt)

    @property
    def is_over(self) -> bool:
        """Whether the present epoch is trained and only waits for the next pass to begin another."""
        return self._was_over if self.handout is None else self.handout.is_complete

    @property
    def is_behind(self) -> bool:
        """Whether its loop is left, too: within the last batch, a pruner still speaks of this epoch."""
        return self.is_over and (self.handout is None or self.handout.is_left)

    def end_last(self, epoch: int) -> bool:
        """Called when another pass begins. Returns whether that is one over the next epoch.

        Raises: DataError - losses are missing. ConfigError - passes bring no losses at all.
        """
        if self.handout is None:
            return self.is_over
        self.handout.supersede()
        self.handout.check_end()
        self._num_idle = self._num_idle + 1 if self.handout.is_untouched and self.handout.is_spent else 0
        if self._num_idle >= _IDLE_PASSES_ALLOWED:
            raise ConfigError(
                f"{self._num_idle} whole passes over epoch {epoch} brought no losses; call "
                "pruner.reduce(losses) for every batch, or the epoch never ends"
            )
        return self.is_over or (self.handout.is_explicit and self.handout.is_spent)

    def begin(self, own: Int64[Tensor, " own"], epoch: int, num_own: int) -> Handout:
        """Hand out ``own``, those of this rank's ``num_own`` visits of an epoch that were not trained yet."""
        self.num_reduced = num_own - own.numel()
        if self.handout is not None:
            self._earlier.add(self.handout)
        self.handout = Handout(own, epoch, num_shares=self.world_size)
        return self.handout

    def take(self, batch_size: int, device: torch.device) -> Int64[Tensor, " batch"]:
        """The samples of the next batch. Raises: DataError - there is no pass, or the batch is not of this one."""
        if self.handout is None:
            raise DataError(
                "reduce(losses) relies on the order in which this sampler handed out samples, but it handed out none: "
                "give the pruner to the loader, as DataLoader(data, sampler=pruner), or tell the samples with index="
            )
        self._earlier.check(self.handout)
        return self.handout.take(batch_size, device)

    def take_explicit(self, batch_size: int) -> None:
        """Count a batch whose samples the caller named, if there is a pass."""
        if self.handout is not None:
            self.handout.take_explicit(batch_size)

    def count(self, batch_size: int) -> None:
        """Losses came for as many samples."""
        self.is_resuming = False
        self.num_reduced += batch_size

    def restart(self) -> None:
        """Hand out the whole of the present epoch again."""
        self.handout = None
        self.is_resuming = False

    def leave(self) -> None:
        """Another epoch begins."""
        self.restart()
        self.num_reduced = 0
        self._was_over = False

    def resume(self, *, is_partial: bool, is_over: bool) -> None:
        """As a saved state says: whether part of the epoch was trained, or all of it."""
        self.leave()
        self.is_resuming, self._was_over = is_partial, is_over
        self._num_idle = 0
