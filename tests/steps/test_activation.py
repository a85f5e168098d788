"""Activations replaced, with all that hangs on them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import replace_activation_


def test_replaces_each_activation():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Sequential(shared, nn.ReLU()), nn.ReLU6()).double().eval()
    seen = []
    handle = shared.register_forward_hook(lambda *_: seen.append(1))
    assert replace_activation_(model, lambda old: nn.CELU(0.3)) == 2
    assert [type(m).__name__ for m in model.modules()][2:] == ["CELU", "Sequential", "CELU", "ReLU6"]
    assert model[1] is model[2][0]
    assert not model[1].training
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 3, 2, 2)
    torch.testing.assert_close(model[1](x), functional.celu(x, 0.3))
    assert seen == [1]
    handle.remove()
    model(x)
    assert seen == [1]
    with pytest.warns(NoEffectWarning, match="no ReLU module in Sequential"):
        assert replace_activation_(model, lambda old: nn.CELU(0.3)) == 0


def test_replaces_by_what_the_old_one_was():
    model = nn.Sequential(nn.LeakyReLU(0.2), nn.GELU(), nn.ReLU())
    replace_activation_(model, lambda old: nn.PReLU(init=old.negative_slope), nn.LeakyReLU)
    assert model[0].weight.item() == pytest.approx(0.2)
    replace_activation_(model, lambda old: nn.SiLU(), (nn.GELU, nn.ReLU))
    assert [type(m).__name__ for m in model] == ["PReLU", "SiLU", "SiLU"]


def test_new_parameters_take_dtype():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).double()
    replace_activation_(model, lambda old: nn.PReLU())
    assert model[1].weight.dtype == torch.float64


def test_bad_replacements_are_refused():
    with pytest.raises(ConfigError, match="is itself a ReLU"):
        replace_activation_(nn.ReLU(), lambda old: nn.CELU())
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ConfigError, match="make returned"):
        replace_activation_(model, lambda old: functional.celu)
    assert isinstance(model[0], nn.ReLU)
