"""The highest scores, and a few others at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from scrimp.samples.draw import Visits, shuffled
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, hardest_first, rounded_count


@dataclass(frozen=True)
class EpsilonGreedy(Rule):
    """Visit ``keep`` of the samples: ``1 - epsilon`` of these have the highest scores, the rest is random. Biased.

    Args: keep - in (0, 1). epsilon - in [0, 1].
    Source: Raju et al., Accelerating Deep Learning with Dynamic Data Pruning (arXiv 2111.12621).
    """

    keep: float
    epsilon: float = 0.1
    unbiased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)
        check_fraction("epsilon", self.epsilon, zero=True, one=True)

    def num_visits(self, num_samples: int) -> int:
        """``round(keep * num_samples)``, at least 1."""
        return rounded_count(self.keep, num_samples)

    def select(self, view: ScoreView) -> Visits:
        """The top and a random part of the others."""
        num_visits = self.num_visits(view.num_samples)
        num_top = num_visits - round(self.epsilon * num_visits)
        ranking = hardest_first(view.scores)
        others = shuffled(ranking[num_top:], view.generator("others"))
        return view.take(torch.cat([ranking[:num_top], others[: num_visits - num_top]]))
