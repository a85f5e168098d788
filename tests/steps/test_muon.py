"""Muon against torch's own on matrices, against the recipe's lines on kernels, and as one optimizer of two."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn

import scrimp
from scrimp._core.rng import generator
from scrimp.errors import ConfigError
from scrimp.steps import Muon, bias_rule, orthogonalize, split_filters
from scrimp.steps.muon import renormalize_
from scrimp.testing import check_stateful
from scrimp.train.models import MODELS

SHAPES = [(4, 3, 3, 3), (8, 4, 3, 3), (8, 4, 3, 3), (6, 8, 1, 1), (20, 9)]


def parameters(shapes, dtype=torch.float32):
    return [nn.Parameter(torch.randn(s, generator=generator(i), dtype=dtype)) for i, s in enumerate(shapes)]


def give_gradients(params, step):
    for number, parameter in enumerate(params):
        parameter.grad = torch.randn(parameter.shape, generator=generator(step, "gradient", number)).to(parameter)


def test_the_iteration_makes_singular_values_about_one():
    matrices = torch.randn(3, 8, 20, generator=generator(0))
    done = orthogonalize(matrices, dtype=torch.float32)
    values = torch.linalg.svdvals(done)
    assert ((values > 0.65) & (values < 1.25)).all()
    before, _, after = torch.linalg.svd(matrices, full_matrices=False)
    torch.testing.assert_close((before.mT @ done @ after.mT).tril(-1), torch.zeros(3, 8, 8), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonalize(matrices.mT, dtype=torch.float32), done.mT)
    assert (orthogonalize(torch.zeros(1, 3, 3)) == 0).all()


def reference_newton_schulz(matrix, num_iterations, dtype):
    """One matrix, as published."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype) / (matrix.to(dtype).norm() + 1e-7)
    if len(matrix) > matrix.shape[1]:
        x = x.T
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_take_the_steps_of_the_recipe(nesterov, memory_format):
    """airbench94_muon, parameter by parameter: momentum, weight of norm sqrt(out), orthogonalised step."""
    params = [nn.Parameter(p.detach().contiguous(memory_format=memory_format)) if p.dim() == 4 else p
              for p in parameters(SHAPES, torch.float64)]  # fmt: skip
    twins = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(p) for p in twins]
    optimizer = Muon(
        params, lr=0.24, momentum=0.6, nesterov=nesterov, num_iterations=3, renormalize=True, dtype=torch.float64
    )
    for step in range(4):
        give_gradients(params, step)
        for twin, buffer, parameter in zip(twins, buffers, params, strict=True):
            buffer.mul_(0.6).add_(parameter.grad)
            direction = parameter.grad.add(buffer, alpha=0.6) if nesterov else buffer
            twin.mul_(len(twin) ** 0.5 / twin.norm())
            update = reference_newton_schulz(direction.reshape(len(twin), -1), 3, torch.float64)
            twin.add_(update.view(twin.shape), alpha=-0.24)
        optimizer.step()
        for twin, parameter in zip(twins, params, strict=True):
            torch.testing.assert_close(parameter.detach(), twin, rtol=1e-5, atol=1e-6)
    assert params[0].is_contiguous(memory_format=memory_format)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torchs_on_matrices(weight_decay):
    shapes = [(8, 20), (20, 8), (8, 20), (6, 6)]
    ours, theirs = parameters(shapes), parameters(shapes)
    one = Muon(
        ours, lr=0.05, momentum=0.9, weight_decay=weight_decay,
        shape_factor=lambda rows, columns: math.sqrt(max(1, rows / columns)),
    )  # fmt: skip
    other = torch.optim.Muon(theirs, lr=0.05, momentum=0.9, weight_decay=weight_decay)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):  # bfloat16 products, in another order
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=4e-3)


def test_equal_shapes_go_together_and_none_is_forgotten():
    """A batch of equal kernels gives each what it would get alone."""
    together, alone = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer = Muon(together, dtype=torch.float64)
    singles = [Muon([p], dtype=torch.float64) for p in alone]
    for step in range(2):
        give_gradients(together, step)
        give_gradients(alone, step)
        optimizer.step()
        for single in singles:
            single.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


