"""The rules that every test over all rules goes through, and scores to show them."""

import dataclasses
from typing import ClassVar

import torch

from scrimp.samples import (
    Budget,
    DynamicRandom,
    EpsilonGreedy,
    MeanThreshold,
    OrderDP,
    Quantiles,
    RePB,
    Rule,
    SeTa,
    StaticRandom,
    StaticTop,
    UpperConfidenceBound,
    median,
)


@dataclasses.dataclass(frozen=True)
class HalfOfTheEasy(Rule):
    """The example in Rule's documentation."""

    unbiased: ClassVar[bool] = True

    def select(self, view):
        easy = view.scores < view.scores.nanmedian()
        return view.draw(torch.where(easy, 0.5, 1.0))


RULES = {
    "mean": MeanThreshold(),
    "mean, 0.7": MeanThreshold(0.7),
    "median": MeanThreshold(0.3, center=median),
    "quantiles": Quantiles(),
    "budget": Budget(0.6),
    "budget, steep": Budget(0.3, max_weight=8, power=2, momentum=0.5),
    "dynamic random": DynamicRandom(0.45),
    "third party": HalfOfTheEasy(),
    "static random": StaticRandom(0.5),
    "static top": StaticTop(0.5, after=1),
    "epsilon-greedy": EpsilonGreedy(0.5, 0.2),
    "upper confidence bound": UpperConfidenceBound(0.5),
    "OrderDP": OrderDP(),
    "SeTa": SeTa(num_clusters=4),
    "RePB": RePB(),
}
UNBIASED = [name for name, rule in RULES.items() if rule.unbiased]
BIASED = [name for name, rule in RULES.items() if not rule.unbiased]
