"""A checkpoint from one device restored on another; what differs on a CPU alone are the kernels that were asked for."""

import pytest
import torch
from tests.reference.stores import bits, make_net, train_steps

from scrimp.checkpoints import CheckpointStore


def optimizer_of(net, **options):
    return torch.optim.AdamW(net.parameters(), lr=0.01, **options)


def without_kernels(optimizer):
    state = optimizer.state_dict()
    own = ("fused", "foreach", "capturable", "differentiable")
    return state["state"], [{k: v for k, v in group.items() if k not in own} for group in state["param_groups"]]


def test_an_optimizer_goes_on_with_its_own_kernels(tmp_path):
    """As CUDA leaves it, with steps that can be captured: torch refuses to make one of these on a CPU."""
    net = make_net()
    saved = optimizer_of(net, fused=True)
    train_steps(net, saved, 3)
    saved.param_groups[0].update(fused=None, capturable=True)
    store = CheckpointStore(tmp_path / "store")
    store.save(3, model=net, optimizer=saved)
    again = make_net(seed=1)
    optimizer = optimizer_of(again)
    own = {name: optimizer.param_groups[0][name] for name in ("fused", "foreach", "capturable")}
    store.restore(model=again, optimizer=optimizer)
    assert own == {name: optimizer.param_groups[0][name] for name in own}
    assert bits(without_kernels(optimizer)) == bits(without_kernels(saved))
    train_steps(again, optimizer, 1)
    with pytest.raises(AssertionError, match="capturable=True"):  # or the test would show nothing
        train_steps(net, saved, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_values_are_the_same_on_the_other_device(tmp_path, source, target):
    options = {"cpu": {}, "cuda": {"fused": True, "capturable": True}}
    net = make_net().to(source)
    saved = optimizer_of(net, **options[source])
    for _ in range(3):
        net(torch.ones(2, 3, 4, 4, device=source)).square().sum().backward()
        saved.step()
    store = CheckpointStore(tmp_path / "store")
    store.save(3, model=net, optimizer=saved)
    again = make_net(seed=1).to(target)
    optimizer = optimizer_of(again, **options[target])
    store.restore(model=again, optimizer=optimizer)
    for name, tensor in again.state_dict().items():
        assert tensor.device.type == target
        assert torch.equal(tensor.cpu(), net.state_dict()[name].cpu())
    for ours, theirs in zip(optimizer.state.values(), saved.state.values(), strict=True):
        assert ours["exp_avg"].device.type == ours["step"].device.type == target
        assert all(torch.equal(ours[slot].cpu(), theirs[slot].cpu()) for slot in theirs)
    again(torch.ones(2, 3, 4, 4, device=target)).square().sum().backward()
    optimizer.step()
