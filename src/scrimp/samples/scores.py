"""What is remembered of every sample between epochs."""

from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from scrimp._core import ranks
from scrimp.errors import ConfigError, DataError
from scrimp.samples.rules.rule import Rule, ScoreView

_UNVISITED = 0x7FC05C12  # the bits of a NaN that no arithmetic gives
_SCORE_BITS = 16


class ScoreStore:
    """Scores in 16 bits and the epoch of the last visit, of every sample; and what the present epoch has seen so far.

    What a step sees goes into a buffer on the loss's device, by one indexed copy and without a host sync. Once per
    epoch (``commit``) it comes to the CPU, is rounded to 16 bits, exchanged with the other ranks as integers, and
    becomes the scores. So what plans are made of is exactly what a checkpoint holds, to the bit.

    A value that is not finite leaves the score as it was, and is counted.

    Memory: between epochs 2 bytes per track and sample, and 2 for the last visit (4 from 32,768 epochs on); within an
    epoch 4 more on the device and, once states were taken or exchanged, 2 on the CPU.
    """

    def __init__(self, num_samples: int, rule: Rule, num_epochs: int) -> None:
        self.num_samples = num_samples
        self.rule = rule
        self.tracks: BFloat16[Tensor, "tracks samples"] = torch.full(
            (rule.num_tracks, num_samples), torch.nan, dtype=torch.bfloat16
        )
        epoch_dtype = torch.int16 if num_epochs <= torch.iinfo(torch.int16).max else torch.int32
        self.last_visit = torch.full((num_samples,), -1, dtype=epoch_dtype)
        self.num_nonfinite = 0
        # of the present epoch; +inf in `_fresh` stands for a visit without a finite value
        self._fresh: BFloat16[Tensor, " samples"] | None = None
        self._buffer: Float[Tensor, " samples"] | None = None

    def view(self, epoch: int, seed: int) -> ScoreView:
        """What a rule is shown."""
        return ScoreView(self.tracks, self.last_visit, epoch, seed)

    def observe(self, index: Int64[Tensor, " batch"], scores: Float[Tensor, " batch"]) -> None:
        """Note the scores of a batch; both on one device. Cost: one indexed copy; no host sync."""
        if self._buffer is None:
            bits = torch.full((self.num_samples,), _UNVISITED, dtype=torch.int32, device=scores.device)
            self._buffer = bits.view(torch.float32)
        elif self._buffer.device != scores.device:
            self._buffer = self._buffer.to(scores.device)
        self._buffer.index_copy_(0, index, scores if scores.dtype is torch.float32 else scores.float())

    @property
    def has_unshared(self) -> bool:
        """Whether this rank has seen samples since it last exchanged them."""
        return self._buffer is not None

    def fresh(self) -> BFloat16[Tensor, " samples"] | None:
        """What the present epoch has seen, as stored: NaN for not visited, +inf for a value that was not finite.

        Cost: one host sync if there is anything new.
        """
        self._drain_buffer()
        return self._fresh

    def count_nonfinite(self) -> int:
        """Values so far that were not finite, the present epoch's included; on several ranks as far as they are shared.

        Cost: one host sync if there is anything new.
        """
        fresh = self.fresh() if ranks.world_size() == 1 else self._fresh
        return self.num_nonfinite + (0 if fresh is None else int(fresh.isinf().sum()))

    def visited(self) -> Tensor | None:
        """A mask of the samples that the present epoch has visited so far; ``None`` if there is none."""
        fresh = self.fresh()
        return None if fresh is None else ~fresh.isnan()

    def share(self) -> None:
        """Exchange with all ranks what each has seen since the last time. Every rank has to call this.

        Cost: one gather of an int64 per visit (indices and scores as whole numbers); one host sync.
        """
        if ranks.world_size() == 1:
            return
        own = self._take_buffer()
        seen = torch.empty(0, dtype=torch.int64) if own is None else packed(*own)
        for part in ranks.all_gather_ints(seen):
            if part.numel():
                self._note(part >> _SCORE_BITS, unpacked(part))

    def commit(self, epoch: int, planned: Int64[Tensor, " visits"] | None = None) -> None:
        """Make what ``epoch`` has seen the scores, alike on all ranks. Every rank has to call this.

        Args: planned - the samples that the epoch visits; ``None`` for all.
        Raises: DataError - another sample was seen; its loss had no defined weight.
        Cost: as ``share``, then a few passes over the visited samples.
        """
        self.share()
        fresh = self.fresh()
        if fresh is None:
            return
        if planned is not None:
            _refuse_strays(fresh, planned, epoch)
        self._settle(fresh, epoch)

    def _settle(self, fresh: BFloat16[Tensor, " samples"], epoch: int) -> None:
        """What was seen becomes the scores."""
        self._fresh = None
        visited = torch.from_numpy(np.flatnonzero(~fresh.isnan().numpy()))
        self.last_visit[visited] = epoch
        observed = fresh.index_select(0, visited).float()
        is_finite = observed.isfinite()
        num_nonfinite = observed.numel() - int(is_finite.sum())
        if num_nonfinite:
            visited, observed = visited[is_finite], observed[is_finite]
        before = self.tracks.index_select(1, visited).float()
        self.tracks[:, visited] = self.rule.update(before, observed, before[0].isnan(), epoch).to(torch.bfloat16)
        self.num_nonfinite += num_nonfinite

    def state_dict(self) -> dict[str, Any]:
        """Scores, last visits, and what the present epoch has seen.

        Raises: ConfigError - the ranks have not shared that.
        """
        if ranks.world_size() > 1 and self.has_unshared:
            raise ConfigError(
                "this rank has seen losses that the others do not know; call sync_scores() on every rank before "
                "state_dict(), as it exchanges them"
            )
        fresh = self.fresh()
        return {
            "scores": self.tracks.clone(),
            "last_visit": self.last_visit.clone(),
            "fresh": None if fresh is None else fresh.clone(),
            "num_nonfinite": self.num_nonfinite,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises: ConfigError - the state does not fit."""
        for name, tensor in (("scores", self.tracks), ("last_visit", self.last_visit)):
            stored = state[name]
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise ConfigError(
                    f"the saved {name} are {stored.dtype} {tuple(stored.shape)}, "
                    f"but these are {tensor.dtype} {tuple(tensor.shape)}"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that ``check_state`` accepts."""
        self.tracks = state["scores"].to(device="cpu", copy=True)
        self.last_visit = state["last_visit"].to(device="cpu", copy=True)
        self._fresh = None if state["fresh"] is None else state["fresh"].to(device="cpu", copy=True)
        self.num_nonfinite = state["num_nonfinite"]
        self._buffer = None

    def _take_buffer(self) -> tuple[Int64[Tensor, " visited"], BFloat16[Tensor, " visited"]] | None:
        """What was seen since the last time, and a clean buffer."""
        if self._buffer is None:
            return None
        seen, self._buffer = self._buffer.cpu(), None
        index = torch.from_numpy(np.flatnonzero(seen.view(torch.int32).numpy() != _UNVISITED))
        values = seen.index_select(0, index)
        return index, rounded(values)

    def _drain_buffer(self) -> None:
        if (seen := self._take_buffer()) is not None:
            self._note(*seen)

    def _note(self, index: Int64[Tensor, " visited"], values: BFloat16[Tensor, " visited"]) -> None:
        if self._fresh is None:
            self._fresh = torch.full((self.num_samples,), torch.nan, dtype=torch.bfloat16)
        if index.numel() and int(index.max()) >= self.num_samples:
            raise DataError(f"a rank has seen sample {int(index.max())} of only {self.num_samples}")
        self._fresh[index] = values


def rounded(values: Float[Tensor, " visited"]) -> BFloat16[Tensor, " visited"]:
    """To 16 bits; +inf for what is not finite, or beyond the range."""
    short = values.to(torch.bfloat16)
    return torch.where(short.isfinite(), short, torch.inf)


def packed(index: Int64[Tensor, " visited"], values: BFloat16[Tensor, " visited"]) -> Int64[Tensor, " visited"]:
    """Index and score in one integer each."""
    return (index << _SCORE_BITS) | (values.view(torch.int16).to(torch.int64) & 0xFFFF)


def unpacked(numbers: Int64[Tensor, " visited"]) -> BFloat16[Tensor, " visited"]:
    """The scores; the indices are ``numbers >> 16``."""
    bits = numbers & 0xFFFF
    return (bits - ((bits >> (_SCORE_BITS - 1)) << _SCORE_BITS)).to(torch.int16).view(torch.bfloat16)


def _refuse_strays(fresh: Tensor, planned: Tensor, epoch: int) -> None:
    strays = ~fresh.isnan()
    strays[planned] = False
    if bool(strays.any()):
        raise DataError(
            f"a loss came for sample {int(strays.nonzero()[0])}, which epoch {epoch} does not visit: the loader does "
            "not follow this sampler, or the index is not the sample's place in the data set"
        )
