import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrimp.report.axes import is_drawable, linear_axis, log_axis, thin

values = st.floats(min_value=-1e150, max_value=1e150)
positive = st.floats(min_value=1e-149, max_value=1e150)


def check_ticks(axis, max_ticks):
    assert 2 <= len(axis.ticks) <= max_ticks
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert len(axis.labels) == len(axis.ticks)
    assert len(set(axis.labels)) == len(axis.labels)
    assert max(map(len, axis.labels)) <= 16
    positions = [axis.position(tick) for tick in axis.ticks]
    assert all(later - earlier > 0.02 for earlier, later in itertools.pairwise(positions))


@given(ends=st.tuples(values, values).map(sorted))
def test_a_snapped_axis_covers_the_values_with_evenly_spaced_round_ticks(ends):
    low, high = ends
    axis = linear_axis(low, high)
    check_ticks(axis, 6)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low <= low + slack
    assert axis.high >= high - slack
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high)
    step = (axis.high - axis.low) / (len(axis.ticks) - 1)
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-4


@given(ends=st.tuples(values, values).map(sorted))
def test_an_axis_that_is_not_snapped_keeps_its_range_and_has_its_ticks_inside(ends):
    axis = linear_axis(*ends, snap=False)
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in axis.ticks)
    assert 1 <= len(axis.ticks) <= 6


@given(ends=st.tuples(positive, positive).map(sorted))
def test_a_log_axis_covers_the_values(ends):
    low, high = ends
    axis = log_axis(low, high)
    assert 1 <= len(axis.ticks) <= 6
    assert axis.low <= low * (1 + 1e-9)
    assert axis.high >= high * (1 - 1e-9)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 0 <= axis.position(low) <= axis.position(high) <= 1


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((0, 1), ("0", "0.2", "0.4", "0.6", "0.8", "1.0")),
        ((0, 0.0013), ("0", "0.0005", "0.0010", "0.0015")),
        ((0, 2e-5), ("0", "5e-6", "1.0e-5", "1.5e-5", "2.0e-5")),
        ((0, 24), ("0", "5", "10", "15", "20", "25")),
        ((0, 40_000), ("0", "10k", "20k", "30k", "40k")),
        ((0, 1_200_000), ("0", "0.5M", "1.0M", "1.5M")),
        ((-3, 4), ("-4", "-2", "0", "2", "4")),
        ((5.5, 5.5), ("4.5", "5.0", "5.5", "6.0", "6.5")),
        ((0, 0), ("-1.0", "-0.5", "0", "0.5", "1.0")),
    ],
)
def test_labels(ends, labels):
    assert linear_axis(*ends).labels == labels


def test_log_labels():
    assert log_axis(0.013, 2.9).labels == ("0.01", "0.1", "1")
    assert log_axis(1.2, 4).labels == ("1", "2", "5")
    assert log_axis(1e-6, 1e6).labels == ("1e-6", "0.001", "1", "1000", "1e6")


@given(st.lists(st.floats(), max_size=300), st.integers(min_value=3, max_value=40).map(lambda half: 2 * half))
def test_thinning_keeps_ends_extremes_order_and_the_limit(series, limit):
    kept = thin(series, limit)
    drawable = [index for index, value in enumerate(series) if is_drawable(value)]
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert set(kept) <= set(drawable)
    if len(drawable) <= limit:
        assert kept == drawable
    else:
        assert (kept[0], kept[-1]) == (drawable[0], drawable[-1])
        assert min(series[index] for index in kept) == min(series[index] for index in drawable)
        assert max(series[index] for index in kept) == max(series[index] for index in drawable)


def test_a_single_spike_in_a_hundred_thousand_values_stays():
    series = [0.0] * 100_000
    series[71_234] = 5.0
    assert 71_234 in thin(series)
    assert len(thin(series)) <= 400
