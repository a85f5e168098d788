import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scrimp.train.data.holdout import HoldOut


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.floats(0.01, 0.99), st.integers(0, 10))
def test_each_class_gives_its_fraction_and_keeps_some(labels, fraction, seed):
    labels = np.array(labels, dtype=np.int64)
    chosen = HoldOut(fraction, seed).choose(labels)
    for label in set(labels.tolist()):
        size = int((labels == label).sum())
        held_out = int(chosen[labels == label].sum())
        assert held_out == max(min(max(round(size * fraction), 1), size - 1), 0)
    assert np.array_equal(chosen, HoldOut(fraction, seed).choose(labels))


KNOWN_ROWS = [7, 10, 14, 15]


def test_the_choice_is_known_and_depends_on_the_seed():
    labels = np.zeros(20, dtype=np.int64)
    assert np.flatnonzero(HoldOut(0.2, 0).choose(labels)).tolist() == KNOWN_ROWS
    assert np.flatnonzero(HoldOut(0.2, 1).choose(labels)).tolist() != KNOWN_ROWS


def test_every_row_is_as_likely_as_another():
    labels = np.zeros(10, dtype=np.int64)
    counts = sum(HoldOut(0.3, seed).choose(labels).astype(int) for seed in range(2000))
    assert np.abs(counts - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)
