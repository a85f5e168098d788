"""The suite for rules finds rules that are wrong, and says how."""

import dataclasses
import itertools

import pytest
import torch

from scrimp.samples import Rule, Visits
from scrimp.samples.rules.rule import hardest_first
from scrimp.testing import check_rule


class Wrong(Rule):
    """Half of the easy samples, and one mistake."""

    unbiased = True

    def __repr__(self):
        return "Wrong()"

    def select(self, view):
        return view.draw(torch.where(view.scores < view.scores.nanmedian(), 0.5, 1.0))


class Impure(Wrong):
    numbers = itertools.count()

    def select(self, view):
        return dataclasses.replace(view, seed=next(self.numbers)).draw(torch.full((view.num_samples,), 0.5))


class GlobalDice(Wrong):
    def select(self, view):
        torch.rand(1)
        return super().select(view)


class Scribbler(Wrong):
    def select(self, view):
        visits = super().select(view)
        view.tracks[0, 7] = 0
        return visits


class Unfaithful(Wrong):
    def num_visits(self, num_samples):
        return num_samples // 2


class Unscored(Wrong):
    unbiased = False

    def select(self, view):
        return view.take((view.scores > 0.5).nonzero()[:, 0])


class Fragile(Wrong):
    def select(self, view):
        span = view.scores.nan_to_num().max() - view.scores.nan_to_num().min()
        return view.draw(0.1 + 0.9 * (view.scores.nan_to_num(nan=float("inf")) / span).clamp(0, 1))


class Weightless(Wrong):
    def select(self, view):
        return dataclasses.replace(super().select(view), weights=None)


class Skewed(Wrong):
    def select(self, view):
        visits = super().select(view)
        weights = torch.ones(len(visits.indices)) if visits.weights is None else visits.weights
        return dataclasses.replace(visits, weights=weights * 1.05)


class Greedy(Wrong):
    """Drawn with other probabilities than the weights say, yet with the right total."""

    def select(self, view):
        order = hardest_first(view.scores)
        half = order[: view.num_samples // 2]
        return Visits(half.long(), torch.full((len(half),), 2.0))


class Doubled(Wrong):
    def select(self, view):
        visits = view.take(torch.arange(view.num_samples))
        return Visits(visits.indices[[0, 0]])


class Mask(Wrong):
    def select(self, view):
        return view.scores > 0.5


class WrongUpdate(Wrong):
    num_tracks = 2

    def update(self, tracks, observed, is_first, epoch):
        return torch.stack([observed] * (2 if observed.numel() > 8 else 3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Impure(), "made a second time from the same view"),
        (GlobalDice(), "global random generators"),
        (Scribbler(), "tracks of the view, after Wrong.. saw it,"),
        (Unfaithful(), "but num_visits says 150"),
        (Unscored(), "leaves out sample 0, which has no score"),
        (Fragile(), "raised with all 0"),
        (Weightless(), "standard errors off the full one"),
        (Skewed(), "standard errors off the full one"),
        (Greedy(), r"leaves out sample|standard errors"),
        (Doubled(), "visits a sample twice"),
        (Mask(), "selected a Tensor"),
        (WrongUpdate(), r"update returned shape \(3, 8\) instead of \(2, 8\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Rule) else "",
)
def test_a_wrong_rule_is_found(rule, message):
    with pytest.raises(AssertionError, match=message):
        check_rule(rule, num_plans=2000)


def test_a_right_rule_passes():
    check_rule(Wrong())
