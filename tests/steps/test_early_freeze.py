import copy
import itertools

import pytest
import torch
from torch import nn

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, FormatError
from scrimp.steps import EarlyFreeze, Muon
from scrimp.testing import check_stateful


def net():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(number)))
    return model


class Training:
    """A model that trains with a bias frozen after three steps."""

    def __init__(self, kind=torch.optim.SGD, num_steps=3, **freeze):
        with torch.random.fork_rng():
            self.model = net()
        options = {"momentum": 0.9, "weight_decay": 0.1} if kind is torch.optim.SGD else {"weight_decay": 0.1}
        self.optimizer = kind(self.model.parameters(), lr=0.01, **options)
        self.freeze = EarlyFreeze(self.optimizer, [self.model[0].bias], num_steps=num_steps, **freeze)
        self.step = 0

    def advance(self):
        self.model(torch.randn(4, 1, 3, 3, generator=generator(self.step))).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return copy.deepcopy(dict(self.model.state_dict()))

    def state_dict(self):
        return {
            "model": copy.deepcopy(self.model.state_dict()), "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "freeze": self.freeze.state_dict(), "step": self.step,
        }  # fmt: skip

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.freeze.load_state_dict(state["freeze"])
        self.step = state["step"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_learns_for_so_many_steps_and_no_more(kind):
    run, biases, weights = Training(kind), [], []
    for _ in range(6):
        assert run.freeze.is_frozen == (run.step >= 3)
        state = run.advance()
        biases.append(state["0.bias"])
        weights.append(state["0.weight"])
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(biases)]
    assert changed == [True, True, False, False, False]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(weights))
    run.freeze.remove()
    assert not torch.equal(run.advance()["0.bias"], biases[-1])


@pytest.mark.parametrize("stop_backward", [False, True])
def test_freezes_when_told_and_stays_so_after_a_resume(stop_backward):
    run = Training(num_steps=None, stop_backward=stop_backward)
    before = [run.advance()["0.bias"] for _ in range(4)]
    assert not torch.equal(before[-2], before[-1])
    run.freeze.freeze()
    assert run.freeze.is_frozen
    again = Training(num_steps=None, stop_backward=stop_backward)
    again.load_state_dict(run.state_dict())
    for one in (run, again):
        assert one.model[0].bias.requires_grad != stop_backward
    assert torch.equal(again.advance()["0.bias"], before[-1])
    assert not torch.equal(again.advance()["0.weight"], run.model.state_dict()["0.weight"])


def test_what_was_frozen_before_stays_so():
    """Also when two of them share a parameter."""
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    first = EarlyFreeze(optimizer, [layer.weight, layer.bias], num_steps=0, stop_backward=True)
    second = EarlyFreeze(optimizer, [layer.bias], num_steps=5, stop_backward=True)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    second.remove()
    assert not layer.bias.requires_grad
    first.remove()
    assert [layer.weight.requires_grad, layer.bias.requires_grad] == [False, True]


def test_the_other_parameters_do_not_notice_until_then():
    """Up to the freeze the run is the one without it, bit by bit."""
    frozen, free = Training(num_steps=3), Training(num_steps=100)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(frozen.advance().values(), free.advance().values(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_backward_pass_ends_where_nothing_learns_and_all_else_is_the_same(kind):
    stopped, plain = Training(kind, stop_backward=True), Training(kind)
    for _ in range(6):
        for run in (stopped, plain):
            run.model[0].weight.requires_grad_(False)  # as whitening filters are
        reaches_the_input = stopped.model[0](torch.ones(1, 1, 3, 3)).requires_grad
        assert reaches_the_input == (not stopped.freeze.is_frozen) == (stopped.step < 3)
        assert all(torch.equal(a, b) for a, b in zip(stopped.advance().values(), plain.advance().values(), strict=True))
    stopped.freeze.remove()
    assert stopped.model[0].bias.requires_grad


def test_a_state_says_whether_the_backward_pass_ends():
    frozen, fresh = Training(num_steps=1, stop_backward=True), Training(num_steps=1, stop_backward=True)
    at_start = copy.deepcopy(frozen.state_dict())
    frozen.advance()
    assert fresh.model[0].bias.requires_grad
    fresh.load_state_dict(frozen.state_dict())
    assert not fresh.model[0].bias.requires_grad
    fresh.load_state_dict(at_start)
    assert fresh.model[0].bias.requires_grad
    assert not Training(num_steps=0, stop_backward=True).model[0].bias.requires_grad


@pytest.mark.parametrize("stop_backward", [False, True])
def test_state(stop_backward):
    check_stateful(lambda: Training(stop_backward=stop_backward), Training.advance, num_steps=5)


class Counting(torch.optim.SGD):
    """With an argument behind the closure."""

    def step(self, closure=None, scale=1.0):
        self.scale = scale
        return super().step(closure)


@pytest.mark.parametrize("words", [((), True), ((2.0,), False), ((), False)])
def test_a_closure_computes_no_gradient_for_what_is_frozen(words):
    more, by_name = words
    model = net()
    optimizer = Counting(model.parameters(), lr=0.1)
    EarlyFreeze(optimizer, [model[0].bias], num_steps=0)
    before = copy.deepcopy(model.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 1, 3, 3)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure=closure) if by_name else optimizer.step(closure, *more)
    assert optimizer.scale == (more[0] if more else 1.0)
    after = model.state_dict()
    assert torch.equal(before["0.bias"], after["0.bias"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_works_with_muon_and_its_auxiliary():
    model = net()
    sgd = torch.optim.SGD([model[0].bias, *model[2].parameters()], lr=0.1)
    optimizer = Muon([model[0].weight], lr=0.1, auxiliary=sgd)
    EarlyFreeze(optimizer, [model[0].bias], num_steps=0)
    before = model[0].bias.detach().clone()
    model(torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].bias, before)


def test_bad_arguments_are_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameters in ([], [None], [nn.Conv2d(1, 1, 1, bias=False).bias]):
        with pytest.raises(ConfigError, match="no such parameter"):
            EarlyFreeze(optimizer, parameters, num_steps=1)
    with pytest.raises(ConfigError, match="does not hold"):
        EarlyFreeze(optimizer, [nn.Parameter(torch.ones(1))], num_steps=1)
    with pytest.raises(ConfigError, match="number of steps"):
        EarlyFreeze(optimizer, [model[0].bias], num_steps=-1)
    freeze = EarlyFreeze(optimizer, [model[0].bias], num_steps=1)
    for state in ({}, {"steps_done": -5}, {"steps_done": 1, "was_told": "no"}, None, [1]):
        with pytest.raises(FormatError, match="not the state of an EarlyFreeze"):
            freeze.load_state_dict(state)
    freeze.load_state_dict({"steps_done": 3})  # as it was before it could be told
    assert freeze.is_frozen
