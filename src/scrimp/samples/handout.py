"""Which sample each loss belongs to, when only order tells: the queue of indices that one pass has handed out."""

import math
import sys
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from scrimp.errors import ConfigError, DataError
from scrimp.samples.loader_facts import REMEDY, LoaderFacts, look_at_loader


class Handout:
    """One pass over an epoch: indices go out one by one, losses come back in the same order, batch by batch.

    A DataLoader may have drawn far ahead of the training (workers, prefetchers); what it hands to the loop still comes
    in the order in which it was drawn, so a queue tells which samples a batch holds. The queue is two counters on the
    order of the pass. A DataLoader's iterator counts the batches that its loop was given, which tells a loop that was
    left from one that went to the end, and losses that belong to no batch.
    """

    def __init__(self, order: Int64[Tensor, " visits"], epoch: int, *, num_shares: int = 1) -> None:
        self.order = order
        self.epoch = epoch
        self.num_shares = num_shares  # of which this order is one
        self.num_handed = 0
        self.num_taken = 0
        self.is_explicit = False
        self.facts = LoaderFacts()
        self._has_begun = False
        self._num_given = 0  # batches that the loop had been given at the last losses
        self._num_seen = 0  # what the loop had been given at the last losses
        self._first_lag: int | None = None
        self._lag = 0  # of the losses behind what the loop had been given
        self._steps_of_handed = 0
        self._largest_batch = 0
        self._on_device = order
        self._is_exhausted = False
        self._is_superseded = False

    def hand_out(self, *, saves_state: bool = True) -> Iterator[int]:
        """The indices, counted.

        Args: saves_state - whether the sampler that this is done for has a state that a loader would save.
        Raises: ConfigError - the loader shares out once more what is a share already."""
        self.facts = look_at_loader(sys._getframe(1), self.num_shares, saves_state=saves_state)
        self._has_begun = True
        for number, index in enumerate(self.order.tolist(), start=1):
            self.num_handed = number
            yield index
        self._is_exhausted = True

    def take(self, batch_size: int, device: torch.device) -> Int64[Tensor, " batch"]:
        """The samples of the next batch, on ``device``.

        Raises: DataError - more losses than samples were handed out, or the pass uses ``index=``. ConfigError - the
            loader is known to change their order.
        """
        if self.facts.disorder is not None:
            raise ConfigError(f"{self.facts.disorder}. {REMEDY}")
        if self.is_explicit:
            raise DataError(
                "this pass began with reduce(losses, index=...) and now lacks index; give it for every batch, "
                "because order alone no longer tells which samples these are"
            )
        begin, end = self.num_taken, self.num_taken + batch_size
        num_out = self.num_received - begin
        if batch_size > num_out:
            raise DataError(
                f"{batch_size} losses came, but only {num_out} samples are out: the loop was given {num_out + begin} "
                f"in this pass and {begin} have come back. Call reduce once for every batch of the loader whose "
                f"sampler this is, with one loss per sample{flattened(batch_size, num_out)}. {REMEDY}"
            )
        self._check_boundary(batch_size)
        if self.num_handed < len(self.order):  # the loader draws whole batches until it meets the end
            self._steps_of_handed = math.gcd(self._steps_of_handed, self.num_handed)
        self._count(batch_size)
        if self._on_device.device != device:
            self._on_device = self.order.to(device)
        return self._on_device[begin:end]

    def _check_boundary(self, batch_size: int) -> None:
        """Refuse losses of a new batch while some of the batch before are missing: all later ones would shift."""
        facts = self.facts
        if not facts.is_counted or facts.iterator is None or facts.batch_size is None:
            return
        num_given, self._num_given = self._num_given, facts.iterator.num_batches
        missing = -self.num_taken % facts.batch_size
        if missing and self._num_given > num_given:
            raise DataError(
                f"{batch_size} losses of another batch came while {missing} of the batch before are missing: "
                f"{self.num_taken} have come of batches of {facts.batch_size}. Call reduce with one loss per sample of "
                f"every batch. {REMEDY}"
            )

    def take_explicit(self, batch_size: int) -> None:
        """Count a batch whose samples the caller named.

        Raises: DataError - earlier batches of this pass were taken by order.
        """
        if self.num_taken and not self.is_explicit:
            raise DataError("this pass began without index= and now has it; give it from the first batch on, or never")
        self.is_explicit = True
        self._count(batch_size)

    def supersede(self) -> None:
        """Another pass begins."""
        self._is_superseded = True

    @property
    def num_received(self) -> int:
        """Samples that the loop was given, as far as can be known: at most those that were handed out."""
        facts = self.facts
        if not facts.is_counted or facts.iterator is None or facts.batch_size is None:
            return self.num_handed
        if self._is_superseded and facts.iterator.is_persistent:  # it counts for the new pass already
            return self._num_seen
        return min(max(self._num_seen, facts.iterator.num_batches * facts.batch_size), self.num_handed)

    @property
    def is_complete(self) -> bool:
        """Whether all that this pass will ever bring back has come back."""
        if self.facts.batch_size is not None:
            return self.num_taken >= self._num_due and self._has_begun
        num_visits = len(self.order)
        return self.num_handed == num_visits and self.num_taken > 0 and self._num_missing < self._batch_size

    @property
    def is_left(self) -> bool:
        """Whether the loop that made this pass is known to be behind us, and not in its last batch."""
        iterator = self.facts.iterator
        return self._is_exhausted and (iterator is None or not iterator.is_alive)

    @property
    def is_spent(self) -> bool:
        """Whether every index was handed out, and to a loop that was not left before its end, as far as one knows."""
        return self.num_handed == len(self.order) and not self.is_cut_short

    @property
    def is_cut_short(self) -> bool:
        """Whether it is known that the loop was left before it was given its last batch."""
        facts = self.facts
        if not facts.is_counted or facts.iterator is None or facts.batch_size is None:
            return self.num_handed < len(self.order)
        # of a persistent iterator only the last losses tell; its last batch may have brought none
        unknown = facts.batch_size if self._is_superseded and facts.iterator.is_persistent else 0
        return self.num_received + unknown < self._num_due

    @property
    def is_untouched(self) -> bool:
        """Whether no losses have come: a look at the data, not training."""
        return self.num_taken == 0

    def check_end(self) -> None:
        """Called when another pass begins.

        Raises: DataError - losses are missing: of batches in between, or although the loop went to its end.
        """
        if self.is_complete or self.is_explicit or self.is_untouched:
            return
        if self.is_cut_short and self._lag <= (self._first_lag or 0):
            return
        raise DataError(
            f"{self.num_received} samples of epoch {self.epoch} were handed out to the loop, but losses came back for "
            f"only {self.num_taken}: batches were left out, or something between sampler and loop drops or shards "
            f"them, and scores may have gone to the wrong samples. {REMEDY}. If the loop was left early on purpose, "
            "call pruner.restart_epoch() before the next pass"
        )

    @property
    def _num_due(self) -> int:
        """Visits that the loader will give its loop."""
        num_visits, facts = len(self.order), self.facts
        dropped = num_visits % facts.batch_size if facts.drop_last and facts.batch_size is not None else 0
        return num_visits - dropped

    @property
    def _num_missing(self) -> int:
        return len(self.order) - self.num_taken

    @property
    def _batch_size(self) -> int:
        return max(self._steps_of_handed, self._largest_batch)

    def _count(self, batch_size: int) -> None:
        self.num_taken += batch_size
        self._largest_batch = max(self._largest_batch, batch_size)
        self._num_seen = self.num_received
        if self.facts.is_counted:
            self._lag = self._num_seen - self.num_taken
            if self._first_lag is None:
                self._first_lag = self._lag


def flattened(num_losses: int, num_samples: int) -> str:
    """Advice for losses that look like those of tokens in one row."""
    if num_samples < 1 or num_losses <= num_samples or num_losses % num_samples:
        return ""
    each = num_losses // num_samples
    return (
        f" (if these are losses of tokens in one row, give them as losses.view({num_samples}, {each}), with mask= for "
        "the tokens that count)"
    )
