"""Small nets, optimizers and comparisons for tests of checkpoint stores."""

from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.nn.functional as F
from tests.reference.rounding_codec import Rounding
from torch import Tensor, nn

from scrimp import CheckpointStore


def make_net(seed: int = 0, width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
        )
    return net.to(memory_format=torch.channels_last)


def train_steps(net: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        loss = F.cross_entropy(net(torch.randn(2, 3, 4, 4, generator=draw)), torch.tensor([0, 3]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


def bits(state: Any) -> Any:
    """A nested state with its tensors as (dtype, shape, stride, bytes)."""
    if isinstance(state, Tensor):
        raw = state.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if state.numel() else b""
        return state.dtype, tuple(state.shape), state.stride(), raw
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [bits(value) for value in state]
    return state


def files_in(folder: Path | str) -> dict[str, bytes]:
    """Every file's bytes; none where there is no folder."""
    path = Path(folder)
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())} if path.is_dir() else {}


def sizes_in(folder: Path | str) -> int:
    """All bytes in a folder."""
    return sum(len(content) for content in files_in(folder).values())


def the_file(store: CheckpointStore, step: int, kind: str) -> Path:
    """The file of a step's ``key``, ``delta`` or ``exact`` copy."""
    (path,) = Path(store.path).glob(f"step-{step:09d}.{kind}-*.scrimp")
    return path


def run_of(store: CheckpointStore, steps: list[int], *, seed: int = 0, width: int = 4) -> dict[int, Any]:
    """Train a net with AdamW and save it at each step; returns the true states."""
    net = make_net(seed, width)
    optimizer = adamw(net)
    true = {}
    for step in steps:
        train_steps(net, optimizer, 3, seed=step)
        store.save(step, model=net, optimizer=optimizer, extra={"at": step})
        true[step] = bits([net.state_dict(), optimizer.state_dict()])
    return true


def state_bits(store: CheckpointStore, step: int) -> Any:
    """The bits of model and optimizer as a store gives them back."""
    state = store.load(step)
    return bits([state["model"], state["optimizer"]])


def check_one_on_disk(url: str, folder: Path) -> CheckpointStore:
    """A store at ``url`` holds, lists and counts what the same store in ``folder`` does; returns it, opened again."""
    fs, root = fsspec.core.url_to_fs(url)
    remote, local = CheckpointStore(url, codec=Rounding()), CheckpointStore(folder, codec=Rounding())
    assert remote.steps() == []
    for store in (remote, local):
        run_of(store, [1, 2, 3, 4])
        store.delete(2)
    fs.invalidate_cache()
    assert sorted(path.rpartition("/")[2] for path in fs.find(root)) == sorted(path.name for path in folder.iterdir())
    assert remote.verify() == [1, 3, 4]
    again = CheckpointStore(url, codec=Rounding())
    assert [state_bits(again, step) for step in (1, 3, 4)] == [state_bits(local, step) for step in (1, 3, 4)]
    assert again.report().stored_bytes == local.report().stored_bytes
    return again
