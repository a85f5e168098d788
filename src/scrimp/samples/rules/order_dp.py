"""The highest scores of a random pool."""

from dataclasses import dataclass
from typing import ClassVar

from scrimp.samples.draw import Visits, random_order
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, hardest_first, rounded_count, unscored_first


@dataclass(frozen=True)
class OrderDP(Rule):
    """Draw a ``pool`` of the samples at random and visit the ``top`` of it by score, all with weight 1. Biased.

    An epoch has ``pool * top`` of the samples, exactly (0.75 * 0.85, so 64 %, by default). The published method has no
    full epochs at the end: for that, use ``anneal=0``. Samples without a score come into the pool first.
    Args: pool, top - fractions in (0, 1].
    Source: OrderDP (ICLR 2026) and its released code, whose defaults for the fractions these are.
    """

    pool: float = 0.75
    top: float = 0.85
    unbiased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("pool", self.pool, one=True)
        check_fraction("top", self.top, one=True)

    def num_visits(self, num_samples: int) -> int:
        """``top`` of ``pool`` of the samples, each rounded, at least 1."""
        return rounded_count(self.top, rounded_count(self.pool, num_samples))

    def select(self, view: ScoreView) -> Visits:
        """The top of a fresh pool."""
        order = unscored_first(random_order(view.num_samples, view.generator("pool")), view.scores)
        pool = order[: rounded_count(self.pool, view.num_samples)]
        ranking = hardest_first(view.scores.index_select(0, pool))
        return view.take(pool.index_select(0, ranking[: self.num_visits(view.num_samples)]))
