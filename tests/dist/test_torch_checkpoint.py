"""``torch.distributed.checkpoint`` and FSDP2 over a store: exact, on any number of ranks, small in history."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from scrimp.checkpoints import CheckpointStore, Residual
from scrimp.errors import ConfigError
from scrimp.integrations.torch_checkpoint import StoreReader, StoreWriter
from scrimp.testing import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STEPS = (1, 2, 3)
State = dict[str, Any]


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose rows two ranks share unevenly; sharded by FSDP2 where there are ranks."""
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 129), nn.Tanh(), nn.Linear(129, 7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    if dist.is_initialized():
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(number))  # the same on each rank
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor().detach().clone()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def dcp_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optim": moments, "counter": 7, "random": torch.arange(5)}


def load(path: str, step: int | None, *, seed: int) -> State:
    model, optimizer = make(seed)
    state = {**dcp_state(model, optimizer), "counter": 0, "random": torch.zeros(5, dtype=torch.int64)}
    dcp.load(state, storage_reader=StoreReader(CheckpointStore(path), step))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return whole({**dcp_state(model, optimizer), "counter": state["counter"], "random": state["random"]})  # type: ignore[no-any-return]


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}.{key}")
    else:
        assert ours == theirs, where


def save_all(rank: int, path: str) -> list[State]:
    model, optimizer = make()
    store = CheckpointStore(path, sharded=True)
    truth = []
    for step in STEPS:
        train(model, optimizer, step)
        state = dcp_state(model, optimizer)
        dcp.save(state, storage_writer=StoreWriter(store, step))
        truth.append(whole(state))
    assert_same(load(path, None, seed=3), truth[-1])
    return truth


def load_on_ranks(rank: int, path: str) -> State:
    return load(path, None, seed=4)


def test_saved_on_two_ranks_loads_on_one_two_and_three(tmp_path: Path) -> None:
    truth, _ = run_ranks(save_all, str(tmp_path))
    store = CheckpointStore(tmp_path)
    assert store.verify() == list(STEPS)
    assert store.describe().num_ranks == 2
    assert_same(load(str(tmp_path), None, seed=5), truth[-1])
    for loaded in run_ranks(load_on_ranks, str(tmp_path), world_size=3):
        assert_same(loaded, truth[-1])
    history, true = load(str(tmp_path), 2, seed=6), truth[1]
    wrong = (history["model"]["0.weight"] - true["model"]["0.weight"]).abs().max()
    moved = (true["model"]["0.weight"] - truth[0]["model"]["0.weight"]).square().mean().sqrt()
    assert 0 < wrong <= 1.001 * moved
    assert_same(history["model"]["2.bias"], true["model"]["2.bias"])
    assert store.describe(2).history_ratio > 3
    loaded = store.load(3)
    assert torch.equal(loaded["model"]["model.0.weight"], truth[-1]["model"]["0.weight"])
    moment = truth[-1]["optim"]["state"]["0.weight"]["exp_avg"]
    assert torch.equal(loaded["tensors"]["optim.state.0.weight.exp_avg"], moment)
    assert store.stored_parts(3)[1]["counter"] == 7


def test_one_process_alone(tmp_path: Path) -> None:
    model, optimizer = make()
    train(model, optimizer, 1)
    state = dcp_state(model, optimizer)
    dcp.save(state, storage_writer=StoreWriter(CheckpointStore(tmp_path), 4))
    assert_same(load(str(tmp_path), 4, seed=1), whole(state))
    with pytest.raises(dcp.api.CheckpointException, match="cannot be stored|cannot store"):
        dcp.save({"odd": object()}, storage_writer=StoreWriter(CheckpointStore(tmp_path), 5))
    assert CheckpointStore(tmp_path).steps() == [4]


def test_buffers_keep_every_bit_in_history_and_weights_are_small(tmp_path: Path) -> None:
    model, optimizer = make()
    model.register_buffer("table", torch.randn(64, 128))
    model.register_buffer("running_mean", torch.randn(5000))
    store = CheckpointStore(tmp_path, codec=Residual.small(), exact_tail=0)
    for step in (1, 2):
        train(model, optimizer, step)
        model.table.add_(0.01 * torch.randn(64, 128))
        model.running_mean.mul_(1.01)
        dcp.save(dcp_state(model, optimizer), storage_writer=StoreWriter(store, step))
    state = whole(dcp_state(*make(1)))
    state["model"] |= {"table": torch.zeros(64, 128), "running_mean": torch.zeros(5000)}
    dcp.load(state, storage_reader=StoreReader(store, 2))
    assert torch.equal(state["model"]["table"], model.table)
    assert torch.equal(state["model"]["running_mean"], model.running_mean)
    assert not torch.equal(state["model"]["0.weight"], model[0].weight)  # within its bound


def test_what_was_saved_otherwise_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(1, model=make()[0])
    with pytest.raises(ConfigError, match="was not saved in parts"):
        CheckpointStore(tmp_path).stored_parts()


def fsdp(rank: int, path: str) -> tuple[State, State]:
    model, optimizer = make()
    store = CheckpointStore(path, sharded=True)
    for step in STEPS:
        train(model, optimizer, step)
        store.save(step, model=model, optimizer=optimizer)
    again, optimizer_again = make(seed=2)
    CheckpointStore(path, sharded=True).restore(model=again, optimizer=optimizer_again)
    for both in ((model, optimizer), (again, optimizer_again)):
        train(*both, 9)
    return whole(model.state_dict()), whole(again.state_dict())


def test_fsdp2_goes_on_bit_for_bit(tmp_path: Path) -> None:
    for ours, theirs in run_ranks(fsdp, str(tmp_path)):
        assert_same(ours, theirs)
