"""Static pruning by an early score, such as EL2N."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.samples.draw import Visits
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, hardest_first, rounded_count


@dataclass(frozen=True)
class StaticTop(Rule):
    """Learn scores in the first ``after`` epochs, which are full, and from then on visit the highest ``keep`` only.

    With ``pruner.reduce(losses, scores=(logits.softmax(1) - one_hot_targets).norm(dim=1))`` this is the EL2N baseline.
    Scores are averaged over those epochs and then frozen. Biased: the easy samples never count again.
    Args: keep - in (0, 1). after - epochs, from 1.
    Source: Deep Learning on a Data Diet (arXiv 2107.07075), which averages over networks instead of epochs.
    """

    keep: float
    after: int = 10
    unbiased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)
        if self.after < 1:
            raise ConfigError(f"after is {self.after!r}; at least one epoch is needed to learn scores")

    @property
    def num_full_first(self) -> int:
        """Those that learn the scores."""
        return self.after

    def update(
        self,
        tracks: Float[Tensor, "tracks visited"],
        observed: Float[Tensor, " visited"],
        is_first: Bool[Tensor, " visited"],
        epoch: int,
    ) -> Float[Tensor, "tracks visited"]:
        """The mean over the first epochs, then nothing more."""
        if epoch >= self.after:
            return torch.where(is_first, observed, tracks[0]).unsqueeze(0)
        return torch.where(is_first, observed, tracks[0] + (observed - tracks[0]) / (epoch + 1)).unsqueeze(0)

    def select(self, view: ScoreView) -> Visits:
        """The highest. The epochs before ``after`` are full and not chosen here."""
        return view.take(hardest_first(view.scores)[: rounded_count(self.keep, view.num_samples)])
