"""The control: a fresh random part of the data in every epoch, whatever the scores."""

from dataclasses import dataclass
from typing import ClassVar

from scrimp.samples.draw import Visits, equal_units
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, rounded_count


@dataclass(frozen=True)
class DynamicRandom(Rule):
    """Visit exactly ``keep`` of the samples, drawn anew for each epoch, all alike.

    All weights are ``1 / keep``; with ``scale="constant"`` the loss is the plain mean over the batch, as in the
    published tables. Args: keep - in (0, 1).
    """

    keep: float
    unbiased: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)

    def num_visits(self, num_samples: int) -> int:
        """``round(keep * num_samples)``, at least 1."""
        return rounded_count(self.keep, num_samples)

    def select(self, view: ScoreView) -> Visits:
        """An equal draw."""
        return view.draw_units(equal_units(self.num_visits(view.num_samples), view.num_samples))
