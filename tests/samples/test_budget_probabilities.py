import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import pruning as slow

from scrimp.samples.budget_probabilities import fill_budget
from scrimp.samples.draw import ONE


@st.composite
def cells(draw):
    num_cells = draw(st.integers(1, 12))
    shape = draw(st.lists(st.floats(1e-6, 1e3), min_size=num_cells, max_size=num_cells))
    floors = draw(st.lists(st.sampled_from([0.05, 0.2, 0.5, 1.0]), min_size=num_cells, max_size=num_cells))
    counts = draw(st.lists(st.integers(1, 30), min_size=num_cells, max_size=num_cells))
    return shape, floors, counts, draw(st.integers(1, sum(counts)))


def filled(shape, floors, counts, num_visits):
    return fill_budget(np.array(shape), np.array(floors), np.array(counts), num_visits)


@given(cells())
@settings(max_examples=300, deadline=None)
def test_the_sum_is_exact_and_all_are_probabilities(problem):
    _, _, counts, num_visits = problem
    result = filled(*problem)
    total = sum(int(units) * count for units, count in zip(result.units, counts, strict=True)) + result.num_extra
    assert total == num_visits * ONE
    assert int(result.units.min()) >= 1
    assert int(result.units.max()) <= ONE
    assert result.num_extra < counts[result.extra_cell]
    assert result.num_extra == 0 or int(result.units[result.extra_cell]) < ONE


@given(cells())
@settings(max_examples=300, deadline=None)
def test_monotone_in_the_shape(problem):
    shape, floors, _, _ = problem
    result = filled(*problem)
    most = result.units.copy()
    most[result.extra_cell] += result.num_extra > 0
    for i, (shape_i, floor_i) in enumerate(zip(shape, floors, strict=True)):
        for j, (shape_j, floor_j) in enumerate(zip(shape, floors, strict=True)):
            if shape_i < shape_j and floor_i <= floor_j:
                assert most[i] <= result.units[j]


@given(cells())
@settings(max_examples=200, deadline=None)
def test_as_the_slow_twin_where_the_floors_fit(problem):
    shape, floors, counts, num_visits = problem
    if sum(f * n for f, n in zip(floors, counts, strict=True)) > num_visits - 1e-6:
        return
    each = [value for value, count in zip(shape, counts, strict=True) for _ in range(count)]
    each_floor = [value for value, count in zip(floors, counts, strict=True) for _ in range(count)]
    expected = slow.budget_probabilities(each, each_floor, num_visits)
    result = np.repeat(filled(*problem).units, counts) / ONE
    assert result.tolist() == pytest.approx(expected, abs=1e-6)


def test_floors_beyond_the_budget_are_lowered_together():
    result = filled([1.0, 1.0], [1.0, 0.5], [10, 10], 3)
    assert int(result.units[0]) / ONE == pytest.approx(0.2)
    assert int(result.units[1]) / ONE == pytest.approx(0.1)
