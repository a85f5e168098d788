"""Ten thousand plans from the same scores: unbiased rules meet the full gradient, biased ones are found out."""

import dataclasses
import math

import pytest
import torch
from tests.reference.rules import BIASED, NUM_SAMPLES, RULES, UNBIASED, view_of

from scrimp.samples import MeanThreshold

NUM_PLANS = 10_000


def experiment(rule):
    """How often each sample was visited, and how many standard errors the mean weighted gradient is off, in 3 axes."""
    gradients = torch.randn(NUM_SAMPLES, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 1
    counts, totals = torch.zeros(NUM_SAMPLES), torch.empty(NUM_PLANS, 3, dtype=torch.float64)
    view = view_of(rule, 50)
    for number in range(NUM_PLANS):
        visits = rule.select(dataclasses.replace(view, seed=number))
        weights = 1.0 if visits.weights is None else visits.weights.double().unsqueeze(1)
        totals[number] = (weights * gradients[visits.indices]).sum(0)
        counts[visits.indices] += 1
    error = totals.std(0) / NUM_PLANS**0.5
    return counts, (totals.mean(0) - gradients.sum(0)).abs() / error.clamp(min=1e-9)


def probabilities_of(rule):
    """What the weights of a rule say its probabilities are."""
    found = torch.full((NUM_SAMPLES,), math.nan, dtype=torch.float64)
    for seed in range(200):
        visits = rule.select(dataclasses.replace(view_of(rule, 50), seed=10**6 + seed))
        weights = torch.ones(len(visits.indices)) if visits.weights is None else visits.weights
        found[visits.indices] = 1 / weights.double()
    return found


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_by_monte_carlo(name):
    """The weighted gradient within 4 standard errors of the full one; inclusion counts by chi-square."""
    counts, deviations = experiment(RULES[name])
    assert float(deviations.max()) < 4
    p = probabilities_of(RULES[name])
    assert not p.isnan().any()
    certain = p > 1 - 1e-6
    assert (counts[certain] == NUM_PLANS).all()
    p, counts = p[~certain], counts[~certain]
    chi_square = float(((counts - NUM_PLANS * p) ** 2 / (NUM_PLANS * p * (1 - p))).sum())
    assert chi_square < len(p) + 4 * (2 * len(p)) ** 0.5 + 6  # once in more than ten thousand


@pytest.mark.parametrize("name", BIASED)
def test_biased_by_the_same_monte_carlo(name):
    rule = RULES[name]
    if name == "static random":  # unbiased over runs; within one it always leaves out the same samples
        parts = {
            tuple(sorted(rule.select(dataclasses.replace(view_of(rule, 9), epoch=epoch)).indices.tolist()))
            for epoch in range(9, 40)
        }
        assert len(parts) == 1
        assert len(next(iter(parts))) == NUM_SAMPLES // 2
        return
    _, deviations = experiment(rule)
    assert float(deviations.max()) > 20


def test_a_wrong_weight_is_found_by_the_same_monte_carlo():
    @dataclasses.dataclass(frozen=True)
    class Forgetful(MeanThreshold):
        def select(self, view):
            return dataclasses.replace(super().select(view), weights=None)

    assert float(experiment(Forgetful())[1].max()) > 20
