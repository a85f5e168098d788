"""What the training loop works on: a run's parts, built and on their device, and the seams for savings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scrimp.steps import DeviceLoader
from scrimp.train.config import TrainConfig
from scrimp.train.task import Task


class Stateful(Protocol):
    """Something that a checkpoint has to hold for a resumed run to go on bit-identically."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and JSON values, nested as needed."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Go on from ``state``."""
        ...


def mean_loss(losses: Tensor, index: Tensor) -> Tensor:  # noqa: ARG001 - other reductions need the index
    """The plain reduction: the mean of one loss per sample."""
    return losses.mean()


@dataclass(frozen=True)
class Seams:
    """Where a saving meets the loop, beside the loader's sampler and transforms. The defaults are plain training.

    ``reduce`` takes losses of shape (batch,) and the samples' positions in the data set, and returns their (weighted)
    mean. ``penalty`` is added once per step. ``after_step`` is called with the number of steps done. ``state`` is what
    they have to keep in checkpoints.
    """

    reduce: Callable[[Tensor, Tensor], Tensor] = mean_loss
    penalty: Callable[[nn.Module], Tensor] | None = None
    after_step: tuple[Callable[[int], None], ...] = ()
    state: Mapping[str, Stateful] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A run, ready to start."""

    config: TrainConfig
    model: nn.Module
    task: Task
    loader: DeviceLoader
    test_loader: DeviceLoader
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: torch.dtype | None
    seams: Seams = field(default_factory=Seams)

    def precision(self) -> torch.autocast:
        """The autocast context of every forward pass; does nothing for float32."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )
