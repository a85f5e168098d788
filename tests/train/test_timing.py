"""The clock with phases, on a time that the test winds by hand."""

from types import SimpleNamespace

import pytest
import torch

from scrimp.train import timing
from scrimp.train.timing import PHASES, PhaseClock


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Time:
    hand = Time()
    monkeypatch.setattr(
        timing, "time", SimpleNamespace(perf_counter=lambda: hand.now, process_time=lambda: hand.now / 2)
    )
    return hand


@pytest.fixture
def clock(wait: Time) -> PhaseClock:
    return PhaseClock(torch.device("cpu"))


def spend(clock: PhaseClock, wait: Time, **seconds: float) -> None:
    for phase, number in seconds.items():
        if phase == "other":
            wait(number)
        else:
            with clock(phase):
                wait(number)


def test_nothing_before_the_start(clock: PhaseClock, wait: Time) -> None:
    wait(5)
    assert clock.seconds() == dict.fromkeys((*PHASES, "other"), 0.0)
    assert clock.total_seconds() == clock.train_seconds() == clock.step_seconds() == 0.0


def test_phases_and_other_add_up_to_the_total(clock: PhaseClock, wait: Time) -> None:
    clock.start()
    spend(clock, wait, data=1, forward=2, backward=4, other=0.5)
    spend(clock, wait, data=1, optimizer=8, evaluation=16, checkpoint=32, other=0.25)
    seconds = clock.seconds()
    assert seconds == {
        "data": 2, "forward": 2, "backward": 4, "optimizer": 8, "evaluation": 16, "checkpoint": 32, "other": 0.75
    }  # fmt: skip
    assert sum(seconds.values()) == clock.total_seconds() == 64.75
    assert clock.train_seconds() == 64.75 - 16
    assert clock.step_seconds() == 64.75 - 16 - 32


def test_other_is_never_negative(clock: PhaseClock, wait: Time) -> None:
    spend(clock, wait, data=3)  # before the start, as building a loader may be
    clock.start()
    spend(clock, wait, forward=1)
    assert clock.seconds()["other"] == 0.0


def test_a_resumed_clock_goes_on(clock: PhaseClock, wait: Time) -> None:
    clock.start()
    spend(clock, wait, data=1, evaluation=2, other=3)
    state = clock.state_dict()
    assert state["total"] == 6
    wait(1000)  # the night in between

    again = PhaseClock(torch.device("cpu"))
    again.load_state_dict(state)
    assert again.total_seconds() == 6
    again.start()
    assert again.state_dict() == state
    spend(again, wait, data=10, other=20)
    assert again.seconds() == {**dict.fromkeys(PHASES, 0.0), "data": 11, "evaluation": 2, "other": 23}
    assert again.total_seconds() == 36
    assert again.train_seconds() == 34


def test_an_error_inside_a_phase_passes_through(clock: PhaseClock, wait: Time) -> None:
    clock.start()
    with pytest.raises(KeyError), clock("forward"):
        raise KeyError
    spend(clock, wait, forward=1)
    assert clock.seconds()["forward"] == 1
