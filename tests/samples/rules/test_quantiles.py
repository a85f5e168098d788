import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp.samples import Quantiles, ScoreView


def view_of(scores, seed=0):
    return ScoreView(torch.tensor([scores], dtype=torch.bfloat16), torch.zeros(len(scores), dtype=torch.int16), 3, seed)


@given(
    st.lists(st.floats(-50, 50, width=16), min_size=1, max_size=60),
    st.sampled_from([((0.2, 0.85), (0.25, 0.5)), ((0.5,), (0.3,)), ((0.1, 0.3, 0.7), (0.2, 1.0, 0.6))]),
)
@settings(deadline=None)
def test_every_band_has_its_weight(values, bands):
    levels, keep = bands
    view = view_of([*values, math.nan])
    visits = Quantiles(levels, keep).select(view)
    ordered = sorted(view.scores[:-1].tolist())
    thresholds = [ordered[math.ceil(level * len(values) - 1e-9) - 1] for level in levels]
    weights = torch.ones(len(visits.indices)) if visits.weights is None else visits.weights
    for index, weight in zip(visits.indices.tolist(), weights.tolist(), strict=True):
        score = float(view.scores[index])
        expected = next((k for t, k in zip(thresholds, keep, strict=True) if score < t), 1.0)
        assert weight == pytest.approx(1 / expected)


def test_the_defaults_visit_a_little_more_than_half():
    visits = Quantiles().select(view_of(torch.linspace(1, 2, 4000).tolist()))
    assert len(visits.indices) == pytest.approx(4000 * 0.525, abs=30)
