"""Scores of very many samples, each kept by one rank only."""

from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from scrimp._core import ranks
from scrimp.errors import ConfigError, DataError
from scrimp.samples.rules.rule import Rule, ScoreView
from scrimp.samples.scores import ScoreStore, packed, rounded, unpacked

_MULTIPLE = 4  # of samples in a block, so that 16-bit values fill whole int64


class ShardedScoreStore(ScoreStore):
    """A ScoreStore of which each rank holds one block of samples: rank r the r-th of equal blocks.

    What a step sees goes into a log of this rank's own visits, on the loss's device. Once per epoch the log is sent to
    the ranks that own the samples, all to all, as integers. To plan, every rank gathers all 16-bit scores, for as long
    as planning takes: the order of an epoch is a permutation of all samples, so that planning needs room for each of
    them anyway, and a plan is that of a pruner without shards, to the bit, for any rule.

    All methods but ``observe`` are collective. States are those of a ScoreStore.

    Memory per rank: between epochs 4 bytes per sample of the block; within an epoch 12 bytes per own visit on the
    device and 2 per sample of the block; while planning 4 bytes per sample of the data set more.
    """

    def __init__(self, num_samples: int, rule: Rule, num_epochs: int) -> None:
        size = ranks.world_size()
        self.num_all = num_samples
        self.block = -(-num_samples // (size * _MULTIPLE)) * _MULTIPLE
        self.first = min(ranks.rank() * self.block, num_samples)
        super().__init__(min(self.block, num_samples - self.first), rule, num_epochs)
        self.allowed: Int64[Tensor, " own"] | None = None
        """The samples that this rank visits in the present epoch, ascending; ``None`` for any."""
        self._log: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def view(self, epoch: int, seed: int) -> ScoreView:
        """What a rule is shown: all samples. Cost: a gather of 4 bytes per sample."""
        tracks = torch.stack([self._gathered(track) for track in self.tracks])
        return ScoreView(tracks, self._gathered(self.last_visit), epoch, seed)

    def observe(self, index: Int64[Tensor, " batch"], scores: Float[Tensor, " batch"]) -> None:
        """Note the scores of a batch; both on one device. Cost: two copies; no host sync."""
        begin, end = self._length, self._length + index.numel()
        if self._log is None or self._log[0].device != scores.device or self._log[0].numel() < end:
            self._grow(end, scores.device)
        assert self._log is not None
        self._log[0][begin:end] = index
        self._log[1][begin:end] = scores
        self._length = end

    @property
    def has_unshared(self) -> bool:
        """Whether this rank has seen samples since it last exchanged them."""
        return self._length > 0

    def fresh(self) -> BFloat16[Tensor, " samples"] | None:
        """What the present epoch has seen of this rank's block, as far as it was exchanged."""
        return self._fresh

    def count_nonfinite(self) -> int:
        """Values that were not finite, of the epochs before the present one."""
        return self.num_nonfinite

    def share(self) -> None:
        """Send what this rank has seen to the owners of the samples.

        Raises: DataError - on every rank, if one has seen a sample that it does not visit in this epoch.
        Cost: one all-to-all of an int64 per own visit, two of small numbers; one host sync.
        """
        index, values = self._take_log()
        self._refuse_strays(index)
        owner = index // self.block
        by_owner = owner.argsort(stable=True)
        counts = torch.bincount(owner, minlength=ranks.world_size()).tolist()
        for part in ranks.all_to_all_ints(packed(index, values)[by_owner].split(counts)):
            if part.numel():
                if self._fresh is None:
                    self._fresh = torch.full((self.num_samples,), torch.nan, dtype=torch.bfloat16)
                self._fresh[(part >> 16) - self.first] = unpacked(part)

    def commit(self, epoch: int, planned: Int64[Tensor, " visits"] | None = None) -> None:  # noqa: ARG002 - `allowed`
        """Make what ``epoch`` has seen the scores. Raises: DataError - as ``share``."""
        self.share()
        before = self.num_nonfinite
        if self._fresh is not None:
            self._settle(self._fresh, epoch)
        own = torch.tensor([self.num_nonfinite - before], dtype=torch.int64)
        self.num_nonfinite = before + sum(int(count) for count in ranks.all_gather_ints(own))

    def state_dict(self) -> dict[str, Any]:
        """The state of all samples, on every rank. Cost: as ``share``, and a gather of 4 to 6 bytes per sample."""
        self.share()
        has_fresh = torch.tensor([self._fresh is not None], dtype=torch.int64)
        fresh = None
        if any(bool(flag) for flag in ranks.all_gather_ints(has_fresh)):
            own = self._fresh
            if own is None:
                own = torch.full((self.num_samples,), torch.nan, dtype=torch.bfloat16)
            fresh = self._gathered(own)
        return {
            "scores": torch.stack([self._gathered(track) for track in self.tracks]),
            "last_visit": self._gathered(self.last_visit),
            "fresh": fresh,
            "num_nonfinite": self.num_nonfinite,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises: ConfigError - the state does not fit."""
        if state["last_visit"].shape != (self.num_all,):
            raise ConfigError(
                f"the saved state is of {state['last_visit'].numel()} samples, but these are {self.num_all}"
            )
        super().check_state(self._own_part(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over this rank's block of a state that ``check_state`` accepts."""
        super().load_state_dict(self._own_part(state))
        self._log, self._length = None, 0

    def _own_part(self, state: dict[str, Any]) -> dict[str, Any]:
        own = slice(self.first, self.first + self.num_samples)
        fresh = state["fresh"]
        return {
            **state,
            "scores": state["scores"][:, own],
            "last_visit": state["last_visit"][own],
            "fresh": None if fresh is None else fresh[own],
        }

    def _gathered(self, values: Tensor) -> Tensor:
        """The values of all blocks, exactly: their bytes travel as integers."""
        padded = values.new_zeros(self.block)
        padded[: values.numel()] = values
        parts = ranks.all_gather_ints(padded.view(torch.int64))
        return torch.cat([part.view(values.dtype) for part in parts])[: self.num_all]

    def _grow(self, length: int, device: torch.device) -> None:
        """Room for what this rank visits in an epoch, or for half as much again."""
        room = max(length, self.block, self._length * 3 // 2)
        index = torch.empty(room, dtype=torch.int64, device=device)
        values = torch.empty(room, dtype=torch.float32, device=device)
        if self._log is not None:
            index[: self._length] = self._log[0][: self._length]
            values[: self._length] = self._log[1][: self._length]
        self._log = index, values

    def _take_log(self) -> tuple[Int64[Tensor, " seen"], BFloat16[Tensor, " seen"]]:
        """Each sample once, with what was last seen of it, ascending; and an empty log."""
        if self._log is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bfloat16)
        index, values = (part[: self._length].cpu() for part in self._log)
        self._log, self._length = None, 0
        order = index.argsort(stable=True)
        index = index[order]
        is_last = torch.ones(index.numel(), dtype=torch.bool)
        is_last[:-1] = index[1:] != index[:-1]
        return index[is_last], rounded(values[order][is_last])

    def _refuse_strays(self, index: Int64[Tensor, " seen"]) -> None:
        is_stray = (index < 0) | (index >= self.num_all)
        if self.allowed is not None and index.numel():
            place = torch.searchsorted(self.allowed, index).clamp_(max=max(0, self.allowed.numel() - 1))
            is_known = self.allowed[place] == index if self.allowed.numel() else torch.zeros_like(is_stray)
            is_stray |= ~is_known
        strays = torch.cat(ranks.all_gather_ints(index[is_stray][:1]))
        if strays.numel():
            raise DataError(
                f"a loss came for sample {int(strays[0])}, which its rank does not visit in this epoch: the loader "
                "does not follow this sampler, or the index is not the sample's place in the data set. With "
                "shard_scores=True each rank trains the share that its own sampler hands out"
            )
