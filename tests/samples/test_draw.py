import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import pruning as slow

from scrimp.errors import ConfigError
from scrimp.samples.draw import ONE, draw_systematic, equal_units, random_order, shuffled, units_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


probabilities = st.lists(st.integers(1, ONE) | st.just(ONE) | st.just(ONE // 2), min_size=1, max_size=40)


@given(probabilities, st.integers(0, 10**6))
@settings(deadline=None)
def test_as_the_slow_twin(units, seed):
    visits = draw_systematic(torch.tensor(units, dtype=torch.int32), seeded(seed))
    random = seeded(seed)
    order = random_order(len(units), random).tolist()
    start = int(torch.randint(ONE, (1,), generator=random))
    indices, weights = slow.systematic(units, order, start)
    assert visits.indices.tolist() == indices
    assert visits.indices.dtype == torch.int64
    if visits.weights is None:
        assert all(weight == 1 for weight in weights)
    else:
        assert visits.weights.tolist() == torch.tensor(weights).tolist()


@given(probabilities, st.integers(0, 10**6))
@settings(deadline=None)
def test_the_count_is_the_sum_rounded_up_or_down(units, seed):
    count = draw_systematic(torch.tensor(units, dtype=torch.int32), seeded(seed)).indices.numel()
    assert count in {sum(units) // ONE, -(-sum(units) // ONE)}


@given(st.integers(1, 500), st.data())
@settings(deadline=None)
def test_equal_units_sum_exactly(num_samples, data):
    num_visits = data.draw(st.integers(1, num_samples))
    units = equal_units(num_visits, num_samples)
    assert int(units.long().sum()) == num_visits * ONE
    assert int(units.max()) - int(units.min()) <= 1
    assert draw_systematic(units, seeded(num_samples)).indices.numel() == num_visits


def test_the_count_is_right_on_average():
    """Ten samples of probability 0.33: 3 or 4 visits, 3.3 on average; rounding down would give 3."""
    units = units_of(torch.full((10,), 0.33))
    random = seeded()
    counts = [draw_systematic(units, random).indices.numel() for _ in range(4000)]
    assert set(counts) == {3, 4}
    assert abs(sum(counts) / 4000 - 3.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_all_pairs_and_all_orders_occur():
    """Two of four at 1/2: a draw along a fixed order would know two subsets only."""
    units, random = units_of(torch.full((4,), 0.5)), seeded()
    orders = [tuple(draw_systematic(units, random).indices.tolist()) for _ in range(3000)]
    counts = torch.tensor([orders.count(pair) for pair in itertools.permutations(range(4), 2)])
    assert counts.sum() == 3000
    assert float(((counts - 250) ** 2 / 250).sum()) < 40  # 11 degrees of freedom: exceeded once in 30,000 seeds


def test_weights_are_the_inverse_of_what_was_drawn_with():
    units = units_of(torch.tensor([1 / 3, 1.0, 0.7]))
    visits = draw_systematic(units, seeded(1))
    assert visits.weights is not None
    assert torch.equal(visits.weights, (ONE / units[visits.indices].double()).float())


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_probabilities_are_refused(bad):
    with pytest.raises(ConfigError, match="has to lie in"):
        units_of(torch.tensor([0.5, bad]))


def test_tiny_probabilities_stay_positive():
    assert units_of(torch.tensor([1e-20, 1.0])).tolist() == [1, ONE]


def test_shuffled_keeps_what_it_is_given():
    given_indices = torch.tensor([5, 7, 9, 11], dtype=torch.int32)
    result = shuffled(given_indices, seeded(3))
    assert result.dtype == torch.int64
    assert sorted(result.tolist()) == [5, 7, 9, 11]
