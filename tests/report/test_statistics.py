import math

import pytest

from scrimp.report.statistics import interval


def test_intervals_of_known_values():
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    # t of 3 degrees of freedom, standard deviation 1.29099
    assert found.half_width == pytest.approx(3.18 * math.sqrt(5 / 3) / 2)
    assert interval([7.0]).half_width is None
    assert interval([0.0] * 40 + [1.0]).num == 41


def test_two_pairs_that_agree_prove_nothing():
    assert not interval([0.5, 0.5]).is_told_from_zero
    assert interval([0.5, 0.5, 0.5]).is_told_from_zero
    assert not interval([0.5, -0.4, 0.5]).is_told_from_zero
