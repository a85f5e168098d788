"""What a rule is, and what it is shown."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import BFloat16, Bool, Float, Int
from torch import Tensor

from scrimp._core.rng import generator
from scrimp.errors import ConfigError
from scrimp.samples.draw import Visits, draw_systematic, shuffled, units_of


@dataclass(frozen=True)
class ScoreView:
    """What is known of the samples when an epoch is planned. Rules read it and change nothing."""

    tracks: BFloat16[Tensor, "tracks samples"]
    """What the rule's ``update`` keeps per sample; NaN for a sample that has no score yet."""
    last_visit: Int[Tensor, " samples"]
    """The epoch in which each sample was last visited; -1 for never."""
    epoch: int
    seed: int

    @property
    def num_samples(self) -> int:
        """Samples in the data set."""
        return self.last_visit.numel()

    @property
    def scores(self) -> Float[Tensor, " samples"]:
        """The first track in float32; NaN for a sample that has no score yet."""
        return self.tracks[0].float()

    def generator(self, *stream: int | str) -> torch.Generator:
        """A random stream of this run, epoch and name; ask for one name only once."""
        return generator(self.seed, "samples", self.epoch, *stream)

    def run_generator(self, *stream: int | str) -> torch.Generator:
        """A random stream of this run and name, the same in every epoch."""
        return generator(self.seed, "samples", "run", *stream)

    def draw(self, probabilities: Float[Tensor, " samples"]) -> Visits:
        """Visit each sample with its probability, weighted by the inverse: unbiased, whatever the probabilities.

        Raises: ConfigError - not one probability per sample, or one that is not in (0, 1].
        """
        if probabilities.shape != (self.num_samples,):
            raise ConfigError(
                f"a rule gave probabilities of shape {tuple(probabilities.shape)}; each of {self.num_samples} samples "
                "needs one"
            )
        return self.draw_units(units_of(probabilities))

    def draw_units(self, units: Int[Tensor, " samples"]) -> Visits:
        """As ``draw``, with probabilities in exact units of ``scrimp.samples.draw.ONE``."""
        return draw_systematic(units, self.generator("draw"))

    def take(self, indices: Int[Tensor, " visits"]) -> Visits:
        """Visit exactly these samples, in random order, all with weight 1: biased towards them.

        Raises: ConfigError - no integers (a mask, for example), an index outside the data set, or one given twice.
        """
        if indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1:
            raise ConfigError(
                f"a rule took samples by {indices.dtype} of shape {tuple(indices.shape)}; take goes by indices: for a "
                "mask, view.take(mask.nonzero()[:, 0])"
            )
        if indices.numel():
            if int(indices.min()) < 0 or int(indices.max()) >= self.num_samples:
                raise ConfigError(f"a rule took samples outside of 0 to {self.num_samples - 1}")
            is_taken = torch.zeros(self.num_samples, dtype=torch.bool)
            is_taken[indices.long()] = True
            if int(is_taken.sum()) < indices.numel():
                raise ConfigError("a rule took a sample twice in one epoch; every index may occur once")
        return Visits(shuffled(indices, self.generator("order")))


class Rule(ABC):
    """Which samples an epoch visits, as a function of their scores. A rule is a small frozen dataclass.

    A rule of your own derives from this class, says whether it is unbiased, and has one method::

        @dataclass(frozen=True)
        class HalfOfTheEasy(Rule):
            unbiased: ClassVar[bool] = True

            def select(self, view):
                easy = view.scores < view.scores.nanmedian()
                return view.draw(torch.where(easy, 0.5, 1.0))

    It has to be a pure function of the view: all ranks plan for themselves. A sample without a score (NaN) should be
    visited. ``scrimp.testing.check_rule`` is what it should pass.
    """

    unbiased: ClassVar[bool]
    """Whether the weighted loss has the expectation of the full data set's, given the scores."""
    needs_scores: ClassVar[bool] = True
    """Whether it looks at scores, so that the first epoch has to visit every sample to learn them."""
    num_tracks: ClassVar[int] = 1
    """Numbers kept per sample, 2 bytes each. The first one is the score."""

    @property
    def num_full_first(self) -> int:
        """Epochs at the beginning that have to visit every sample, to learn the scores."""
        return 1 if self.needs_scores else 0

    @abstractmethod
    def select(self, view: ScoreView) -> Visits:
        """The visits of ``view.epoch``, with weights. Only called for epochs that may be pruned."""

    def num_visits(self, num_samples: int) -> int | None:
        """How many visits a pruned epoch makes, if that is known beforehand."""
        return None

    def batch_scores(self, losses: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """What is noted of a batch, given its losses (or the ``scores`` given to ``reduce``), without gradient.

        The default notes them as they are. Called in every step: it must not wait for the device.
        """
        return losses

    def update(
        self,
        tracks: Float[Tensor, "tracks visited"],
        observed: Float[Tensor, " visited"],
        is_first: Bool[Tensor, " visited"],
        epoch: int,
    ) -> Float[Tensor, "tracks visited"]:
        """What is kept of the samples that were visited in ``epoch`` with the finite scores ``observed``.

        Args: tracks - what was kept before, NaN where ``is_first``. The default keeps the last observation.
        """
        return observed.unsqueeze(0)


def smoothed(
    before: Float[Tensor, " visited"],
    observed: Float[Tensor, " visited"],
    is_first: Bool[Tensor, " visited"],
    momentum: float,
) -> Float[Tensor, " visited"]:
    """``momentum * before + (1 - momentum) * observed``, and the first observation as it is."""
    return torch.where(is_first, observed, torch.lerp(observed, before, momentum))


def check_fraction(name: str, value: float, *, zero: bool = False, one: bool = False) -> None:
    """Refuse what is not in (0, 1); ``zero`` and ``one`` open the ends. Raises: ConfigError."""
    fits = isinstance(value, int | float) and (0 < value < 1 or (zero and value == 0) or (one and value == 1))
    if not fits:
        raise ConfigError(f"{name} is {value!r}; it has to lie in {'[' if zero else '('}0, 1{']' if one else ')'}")


def rounded_count(keep: float, num_samples: int) -> int:
    """``keep`` of the samples as a whole number, at least 1."""
    return max(1, round(keep * num_samples))


def unscored_first(order: Int[Tensor, " samples"], scores: Float[Tensor, " samples"]) -> Int[Tensor, " samples"]:
    """``order`` with the samples that have no score before all others, so that a pool from its beginning has them."""
    is_unscored = scores.index_select(0, order).isnan()
    return torch.cat([order[is_unscored], order[~is_unscored]]) if bool(is_unscored.any()) else order


def hardest_first(scores: Float[Tensor, " samples"]) -> Int[Tensor, " samples"]:
    """Samples by falling score, those without a score before all others; ties by index."""
    return scores.nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
