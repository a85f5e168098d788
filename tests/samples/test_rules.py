"""One acceptance table for all rules. A rule of your own is one more line of it."""

import pytest
import torch
from tests.reference.rules import RULES

from scrimp import SamplePruner
from scrimp.errors import ConfigError
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
)
from scrimp.testing import check_rule
from scrimp.testing.rule import example_view


@pytest.mark.parametrize("name", RULES)
def test_the_public_suite(name):
    """Unbiased rules over ten thousand plans."""
    check_rule(RULES[name])


@pytest.mark.parametrize("rule", [SeTa(0.5, window=0.5), OrderDP(0.3, 0.3)])
def test_samples_without_a_score_come_into_a_random_pool_first(rule):
    for epoch in range(1, 10):
        visits = rule.select(example_view(rule, epoch, 300, num_unscored=20))
        assert set(range(20)) <= set(visits.indices.tolist())


@pytest.mark.parametrize("name", RULES)
def test_all_weights_are_1_while_annealing_for_every_number_of_epochs(name):
    rule = RULES[name]
    for num_epochs in range(4, 401):
        pruner = SamplePruner(5, num_epochs, rule)
        first_full = (7 * num_epochs) // 8
        epochs = {0, first_full, (first_full + num_epochs) // 2, num_epochs - 1} if rule.needs_scores else {first_full}
        for epoch in sorted(epochs):
            pruner.set_epoch(epoch)
            assert pruner.epoch_weights() is None
            assert sorted(pruner.epoch_indices().tolist()) == [0, 1, 2, 3, 4]
            for index in pruner.epoch_indices().split(2):
                pruner.reduce(index + 1.0, index=index)
        pruner.set_epoch(first_full - 1)
        assert not pruner.schedule.is_full(first_full - 1)


BAD = [
    lambda: MeanThreshold(0.0),
    lambda: MeanThreshold(1.0),
    lambda: Quantiles((0.8, 0.2), (0.5, 0.5)),
    lambda: Quantiles((0.2,), (0.5, 0.5)),
    lambda: Quantiles((0.2,), (0.0,)),
    lambda: Budget(0.0),
    lambda: Budget(1.5),
    lambda: Budget(0.5, max_weight=1.9),
    lambda: Budget(0.5, max_wait=5),
    lambda: Budget(0.5, power=-1),
    lambda: Budget(0.5, momentum=1.0),
    lambda: DynamicRandom(2),
    lambda: StaticRandom(0),
    lambda: StaticTop(0.5, after=0),
    lambda: EpsilonGreedy(0.5, 1.5),
    lambda: UpperConfidenceBound(0.5, width=-1),
    lambda: OrderDP(0, 0.5),
    lambda: SeTa(keep=0),
    lambda: SeTa(window=1.5),
    lambda: SeTa(num_clusters=1),
    lambda: RePB(1.0),
    lambda: SeTa(keep=1, window=1),
    lambda: Quantiles((0.5,), (1.0,)),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_impossible_settings_are_refused(number):
    with pytest.raises(ConfigError):
        BAD[number]()


class Careless(Rule):
    unbiased = False

    def __init__(self, select):
        self.choose = select

    def select(self, view):
        return self.choose(view)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda view: view.draw(torch.ones(3)), r"probabilities of shape \(3,\); each of 6 samples"),
        (lambda view: view.take(view.scores > 0), r"view.take\(mask.nonzero\(\)\[:, 0\]\)"),
        (lambda view: view.take(torch.tensor([1, 1])), "twice"),
        (lambda view: view.take(torch.tensor([6])), "outside of 0 to 5"),
        (lambda view: torch.arange(3), "selected a Tensor"),
    ],
)
def test_careless_rules_are_told(select, message):
    pruner = SamplePruner(6, 4, Careless(select))
    pruner.reduce(torch.rand(6), index=torch.arange(6))
    with pytest.raises(ConfigError, match=message):
        pruner.set_epoch(1) or pruner.epoch_indices()
