import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import pruning as slow

from scrimp.samples import MeanThreshold, ScoreView, mean, median, winsorized_mean


def view_of(scores, epoch=3, seed=0):
    return ScoreView(
        torch.tensor([scores], dtype=torch.bfloat16), torch.zeros(len(scores), dtype=torch.int16), epoch, seed
    )


scores = st.lists(st.floats(0, 100, width=16) | st.just(math.nan), min_size=1, max_size=40).filter(
    lambda values: not all(map(math.isnan, values))
)


@given(scores, st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 1000))
@settings(deadline=None)
def test_as_the_slow_twin(values, prune_ratio, seed):
    view = view_of(values, seed=seed)
    expected = slow.infobatch_probabilities(view.scores.tolist(), prune_ratio)
    visits = MeanThreshold(prune_ratio).select(view)
    certain = {i for i, p in enumerate(expected) if p == 1}
    assert certain <= set(visits.indices.tolist())
    weights = torch.ones(len(visits.indices)) if visits.weights is None else visits.weights
    assert torch.equal(weights, torch.tensor([1 / expected[i] for i in visits.indices.tolist()]))
    assert sum(expected) - 1 < len(visits.indices) < sum(expected) + 1


@given(st.floats(1e-30, 1e30), st.integers(1, 300))
@settings(deadline=None)
def test_equal_scores_are_not_below_their_mean(value, num_samples):
    visits = MeanThreshold().select(view_of([value] * num_samples))
    assert len(visits.indices) == num_samples


def test_a_quarter_is_left_out_of_a_symmetric_distribution():
    visits = MeanThreshold().select(view_of(torch.linspace(1, 2, 4000).tolist()))
    assert len(visits.indices) == pytest.approx(3000, abs=20)  # ties at the resolution of 16 bits
    assert float(visits.weights.sum()) == pytest.approx(4000, abs=2)


def test_nothing_is_left_out_before_there_are_scores():
    assert len(MeanThreshold().select(view_of([math.nan] * 9)).indices) == 9


def test_centers():
    tensor = torch.tensor([1.0] * 10 + [2.0] * 9 + [1e6], dtype=torch.bfloat16)
    assert mean(tensor) > 1e4
    assert median(tensor) == 1
    assert winsorized_mean(tensor) == pytest.approx((10 * 1 + 9 * 2 + 2) / 20)
    nothing = torch.full((2,), math.nan, dtype=torch.bfloat16)
    assert all(math.isnan(center(nothing)) for center in (mean, median, winsorized_mean))


def test_one_outlier_does_not_make_everything_easy_with_a_robust_center():
    values = [*torch.linspace(1, 2, 99).tolist(), 1e9]
    assert len(MeanThreshold(0.5).select(view_of(values)).indices) in {50, 51}
    assert len(MeanThreshold(0.5, center=winsorized_mean).select(view_of(values)).indices) in range(73, 78)
