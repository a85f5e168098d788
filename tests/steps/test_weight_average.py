"""The average against its closed form; what is copied, swapped, sliced and stored."""

import copy

import pytest
import torch
from torch import nn

import scrimp
from scrimp._core.rng import generator
from scrimp._core.tensor_role import TensorRole, roles_of_state
from scrimp.errors import ConfigError, FormatError, StructureError
from scrimp.steps import WeightAverage
from scrimp.testing import check_ranks_agree, check_stateful


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, dtype=dtype)
        self.norm = nn.BatchNorm2d(4, dtype=dtype)
        self.head = nn.Linear(4, 4, dtype=dtype)
        self.tied = nn.Linear(4, 4, dtype=dtype)
        self.tied.weight = self.head.weight
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        return self.tied(self.head(self.norm(self.conv(x)).mean((2, 3))))


def move(model, step):
    """New values everywhere, also of counters; tied weights once."""
    draws = generator(step, "moves")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=draws))
        model.norm.num_batches_tracked += 1
        model.mask.logical_not_()


def history(model, num_steps):
    """The weight of the head after each step, the initial one first."""
    values = [model.head.weight.detach().clone()]
    for step in range(num_steps):
        move(model, step)
        values.append(model.head.weight.detach().clone())
        yield values


@pytest.mark.parametrize("every", [1, 3, 5])
def test_equals_its_closed_form(every):
    model, decay = Net(), 0.9
    average = WeightAverage(model, decay=decay, every=every)
    for values in history(model, 20):
        average.update()
        assert len(values) == average.num_steps + 1
    taken = values[::every]
    rho = decay**every
    expected = rho ** (len(taken) - 1) * taken[0]
    for i, value in enumerate(taken[1:], start=1):
        expected = expected + (1 - rho) * rho ** (len(taken) - 1 - i) * value
    named = average.named_tensors()
    torch.testing.assert_close(named["head.weight"], expected, rtol=1e-12, atol=1e-13)
    assert named["tied.weight"] is named["head.weight"]
    assert average.num_steps == 20


