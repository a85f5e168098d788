"""Upper confidence bounds on the scores."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.samples.draw import Visits
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, hardest_first, rounded_count


@dataclass(frozen=True)
class UpperConfidenceBound(Rule):
    """Visit the ``keep`` of the samples with the highest running mean plus ``width`` running deviations. Biased.

    Args: keep - in (0, 1). width - from 0. momentum - of the running mean and variance of a sample's scores.
    Source: Raju et al. (arXiv 2111.12621), where the bound is the running mean plus c times the running variance; the
        deviation used here has the unit of the score.
    """

    keep: float
    width: float = 1.0
    momentum: float = 0.8
    unbiased: ClassVar[bool] = False
    num_tracks: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)
        check_fraction("momentum", self.momentum, zero=True)
        if not self.width >= 0:
            raise ConfigError(f"width is {self.width!r}; it has to be a number from 0")

    def num_visits(self, num_samples: int) -> int:
        """``round(keep * num_samples)``, at least 1."""
        return rounded_count(self.keep, num_samples)

    def update(
        self,
        tracks: Float[Tensor, "tracks visited"],
        observed: Float[Tensor, " visited"],
        is_first: Bool[Tensor, " visited"],
        epoch: int,
    ) -> Float[Tensor, "tracks visited"]:
        """Running mean and variance; the variance of a first observation is 0."""
        mean = torch.where(is_first, observed, tracks[0])
        variance = torch.where(is_first, 0.0, tracks[1])
        step = (1 - self.momentum) * (observed - mean)
        return torch.stack([mean + step, self.momentum * (variance + step * (observed - mean))])

    def select(self, view: ScoreView) -> Visits:
        """The highest bounds."""
        mean, variance = view.tracks.float()
        bound = mean + self.width * variance.sqrt()
        return view.take(hardest_first(bound)[: self.num_visits(view.num_samples)])