class Training:
    """A small network with Muon for its filters and SGD for the rest."""

    auxiliary = staticmethod(lambda groups: torch.optim.SGD(groups, momentum=0.85, nesterov=True))

    def __init__(self):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            self.model = nn.Sequential(
                nn.Conv2d(1, 4, 2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(16, 2),
            )  # fmt: skip
        groups = scrimp.param_groups(self.model, lr=0.05, weight_decay=0.01, rules=[bias_rule(8)])
        filters, rest = split_filters(self.model, groups)
        self.optimizer = Muon(filters, lr=0.24, momentum=0.6, renormalize=True, auxiliary=self.auxiliary(rest))
        self.step = 0

    def advance(self):
        x = torch.randn(6, 1, 3, 3, generator=generator(self.step, "data"))
        self.model(x).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return copy.deepcopy(dict(self.model.state_dict()))

    def state_dict(self):
        return {
            "model": copy.deepcopy(self.model.state_dict()), "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "step": self.step,
        }  # fmt: skip

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


class TrainingAdamW(Training):
    auxiliary = staticmethod(torch.optim.AdamW)


@pytest.mark.parametrize("kind", [Training, TrainingAdamW])
def test_state(kind):
    check_stateful(kind, kind.advance, num_steps=4)


def test_groups_of_both():
    run = Training()
    first_conv, filters = run.model[0].weight, [run.model[1].weight, run.model[4].weight]
    groups = run.optimizer.param_groups
    assert [[id(p) for p in g["params"]] for g in groups[:1]] == [[id(p) for p in filters]]
    assert [g.get("name") for g in groups] == ["filters", "default", "batch norm biases x8"]
    assert groups[0]["param_names"] == ["1.weight", "4.weight"]
    assert any(first_conv is p for p in groups[1]["params"])
    assert groups[1]["param_names"] == ["0.weight", "0.bias", "1.bias", "2.weight", "4.bias", "6.weight", "6.bias"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: 0.0 if step else 1.0)
    run.advance()
    scheduler.step()
    before = run.advance()
    after = run.advance()
    for name in ("0.weight", "2.bias", "6.weight", "1.bias"):  # the auxiliary's groups follow the schedule
        assert torch.equal(before[name], after[name])
    run.optimizer.add_param_group({"name": "later", "params": parameters([(2, 2)]), "param_names": ["x"]})
    assert [g["name"] for g in run.optimizer.param_groups] == ["filters", "later", "default", "batch norm biases x8"]


def test_a_copy_and_a_loaded_one_still_step_both():
    run = Training()
    run.advance()
    twin = Training()
    twin.load_state_dict(run.state_dict())
    for group in twin.optimizer.param_groups:
        group["lr"] = 0.0
    model, optimizer = copy.deepcopy((run.model, run.optimizer))
    before = copy.deepcopy(twin.model.state_dict())
    twin.advance()
    assert torch.equal(twin.model[6].weight, before["6.weight"])
    assert torch.equal(twin.model[0].weight, before["0.weight"])
    model(torch.randn(6, 1, 3, 3, generator=generator(1, "data"))).square().sum().backward()
    optimizer.step()
    run.advance()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), run.model.parameters(), strict=True))


def test_structure_changes_follow():
    run = Training()
    run.advance()
    left = torch.tensor([0, 2, 3])
    names = ("1.weight", "1.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var")
    kept = dict.fromkeys(names, ((0, left),))
    kept["4.weight"] = ((1, left),)
    scrimp.apply_structure_change(scrimp.StructureChange(kept), model=run.model, optimizer=run.optimizer)
    assert run.optimizer.state[run.model[1].weight]["momentum_buffer"].shape == (3, 4, 3, 3)
    assert run.optimizer.state[run.model[1].bias]["momentum_buffer"].shape == (3,)
    run.advance()


def test_what_has_no_gradient_is_left_alone():
    params = parameters(SHAPES)
    give_gradients(params[:2], 0)
    before = [p.detach().clone() for p in params]
    Muon(params, renormalize=True, weight_decay=0.1).step()
    assert [torch.equal(a, b) for a, b in zip(before, params, strict=True)] == [False, False, True, True, True]
    assert Muon(params).step(lambda: 3.0) == 3.0


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"momentum": 1.0}, {"weight_decay": -1}, {"num_iterations": 0}, {"eps": 0}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ConfigError, match="Muon: lr"):
        Muon(parameters([(2, 2)]), **options)


def test_bad_parameters_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(3,\) have no matrix form"):
        Muon([nn.Parameter(torch.ones(3))])
    params = parameters([(2, 2)])
    with pytest.raises(ConfigError, match="has a parameter that Muon has as well"):
        Muon(params, auxiliary=torch.optim.SGD(params, lr=0.1))
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        Muon(table.parameters()).step()
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="0 filters for Muon"):
        split_filters(model, scrimp.param_groups(model, lr=0.1))
    filters, rest = split_filters(model, scrimp.param_groups(model, lr=0.1), lambda name, m: isinstance(m, nn.Linear))
    assert filters[0]["params"][0] is model[1].weight
    assert rest[0]["param_names"] == ["0.weight", "0.bias", "1.bias"]


def test_of_a_transformer_the_matrices_of_hidden_layers_are_for_muon():
    vit = MODELS["vit"](num_classes=10, in_channels=3, image_size=8, width=8, depth=2, num_heads=2, patch_size=4)
    filters, rest = split_filters(vit, scrimp.param_groups(vit, lr=0.1))
    hidden = {
        f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attention.qkv", "attention.out", "up", "down")
    }
    assert set(filters[0]["param_names"]) == hidden
    assert {"patch.weight", "head.weight", "position"} < {name for group in rest for name in group["param_names"]}


@pytest.mark.parametrize("is_told", [False, True])
def test_what_is_left_of_a_weight_keeps_its_norm_if_told(is_told):
    draw = torch.Generator().manual_seed(0)
    first, second = (nn.Parameter(torch.randn(8, 4, 3, 3, generator=draw)) for _ in range(2))
    head = nn.Parameter(torch.zeros(1))
    optimizer = Muon([first, second], lr=0.1, renormalize=True, auxiliary=torch.optim.SGD([head], lr=0.1))

    def step():
        for parameter in (first, second):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    step()
    with optimizer.keeping_norms() if is_told else contextlib.nullcontext():
        for tensor in (first, optimizer.state[first]["momentum_buffer"]):
            tensor.data = tensor.data[:, :1].clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    sizes = [float(parameter.detach().norm()) for parameter in (first, second)]
    others = float(second.detach().norm() / 8**0.5)  # by which the step had made it longer than it should be
    step()
    ratio = float(first.detach().norm()) / sizes[0]
    assert ratio == pytest.approx(1 / others if is_told else 8**0.5 / sizes[0], rel=0.02)
    assert float(second.detach().norm()) == pytest.approx(8**0.5)
    again = Muon([first, second], lr=0.1, renormalize=True, auxiliary=torch.optim.SGD([head], lr=0.1))
    again.load_state_dict(optimizer.state_dict())
    assert ("norm" in again.state[first]) == is_told
    assert "norm" not in again.state[second]


def test_zeros_stay_zeros_when_they_are_given_a_norm():
    weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
    renormalize_([weight.data])
    assert not weight.any()