def test_buffers_are_averaged_and_integers_copied():
    model = Net()
    average = WeightAverage(model, decay=0.5)
    move(model, 0)
    expected = 0.5 * model.norm.running_mean  # from 0
    average.update()
    named = average.named_tensors()
    torch.testing.assert_close(named["norm.running_mean"], expected)
    assert named["norm.num_batches_tracked"] == 1
    assert named["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(named["mask"], model.mask)


def test_nothing_is_left_out():
    model = Net()
    average = WeightAverage(model, decay=0.0)
    assert average.named_tensors().keys() == model.state_dict().keys()
    move(model, 0)
    average.update()
    for name, tensor in average.named_tensors().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_swap_and_back():
    model = Net()
    average = WeightAverage(model, decay=0.5)
    move(model, 0)
    average.update()
    own = copy.deepcopy(model.state_dict())
    objects = [id(p) for p in model.parameters()]

    def evaluate_and_fail():
        with average.swap() as swapped:
            assert swapped is model
            for name, tensor in average.named_tensors().items():
                assert torch.equal(model.state_dict()[name], tensor)
            for call in (average.update, average.copy_to_model, average.swap().__enter__):
                with pytest.raises(StructureError, match=r"inside swap\(\)"):
                    call()
            model.train()(torch.randn(2, 3, 2, 2, generator=generator(0), dtype=torch.float64))  # moves the statistics
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        evaluate_and_fail()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == objects
    with average.swap():
        pass  # it can be swapped again


def test_lookahead_goes_on_from_the_average():
    model = Net()
    slow = model.head.weight.detach().clone()
    average = WeightAverage(model, decay=0.8, every=2, copy_back=True)
    for step in range(6):
        move(model, step)
        fast = model.head.weight.detach().clone()
        average.update()
        if step % 2:
            slow = slow + (1 - 0.8**2) * (fast - slow)
            torch.testing.assert_close(model.head.weight.detach(), slow, rtol=1e-12, atol=1e-13)
        else:
            assert torch.equal(model.head.weight, fast)
    move(model, 9)
    average.copy_to_model()
    torch.testing.assert_close(model.head.weight.detach(), slow, rtol=1e-12, atol=1e-13)


def test_a_schedule_gives_the_decay_of_an_update():
    model, asked = Net(), []
    average = WeightAverage(model, decay=lambda step: asked.append(step) or 0.0, every=3)
    for _ in history(model, 7):
        average.update()
    assert asked == [3, 6]


def test_low_precision_is_averaged_in_float32():
    model = Net(torch.bfloat16)
    average = WeightAverage(model, decay=0.999)
    start = average.named_tensors()["head.weight"].clone()
    assert start.dtype == torch.float32
    with torch.no_grad():
        model.head.weight.add_(1)
    target = model.head.weight.detach().float()
    for _ in range(1000):  # each step is far below what bfloat16 can add
        average.update()
    torch.testing.assert_close(
        average.named_tensors()["head.weight"], target + 0.999**1000 * (start - target), rtol=1e-4, atol=1e-4
    )
    with average.swap():
        assert model.head.weight.dtype == torch.bfloat16


def compiled(module):
    return torch.compile(module, backend="aot_eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda m: compiled(nn.DataParallel(m))])
def test_wrappers_do_not_hide_the_weights(wrap):
    """A prefix never makes the average skip: it is the model inside that is averaged."""
    model = Net()
    average = WeightAverage(wrap(model), decay=0.0)
    assert average.named_tensors().keys() == model.state_dict().keys()
    move(model, 0)
    average.update()
    assert torch.equal(average.named_tensors()["head.weight"], model.head.weight)


def test_a_compiled_part_is_named_without_its_wrapper():
    plain, model = nn.Sequential(Net()), nn.Sequential(Net())
    model[0].head = compiled(model[0].head)
    average = WeightAverage(model)
    assert average.named_tensors().keys() == plain.state_dict().keys()
    WeightAverage(plain).load_state_dict(average.state_dict())
    average.load_state_dict(WeightAverage(plain).state_dict())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_with_prefixes_is_loaded(prefix):
    model = Net()
    state = WeightAverage(model).state_dict()
    state["average"] = {prefix + name: tensor + 1 for name, tensor in state["average"].items() if name != "mask"} | {
        prefix + "mask": state["average"]["mask"]
    }
    average = WeightAverage(model)
    average.load_state_dict(state)
    assert torch.equal(average.named_tensors()["head.bias"], model.head.bias + 1)


def test_a_state_that_does_not_fit_is_refused_whole():
    model = Net()
    average = WeightAverage(model, decay=0.5)
    before = average.state_dict()

    def broken(change):
        state = copy.deepcopy(before)
        change(state)
        return state

    for change, error, message in [
        (lambda s: s["average"].pop("head.bias"), StructureError, "'head.bias' is only in one"),
        (lambda s: s["average"].update(extra=torch.zeros(1)), StructureError, "'extra' is only in one"),
        (lambda s: s["average"].update({"head.bias": torch.zeros(9)}), StructureError, "'head.bias' has shape"),
        (lambda s: s.pop("num_steps"), FormatError, "not the state of a WeightAverage"),
    ]:
        with pytest.raises(error, match=message):
            average.load_state_dict(broken(change))
    after = average.state_dict()
    assert all(torch.equal(after["average"][name], tensor) for name, tensor in before["average"].items())


def made():
    """A model with its average, that move together and are stored together."""

    class Both:
        def __init__(self):
            with torch.random.fork_rng(), torch.no_grad():
                self.model = Net()
                for parameter in self.model.parameters():
                    parameter.fill_(0.5)
            self.average = WeightAverage(self.model, decay=0.9, every=2, copy_back=True)

        def state_dict(self):
            return {"model": copy.deepcopy(self.model.state_dict()), "average": self.average.state_dict()}

        def load_state_dict(self, state):
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])

    return Both()


