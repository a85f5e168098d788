"""What holds of a model after every trick that changes it in place: it is still a model like any other."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import scrimp
from scrimp import steps
from scrimp._core.rng import generator
from scrimp._core.state_tree import flatten_state
from scrimp.train.models.convnets import Residual, Scale


def images(batch=8, dtype=torch.float32):
    return torch.randn(batch, 3, 8, 8, generator=generator(0, "images")).to(dtype)


def net() -> nn.Module:
    """Each trick has something to do here."""

    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))

    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            block(3, 4), block(4, 6),
            Residual(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5), Scale(0.5),
        )  # fmt: skip


def everything(model: nn.Module) -> None:
    """All of them in the order that the method cards recommend."""
    steps.pool_early_(model, images(), before_norm=True)
    steps.replace_activation_(model, lambda old: nn.CELU(0.3))
    steps.ghost_batch_norm_(model, group_size=4)
    steps.freeze_bn_scale_(model)
    steps.dirac_init_(model)
    steps.whiten_input_(model, images(), prepend=True)


TRICKS: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda model: None,
    "pool early": steps.pool_early_,
    "pool before the norm": lambda model: steps.pool_early_(model, before_norm=True),
    "activation": lambda model: steps.replace_activation_(model, lambda old: nn.CELU(0.3)),
    "ghost batch norm": lambda model: steps.ghost_batch_norm_(model, group_size=3),
    "frozen scale": steps.freeze_bn_scale_,
    "absorbed scale": lambda model: steps.absorb_bn_scale_(model, 0.5),
    "dirac": steps.dirac_init_,
    "whitening": lambda model: steps.whiten_input_(model, images(), prepend=True),
    "everything": everything,
}


@pytest.fixture(params=TRICKS, ids=lambda name: name.replace(" ", "-"))
def model(request) -> nn.Module:
    changed = net()
    TRICKS[request.param](changed)
    return changed


def trained(model: nn.Module, num_steps: int = 2) -> torch.Tensor:
    """The losses of a few steps."""
    optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=0.01), momentum=0.9)
    losses = []
    for step in range(num_steps):
        loss = model(images() + step).square().mean()
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses)


def test_a_copy_is_a_model_of_its_own(model):
    twin = copy.deepcopy(model)
    assert torch.equal(trained(twin), trained(model))
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in model.parameters()})


def test_state_dict_goes_into_a_fresh_instance(model, request):
    trained(model)
    fresh = net()
    TRICKS[request.node.callspec.params["model"]](fresh)
    state = model.state_dict()
    flatten_state(state)  # tensors by name and nothing else
    fresh.load_state_dict(state)
    assert torch.equal(fresh.eval()(images()), model.eval()(images()))


def test_channels_last(model):
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        last(images().to(memory_format=torch.channels_last)), model(images()), rtol=1e-4, atol=1e-4
    )


def test_autocast_and_double(model):
    exact = copy.deepcopy(model)(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = copy.deepcopy(model)(images())
        rough.float().square().mean().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(model.double()(images(dtype=torch.float64)).float(), exact, rtol=1e-3, atol=1e-4)


def test_modes(model):
    expected = copy.deepcopy(model).train()(images())
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(images()), model(images()))
    alone = model(images(1))
    torch.testing.assert_close(alone, model(images())[:1], rtol=1e-4, atol=1e-5)  # no batch statistics in evaluation
    torch.testing.assert_close(model.train()(images()), expected)


def test_compiles_whole(model):
    """One graph, with gradients, the same numbers; in training and in evaluation."""
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(trained(compiled), trained(twin), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.eval()(images()), twin.eval()(images()), rtol=1e-3, atol=1e-4)


def test_the_rest_of_scrimp_takes_it(model):
    """Its structure can be read and made again; its average and its best copy are swapped in and out."""
    structure = scrimp.read_structure(model)
    scrimp.apply_structure_(model, structure)
    average = steps.WeightAverage(model, decay=0.5)
    trained(model)
    average.update()
    with average.swap():
        steps.predict_with_views(model, images())
