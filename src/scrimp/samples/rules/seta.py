"""A window over clusters of the losses, which slides from the easy ones to the hard ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.samples.draw import Visits, random_order
from scrimp.samples.rules.rule import Rule, ScoreView, check_fraction, rounded_count, unscored_first
from scrimp.samples.score_codes import Histogram

_MAX_ROUNDS = 100


@dataclass(frozen=True)
class SeTa(Rule):
    """Draw ``keep`` of the samples at random, cluster them by score, visit a window of neighbouring clusters. Biased.

    The window covers ``window`` of the clusters and moves on by one cluster per epoch, from the easy ones to the hard
    ones and then from the beginning. All weights are 1. From epoch ``window_until`` on there is only the random part:
    that is the published method's partial annealing, for which the pruner has to be made with ``anneal=0``. Samples
    without a score come into the random part first and are visited in any window.

    Args: keep, window - in (0, 1]. num_clusters - from 2. window_until - an epoch, or ``None`` for a window to the end.
    Source: SeTa (CVPR 2025) and its released code, whose script for CIFAR-100 has these defaults. Departs from it:
        clusters are found by Lloyd's iteration on the counts of 16-bit scores, from the quantiles, and not by k-means++
        on every sample; clusters that stay empty do not count; the first epoch is full.
    """

    keep: float = 0.9
    num_clusters: int = 5
    window: float = 0.9
    window_until: int | None = None
    unbiased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep, one=True)
        check_fraction("window", self.window, one=True)
        if self.num_clusters < 2:
            raise ConfigError(f"num_clusters is {self.num_clusters!r}; a window takes at least two")
        if self.keep == 1 and round(self.window * self.num_clusters) >= self.num_clusters:
            raise ConfigError(
                f"keep=1 and a window of {self.window} of {self.num_clusters} clusters, which is all of them: nothing "
                "would ever be left out; lower keep or window"
            )

    def select(self, view: ScoreView) -> Visits:
        """The clusters of the window, of a fresh random part."""
        order = unscored_first(random_order(view.num_samples, view.generator("pool")), view.scores)
        pool = order[: rounded_count(self.keep, view.num_samples)]
        if self.window_until is not None and view.epoch >= self.window_until:
            return view.take(pool)
        scores = view.tracks[0].index_select(0, pool)
        bounds = cluster_bounds(Histogram.of(scores), self.num_clusters)
        cluster = torch.bucketize(scores.double(), bounds, right=True)
        num_clusters = len(bounds) + 1
        size = max(1, round(self.window * num_clusters))
        first = view.epoch % (num_clusters - size + 1)
        return view.take(pool[((cluster >= first) & (cluster < first + size)) | scores.isnan()])


def cluster_bounds(histogram: Histogram, num_clusters: int) -> Float64[Tensor, " bounds"]:
    """Where the clusters of a one-dimensional k-means part; rising, each score at a bound belongs above it.

    At most ``num_clusters - 1`` bounds: none of the clusters is empty. Cost: a few passes over the distinct scores.
    """
    values, counts = histogram.values, histogram.counts.double()
    if not values.numel():
        return values
    mass, total = _sums(counts), _sums(counts * values)
    levels = (torch.arange(num_clusters, dtype=torch.float64) + 0.5) / num_clusters
    centers: Tensor = values[torch.searchsorted(mass[1:], levels * mass[-1])].unique()
    for _ in range(_MAX_ROUNDS):
        bounds = (centers[1:] + centers[:-1]) / 2
        inner = torch.searchsorted(values, bounds)
        cuts = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), values.numel())])
        sizes = mass[cuts].diff()
        moved = (total[cuts].diff() / sizes)[sizes > 0]
        if torch.equal(moved, centers):
            break
        centers = moved
    return (centers[1:] + centers[:-1]) / 2


def _sums(values: Float64[Tensor, " values"]) -> Float64[Tensor, " sums"]:
    """Of the first 0, 1, 2, ... values."""
    sums: Tensor = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return sums
