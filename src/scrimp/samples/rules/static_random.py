"""The weakest baseline: one random part of the data for the whole run."""

from dataclasses import dataclass
from typing import ClassVar

from scrimp.samples.draw import Visits, random_order
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, rounded_count


@dataclass(frozen=True)
class StaticRandom(Rule):
    """Visit the same randomly chosen ``keep`` of the samples in every pruned epoch. Biased: the others never count.

    Use ``anneal=0`` for the baseline of the published tables, which has no full epoch. Args: keep - in (0, 1).
    """

    keep: float
    unbiased: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)

    def num_visits(self, num_samples: int) -> int:
        """``round(keep * num_samples)``, at least 1."""
        return rounded_count(self.keep, num_samples)

    def select(self, view: ScoreView) -> Visits:
        """The run's part of the data."""
        order = random_order(view.num_samples, view.run_generator("static part"))
        return view.take(order[: self.num_visits(view.num_samples)])
