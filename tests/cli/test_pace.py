"""How long the rest of a comparison takes, against sums done by hand."""

import pytest

from scrimp.cli.pace import Pace, about
from scrimp.train.comparison import PlannedRun
from scrimp.train.recipes import digits


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def runs(tmp_path):
    """Two seeds of plain (10 epochs) and shortened (6 epochs), none of which has begun."""
    lengths = {"plain": 10.0, "shortened": 6.0}
    return [
        PlannedRun(name, digits().replace(num_epochs=length, seed=seed), tmp_path / f"{name}-seed{seed}")
        for seed in (0, 1)
        for name, length in lengths.items()
    ]


def test_a_variant_takes_what_it_took_and_others_the_mean(runs, clock):
    at = dict.fromkeys((run.run_dir for run in runs), 0.0)
    pace = Pace(runs, 1, lambda run: at[run.run_dir])
    assert (pace.num_ended, pace.fraction_done(), pace.seconds_left()) == (0, 0.0, None)
    plain, shortened, *_ = runs
    pace.on_start(plain)
    for epoch in (0.0, 1.0):  # a process takes its time to start
        clock.now += 10
        at[plain.run_dir] = epoch
        pace.on_wait([plain])
        assert pace.seconds_left() is None
    clock.now += 8
    at[plain.run_dir] = 5.0
    pace.on_wait([plain])
    # 2 s an epoch; of 32 epochs 27 are left, and three runs have to start
    assert pace.seconds_left() == pytest.approx(2 * 27 + 3 * 20)
    assert pace.fraction_done() == pytest.approx(5 / 32)
    clock.now += 10
    pace.on_end(plain, is_finished=True)
    assert (pace.num_ended, pace.seconds_left()) == (1, pytest.approx(2 * 22 + 3 * 20))
    pace.on_start(shortened)
    assert pace.seconds_left() == pytest.approx(2 * 22 + 2 * 20)
    clock.now += 5
    at[shortened.run_dir] = 1.0
    pace.on_wait([shortened])
    clock.now += 6
    at[shortened.run_dir] = 2.0
    pace.on_wait([shortened])
    # 6 s an epoch here, 4 + 6 of them are left; plain has 10 left at 2 s; the others started in 20 s and in 5
    assert pace.seconds_left() == pytest.approx(6 * 10 + 2 * 10 + 2 * 12.5)


def test_a_run_that_goes_on_is_timed_from_where_it_goes_on(runs, clock):
    at = {run.run_dir: 4.0 if run is runs[0] else 0.0 for run in runs}
    pace = Pace(runs, 1, lambda run: at[run.run_dir])
    pace.on_start(runs[0])
    assert pace.fraction_done() == pytest.approx(4 / 32)
    for epoch in (5.0, 6.0):
        clock.now += 3
        at[runs[0].run_dir] = epoch
        pace.on_wait([runs[0]])
    assert pace.seconds_left() == pytest.approx(3 * 26 + 3 * 3)


def test_runs_at_the_same_time_share_the_rest_but_none_is_cut(runs, clock):
    at = dict.fromkeys((run.run_dir for run in runs), 0.0)
    pace = Pace(runs, 4, lambda run: at[run.run_dir])
    for run in runs:
        pace.on_start(run)
    for epoch in (1.0, 5.0):
        clock.now += 4
        for run in runs:
            at[run.run_dir] = epoch
        pace.on_wait(runs)
    # 1 s an epoch: 5 + 1 + 5 + 1 s for four would be 3 s, but two have 5 epochs to go
    assert pace.seconds_left() == pytest.approx(5)
    for run in runs:
        pace.on_end(run, is_finished=True)
    assert (pace.num_ended, pace.fraction_done(), pace.seconds_left()) == (4, 1.0, 0.0)


def test_a_run_that_fails_tells_of_the_epochs_that_it_made(runs, clock):
    at = dict.fromkeys((run.run_dir for run in runs), 0.0)
    pace = Pace(runs, 1, lambda run: at[run.run_dir])
    pace.on_start(runs[0])
    for epoch in (1.0, 3.0):
        clock.now += 4
        at[runs[0].run_dir] = epoch
        pace.on_wait(runs[:1])
    clock.now += 2
    at[runs[0].run_dir] = 4.0
    pace.on_end(runs[0], is_finished=False)
    # 3 epochs in 6 s; 6 + 10 + 6 are left of the others, each of which starts in 4 s
    assert pace.seconds_left() == pytest.approx(2 * 22 + 3 * 4)
    assert pace.fraction_done() == pytest.approx(10 / 32)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "5 s"), (42, "40 s"), (54, "55 s"), (56, "1 min"), (3540, "59 min"), (3599, "1 h"), (7800, "2 h 10 min")],
)
def test_a_guess_is_written_as_one(seconds, text):
    assert about(seconds) == text
