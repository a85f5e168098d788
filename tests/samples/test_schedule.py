from fractions import Fraction

import pytest
from tests.reference import pruning as slow

from scrimp.errors import ConfigError
from scrimp.samples.schedule import Schedule, steps_of


@pytest.mark.parametrize("anneal", [Fraction(1, 8), Fraction(3, 20), Fraction(7, 40)])
def test_full_epochs_for_every_number_of_epochs(anneal):
    for num_epochs in range(4, 401):
        schedule = Schedule.of(num_epochs, float(anneal), 1)
        assert [schedule.is_full(e) for e in range(num_epochs)] == slow.full_epochs(num_epochs, anneal, 1)
        assert schedule.num_begun == num_epochs
        assert schedule.num_pruned == slow.full_epochs(num_epochs, anneal, 1).count(False)
        assert schedule.is_full(num_epochs + 3)


def test_the_default_of_the_paper():
    schedule = Schedule.of(200, 0.125, 1)
    assert [e for e in range(200) if schedule.is_full(e)] == [0, *range(175, 200)]


def test_no_annealing_prunes_to_the_end():
    schedule = Schedule.of(9.5, 0.0, 0)
    assert not any(schedule.is_full(epoch) for epoch in range(10))


@pytest.mark.parametrize(("num_epochs", "first"), [(1, 1), (2, 1), (0.5, 1), (8, 7)])
def test_too_few_epochs_are_refused(num_epochs, first):
    with pytest.raises(ConfigError, match="nothing could be pruned"):
        Schedule.of(num_epochs, 0.125, first)


@pytest.mark.parametrize(
    "values",
    [(0, 0.1, 1), (-3, 0.1, 1), (float("nan"), 0.1, 1), (True, 0.1, 1), (9, 1.0, 1), (9, -0.1, 1), (9, 0.1, -1)],
)
def test_impossible_values_are_refused(values):
    with pytest.raises(ConfigError):
        Schedule.of(*values)


def test_steps_add_up():
    schedule = Schedule.of(8, 0.125, 1)  # epochs 0 and 7 are full
    assert schedule.total_steps(10, 6) == 2 * 10 + 6 * 6
    assert Schedule.of(7.5, 0.125, 1).total_steps(10, 6) == 10 + 5 * 6 + 10 + 5
    assert Schedule.of(7.01, 0.125, 1).total_steps(10, 6) == 10 + 5 * 6 + 10 + 1


@pytest.mark.parametrize(
    ("visits", "size", "world", "drop_last", "steps"),
    [(10, 5, 1, False, 2), (11, 5, 1, False, 3), (11, 5, 1, True, 2), (11, 5, 2, False, 1), (11, 2, 2, False, 3)],
)
def test_steps_of_an_epoch(visits, size, world, drop_last, steps):
    assert steps_of(visits, size, world, drop_last=drop_last) == steps
