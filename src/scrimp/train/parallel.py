"""One run on several processes: wrapping for DDP, and the few things on which ranks have to agree."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scrimp._core.ranks import all_reduce_sum_, is_main, world_size
from scrimp.errors import ScrimpError

T = TypeVar("T")


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU; as torchrun tells it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def for_ranks(model: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
    """The module to call in training: ``model`` itself, or wrapped for DDP when there are several processes.

    ``some_unused`` - there may be parameters that no output depends on, as behind a layer that a removal replaced.
    Cost of that: a walk through the graph in each step.
    """
    if world_size() == 1:
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=some_unused)


def gradients_stay_local(wrapped: nn.Module) -> AbstractContextManager[None]:
    """Within it, a backward pass does not exchange gradients (all but the last part of a batch)."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (each rank's batch norm has seen its own part of the data)."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def from_all_ranks(value: Any) -> list[Any]:
    """The ``value`` of every rank, in order of rank. Values travel between the run's own processes only."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on the main rank, on every rank; an error of ours there is raised on every rank."""
    value: T | None = None
    error: ScrimpError | None = None
    if is_main():
        try:
            value = make()
        except ScrimpError as raised:
            error = raised
    value, error = from_all_ranks((value, error))[0]
    if error is not None:
        raise error
    return cast("T", value)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank. Cost with several ranks: one all-reduce and one host sync."""
    if world_size() == 1:
        return flag
    count = torch.tensor([float(flag)], device=device)
    all_reduce_sum_(count)
    return bool(count.item() > 0)
