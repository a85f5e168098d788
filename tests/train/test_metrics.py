"""Running means against sums by hand, and losses that are no numbers."""

import math

import pytest
import torch
from torch import Tensor

from scrimp.errors import NonFiniteLossError
from scrimp.testing import check_stateful
from scrimp.train.metrics import RunningMetrics

CPU = torch.device("cpu")


@pytest.fixture
def metrics() -> RunningMetrics:
    return RunningMetrics(CPU)


def test_means_are_over_samples_and_not_over_batches(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2))
    metrics.update(2, torch.tensor([10.0]), torch.tensor(0))
    assert metrics.read() == {"loss": 16 / 4, "accuracy": 2 / 4}


def test_reading_starts_anew(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.tensor([4.0]), torch.tensor(1))
    metrics.read()
    metrics.update(2, torch.tensor([2.0, 4.0]), torch.tensor(1))
    assert metrics.read() == {"loss": 3.0, "accuracy": 0.5}
    assert metrics.read() == {"loss": 0.0, "accuracy": 0.0}


def test_text_has_no_accuracy_to_count(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.tensor([1.0, 2.0]), None)
    assert metrics.read() == {"loss": 1.5, "accuracy": 0.0}


def test_many_small_losses_add_up_exactly(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.full((1,), 2.0**24), None)
    for step in range(100):
        metrics.update(step + 2, torch.ones(1), None)  # float32 would lose each of them
    assert metrics.read()["loss"] == (2**24 + 100) / 101


def test_low_precision_losses_are_summed_in_high(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.ones(1001, dtype=torch.bfloat16), None)
    assert metrics.read()["loss"] == 1.0


def test_gradients_are_left_alone(metrics: RunningMetrics) -> None:
    losses = torch.ones(3, requires_grad=True)
    metrics.update(1, losses, None)
    losses.sum().backward()
    assert losses.grad is not None
    assert not metrics.state_dict()["values"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_named(metrics: RunningMetrics, bad: float) -> None:
    metrics.update(41, torch.tensor([1.0, 1.0]), None)
    metrics.check_finite()
    for step in (42, 43):
        metrics.update(step, torch.tensor([1.0, bad]), None)
    metrics.update(44, torch.tensor([1.0]), None)
    for look in (metrics.check_finite, metrics.read):
        with pytest.raises(NonFiniteLossError, match=r"at step 42; .*--learning-rate"):
            look()


def test_infinities_that_cancel_are_found(metrics: RunningMetrics) -> None:
    metrics.update(3, torch.tensor([math.inf]), None)
    metrics.update(4, torch.tensor([-math.inf]), None)
    with pytest.raises(ArithmeticError, match="at step 3;"):
        metrics.check_finite()


def test_checking_does_not_start_anew(metrics: RunningMetrics) -> None:
    metrics.update(1, torch.tensor([4.0]), None)
    metrics.check_finite()
    assert metrics.read()["loss"] == 4.0


def test_state() -> None:
    step = 0

    def advance(metrics: RunningMetrics) -> Tensor:
        nonlocal step
        step += 1
        metrics.update(step, torch.tensor([0.5, 2.0]), torch.tensor(1))
        return metrics.state_dict()["values"]

    check_stateful(lambda: RunningMetrics(CPU), advance)


def test_a_state_is_a_copy(metrics: RunningMetrics) -> None:
    state = metrics.state_dict()
    metrics.update(1, torch.tensor([1.0]), None)
    assert state["values"].tolist() == [0.0, 0.0, 0.0, math.inf]
