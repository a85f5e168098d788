import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from scrimp import SamplePruner
from scrimp.samples import ScoreView, SeTa
from scrimp.samples.rules.seta import cluster_bounds
from scrimp.samples.score_codes import Histogram

LUMPS = torch.tensor([0.1, 0.11, 0.12, 1.0, 1.1, 5.0, 5.1, 5.2, 20.0]).bfloat16()


def view_of(scores, epoch):
    return ScoreView(scores.bfloat16().unsqueeze(0), torch.zeros(len(scores), dtype=torch.int16), epoch, 0)


def test_clusters_of_lumps():
    cluster = torch.bucketize(LUMPS.double(), cluster_bounds(Histogram.of(LUMPS), 4), right=True)
    assert cluster.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]


def test_clusters_are_a_k_means():
    """No worse than scikit-learn's from the same start, and every score nearest to its own centre."""
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp().bfloat16()
    cluster = torch.bucketize(scores.double(), cluster_bounds(Histogram.of(scores), 5), right=True)
    values = scores.double()
    centers = torch.stack([values[cluster == k].mean() for k in range(5)])
    distances = (values.unsqueeze(1) - centers).abs()
    assert torch.equal(distances.argmin(1), cluster)
    start = values.quantile((torch.arange(5, dtype=torch.float64) + 0.5) / 5, interpolation="higher").unsqueeze(1)
    theirs = KMeans(5, init=start.numpy(), n_init=1).fit(values.unsqueeze(1).numpy()).inertia_
    assert float(distances.min(1).values.square().sum()) <= theirs * 1.001


@given(st.lists(st.floats(-50, 50, width=16), min_size=1, max_size=30), st.integers(2, 9))
@settings(deadline=None)
def test_no_cluster_is_empty(scores, num_clusters):
    values = torch.tensor(scores).bfloat16()
    bounds = cluster_bounds(Histogram.of(values), num_clusters)
    assert len(bounds) < min(num_clusters, len(values.unique()) + 1)
    cluster = torch.bucketize(values.double(), bounds, right=True)
    assert cluster.unique().tolist() == list(range(len(bounds) + 1))


def test_the_window_slides_from_easy_to_hard_and_begins_again():
    rule = SeTa(keep=1.0, num_clusters=4, window=0.5)
    seen = [sorted(rule.select(view_of(LUMPS, epoch)).indices.tolist()) for epoch in range(6)]
    assert seen[:3] == [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [5, 6, 7, 8]]
    assert seen[3:] == seen[:3]


def test_a_sample_without_a_score_is_visited_in_any_window():
    scores = torch.cat([LUMPS, torch.tensor([math.nan]).bfloat16()])
    rule = SeTa(keep=1.0, num_clusters=4, window=0.5)
    windows = [rule.select(view_of(scores, epoch)).indices for epoch in range(3)]
    assert all(9 in window for window in windows)
    assert not all(0 in window for window in windows)


def test_partial_annealing_is_the_random_part():
    pruner = SamplePruner(100, 8, SeTa(keep=0.8, window_until=7), anneal=0)
    sizes = []
    for epoch in range(8):
        pruner.set_epoch(epoch)
        index = pruner.epoch_indices()
        sizes.append(len(index))
        assert pruner.epoch_weights() is None
        pruner.reduce((index + 1.0).log(), index=index)
    assert sizes[0] == 100
    assert sizes[7] == 80
    assert max(sizes[1:7]) < 80


@pytest.mark.parametrize("scores", [[2.0] * 12, [math.nan] * 12])
def test_scores_that_do_not_differ(scores):
    for epoch in range(1, 5):
        assert len(SeTa(keep=0.5).select(view_of(torch.tensor(scores), epoch)).indices) == 6