def advance(both):
    with torch.no_grad():
        for parameter in both.model.parameters():
            parameter.mul_(1.1).add_(0.1)
    both.average.update()
    return copy.deepcopy(dict(both.average.named_tensors()))


def test_state():
    check_stateful(made, advance, num_steps=5)


def averaged_by(rank):
    """Under DistributedDataParallel; the ranks see different data and average the same weights."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    wrapped = nn.parallel.DistributedDataParallel(model)
    average = WeightAverage(wrapped, decay=0.9, every=2)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(4):
        wrapped(torch.randn(3, 2, generator=generator(step, "data", rank))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    return average.state_dict()["average"]


def test_ranks_agree():
    assert set(check_ranks_agree(averaged_by)) == {"weight", "bias"}


def test_roles():
    roles = roles_of_state(WeightAverage(Net()).state_dict())
    assert roles["average/head.weight"] is TensorRole.WEIGHT
    assert roles["average/norm.running_var"] is TensorRole.BUFFER
    assert roles["average/norm.num_batches_tracked"] is TensorRole.EXACT
    assert roles["average/mask"] is TensorRole.EXACT


def test_structure_changes_follow():
    model = Net()
    average = WeightAverage(model, decay=0.5)
    move(model, 0)
    average.update()
    before = average.named_tensors()
    left = torch.tensor([0, 3])
    kept = {
        "conv.weight": ((0, left),), "conv.bias": ((0, left),), "norm.weight": ((0, left),), "norm.bias": ((0, left),),
        "norm.running_mean": ((0, left),), "norm.running_var": ((0, left),), "head.weight": ((0, left), (1, left)),
        "head.bias": ((0, left),), "tied.bias": ((0, left),),
    }  # fmt: skip
    with pytest.raises(StructureError, match="has shape"):
        average.apply_structure_change(scrimp.StructureChange({"conv.weight": ((0, torch.tensor([0, 7])),)}))
    scrimp.apply_structure_change(scrimp.StructureChange(kept), model=model, copies=[average])
    named = average.named_tensors()
    assert torch.equal(named["head.weight"], before["head.weight"][left][:, left])
    assert named["tied.weight"] is named["head.weight"]
    average.update()
    with average.swap():
        assert model(torch.zeros(1, 3, 2, 2, dtype=torch.float64)).shape == (1, 2)


def test_structure_changes_follow_into_a_compiled_part():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0] = compiled(model[0])
    average = WeightAverage(model)
    left = torch.tensor([0, 3])
    kept = {"0._orig_mod.weight": ((0, left),), "0._orig_mod.bias": ((0, left),), "1.weight": ((1, left),)}
    scrimp.apply_structure_change(scrimp.StructureChange(kept), model=model, copies=[average])
    assert {name: tuple(t.shape) for name, t in average.named_tensors().items()} == {
        "0.weight": (2, 3), "0.bias": (2,), "1.weight": (2, 2), "1.bias": (2,),
    }  # fmt: skip
    average.update()


def test_a_change_that_it_was_not_told_of_is_found():
    model = Net()
    average = WeightAverage(model)
    model.conv.bias.data = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(StructureError, match=r"'conv.bias' has shape \(2,\).*copies=\[average\]"):
        average.update()
    model.conv.bias = None
    with pytest.raises(StructureError, match=r"'conv.bias' is in the model or in its average"):
        average.update()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.5}, "decay is 1.5"),
        ({"decay": -0.1}, "decay"),
        ({"every": 0}, "every is 0"),
        ({"every": 1.0}, "every"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        WeightAverage(nn.Linear(1, 1), **options)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="ReLU has no parameters"):
        WeightAverage(nn.ReLU())
    with pytest.raises(ConfigError, match=r"weight.* is lazy"):
        WeightAverage(nn.LazyLinear(3))
