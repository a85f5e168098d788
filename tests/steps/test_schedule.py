import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scrimp.errors import ConfigError
from scrimp.steps import PiecewiseLinear, decoupled_sgd


def test_pages_last_schedule():
    """Up to 1 in the first fifth, down to 0.1 two epochs before the end, constant from there on."""
    schedule = PiecewiseLinear([0, 2, 8], [0, 1, 0.1])
    assert [schedule(epoch) for epoch in (-1, 0, 1, 2, 5, 8, 9, 10)] == [0, 0, 0.5, 1, 0.55, 0.1, 0.1, 0.1]


@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=6, unique=True)
    .map(sorted)
    .flatmap(
        lambda knots: st.tuples(
            st.just(knots), st.lists(st.floats(-9, 9), min_size=len(knots), max_size=len(knots)), st.floats(-60, 60)
        )
    )
)
def test_equals_numpy(case):
    knots, values, step = case
    assert PiecewiseLinear(knots, values)(step) == pytest.approx(np.interp(step, knots, values), abs=1e-9)


def test_serves_torchs_scheduler_with_its_state():
    def made():
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 64.0)])
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, PiecewiseLinear([0, 4], [1, 0]))

    optimizer, scheduler = made()
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [[1, 64], [0.75, 48], [0.5, 32], [0.25, 16], [0, 0]]
    _, again = made()
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert again.get_last_lr() == [0, 0]


@pytest.mark.parametrize(
    ("knots", "values", "message"),
    [
        ([], [], "0 knots"),
        ([1, 2], [1], "2 knots and 1 values"),
        ([2, 1], [1, 1], "have to ascend"),
        ([1, 1], [1, 1], "have to ascend"),
        ([0, float("nan")], [1, 1], "finite"),
    ],
)
def test_bad_points_are_refused(knots, values, message):
    with pytest.raises(ConfigError, match=message):
        PiecewiseLinear(knots, values)


def course(lr, weight_decay, *, momentum, reduction):
    """Weights after five steps on fixed data."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=momentum > 0
    )
    for step in range(5):
        data = torch.linspace(-1, 1 + step, 12, dtype=torch.float64).view(4, 3)
        losses = (model(data) - 1).square().squeeze(1)
        (losses.sum() if reduction == "sum" else losses.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.detach()


def test_same_steps_as_the_original_with_its_sum_of_losses():
    """airbench94's own lines: lr 11.5 and decay 0.0153 per 1024 examples, momentum 0.85."""
    batch_size, momentum = 4, 0.85
    kilostep_scale = 1024 * (1 + 1 / (1 - momentum))
    lr = 11.5 / kilostep_scale
    wd = 0.0153 * batch_size / kilostep_scale
    expected = course(lr, wd / lr, momentum=momentum, reduction="sum")
    told = decoupled_sgd(11.5, 0.0153, momentum=momentum, batch_size=batch_size)
    result = course(told.lr, told.weight_decay, momentum=momentum, reduction="mean")
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-13)


def test_the_decay_per_example_does_not_depend_on_the_rest():
    """lr * weight_decay, per example and with momentum played out, is the decay that was asked for."""
    for learning_rate, batch_size, momentum in [(1, 128, 0.0), (11.5, 1024, 0.85), (0.3, 2000, 0.6)]:
        told = decoupled_sgd(learning_rate, 0.01, momentum=momentum, batch_size=batch_size)
        played_out = 1 + 1 / (1 - momentum)
        assert told.lr * told.weight_decay * played_out * 1024 / batch_size == pytest.approx(0.01)
        assert told.lr * played_out * 1024 / batch_size == pytest.approx(learning_rate)


@pytest.mark.parametrize("change", [{"learning_rate": 0}, {"weight_decay": -1}, {"momentum": 1}, {"batch_size": 0}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ConfigError, match="have to be positive"):
        decoupled_sgd(**{"learning_rate": 1, "weight_decay": 0, "momentum": 0, "batch_size": 1, **change})
