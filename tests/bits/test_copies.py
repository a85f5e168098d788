"""Averages follow a removal, and ranks that remove together stay alike to the bit."""

import copy
import threading

import pytest
import torch
from tests.reference.zoo import make, mask_
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import scrimp
from scrimp._core.structure_plan import named_tensors
from scrimp.bits import quantized_layers, remove_dead_channels_, same_structure_on_all_ranks, self_compress_
from scrimp.errors import ConfigError, StructureError
from scrimp.steps import WeightAverage
from scrimp.testing import run_ranks

DEAD = torch.tensor([1, 5])


def compressed(*, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    model, batch = make("resnet", "relu", norm=True, padding=1)
    model, batch = model.to(dtype), batch.to(dtype)
    self_compress_(model, batch, bits=4)
    return model, batch


def kill_(model: nn.Module, *, is_silent: bool = True) -> None:
    """Zero bits for two channels of the layers inside of the branches; a negative bias behind them if silent."""
    with torch.no_grad():
        for name in ("first.0", "second.0"):
            quantizer = quantized_layers(model)[f"{name}.0"].quantizer
            quantizer.depth[DEAD] = -0.05
            norm = model.get_submodule(f"{name}.1")
            norm.bias[DEAD] = -0.3 if is_silent else 0.3
            norm.running_mean[DEAD] = 0


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(model(batch), torch.arange(len(batch)) % 5)
    loss = loss + 0.01 * scrimp.size_penalty(model, push=0.0)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("kind", ["WeightAverage", "module", "dict"])
def test_an_average_ends_with_what_the_model_has(kind: str) -> None:
    model, batch = compressed()
    if kind == "WeightAverage":
        average = WeightAverage(model, decay=0.9)
    else:
        average = copy.deepcopy(model) if kind == "module" else copy.deepcopy(named_tensors(model))
    # what the average computes, with the channels that die as the model has them
    averaged = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    kill_(model)
    kill_(averaged)
    wanted = averaged(batch)
    report = remove_dead_channels_(model, None, (average,))
    assert report.channels == {"first.0.0": (12, 10), "second.0.0": (12, 10)}
    if kind == "WeightAverage":
        with average.swap():
            given = model.eval()(batch)
    else:
        shrunk = average if kind == "module" else copy.deepcopy(model)
        if kind == "dict":
            shrunk.load_state_dict(average)
        given = shrunk.eval()(batch)
    assert (given - wanted).abs().max() <= 1e-12


def test_lookahead_does_not_bring_a_waiting_channel_back() -> None:
    for also, brought_back in ((True, 0), (False, 4)):
        model, _ = compressed()
        average = WeightAverage(model, decay=0.5, copy_back=True)
        kill_(model, is_silent=False)
        report = remove_dead_channels_(model, None, (average,) if also else ())
        assert report.num_channels == 0
        assert report.waiting == {"first.0.0": 2, "second.0.0": 2}
        average.update()
        alive = [layer.bits[DEAD] > 0 for name, layer in quantized_layers(model).items() if name in report.waiting]
        assert int(torch.cat(alive).sum()) == brought_back


@pytest.mark.parametrize("make_optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True), lambda p: torch.optim.Adam(p, lr=2e-3),
])  # fmt: skip
def test_training_with_lookahead_goes_on_as_if_masked(make_optimizer) -> None:
    model, batch = compressed()
    average = WeightAverage(model, decay=0.9, every=3, copy_back=True)
    optimizer = make_optimizer(model.parameters())
    for _ in range(4):
        step(model, optimizer, batch)
        average.update()
    kill_(model)
    masked = copy.deepcopy(model)
    masked_average = WeightAverage(masked, decay=0.9, every=3, copy_back=True)
    masked_average.load_state_dict(average.state_dict())
    masked_optimizer = make_optimizer(masked.parameters())
    masked_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = {name: value.detach().clone() for name, value in masked.named_parameters()}
    report = remove_dead_channels_(model, optimizer, (average,))
    kept = {key: {dim: index.tolist() for dim, index in slices} for key, slices in report.change.kept.items()}
    assert report.num_channels == 4
    for _ in range(100):
        one, other = step(model, optimizer, batch), step(masked, masked_optimizer, batch)
        average.update()
        masked_average.update()
        mask_(masked, before, kept)
        assert abs(one - other) <= 1e-12


def _on_a_rank(rank: int) -> dict[str, object]:
    """Everything in one start of processes, for starting them is what costs."""
    model, batch = compressed(dtype=torch.float32)
    optimizer = torch.optim.Adam(scrimp.bits.param_groups(model, lr=1e-2))
    average = WeightAverage(model, decay=0.9)
    own = batch + rank  # each rank has other data, so batch norms differ
    wrapped = DistributedDataParallel(model)

    def train(wrapped: DistributedDataParallel) -> None:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            (wrapped(own).square().mean() + 0.01 * scrimp.size_penalty(wrapped)).backward()
            optimizer.step()
            average.update()

    train(wrapped)
    kill_(model)
    del wrapped
    report = remove_dead_channels_(model, optimizer, (average,))
    seen: dict[str, object] = {"removed": report.num_channels, "structure": same_structure_on_all_ranks(model)}
    wrapped = DistributedDataParallel(model)
    assert same_structure_on_all_ranks(wrapped) == seen["structure"]
    train(wrapped)
    parts = [*model.parameters(), *(average.named_tensors()[name] for name, _ in model.named_parameters())]
    parts += [value for slots in optimizer.state.values() for value in slots.values()]
    seen["state"] = torch.cat([part.detach().double().flatten() for part in parts]).tolist()

    kill_(model)
    if rank:
        model.handle = threading.Lock()  # this rank alone cannot try the removal on a copy
    before = same_structure_on_all_ranks(model)
    with pytest.raises((ConfigError, StructureError)) as refused:
        remove_dead_channels_(model, optimizer)
    seen["refused"] = str(refused.value)
    assert same_structure_on_all_ranks(model) == before
    other = nn.Linear(2 + rank, 1)
    with pytest.raises(ConfigError) as unlike:
        same_structure_on_all_ranks(other)
    seen["unlike"] = str(unlike.value)
    return seen


def test_two_ranks_remove_together_and_stay_alike() -> None:
    first, second = run_ranks(_on_a_rank)
    assert first["removed"] == 4
    assert first["structure"] == second["structure"]
    assert first["state"] == second["state"]
    assert "trying to remove channels did not work on rank 1" in first["refused"]
    assert "cannot be copied to try a removal on" in second["refused"]
    assert "the structure of the model is not the same on all ranks: rank 1 of 2" in first["unlike"]
    assert first["unlike"] == second["unlike"]
