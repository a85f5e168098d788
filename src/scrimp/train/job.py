"""What the training loop works on: a run's parts, built and on their device, and the seams for savings."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrimp._core.index_plan import IndexPlan
from scrimp._core.structure_change import StructureChange
from scrimp.steps import Batch, BatchTransform, DeviceLoader, EarlyFreeze, ProgressiveResize, WeightAverage
from scrimp.train.config import TrainConfig
from scrimp.train.task import Task

if TYPE_CHECKING:
    from scrimp.train.compression import Compressor


class Stateful(Protocol):
    """Something that a checkpoint has to hold for a resumed run to go on bit-identically."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and JSON values, nested as needed."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Go on from ``state``."""
        ...


def mean_loss(losses: Float[Tensor, " batch"], batch: Batch) -> Float[Tensor, ""]:
    """The plain reduction: the mean of one loss per sample, each times its weight where the sampler gives weights."""
    return losses.mean() if batch.weights is None else (losses * batch.weights).mean()


@dataclass(frozen=True)
class Seams:
    """Where a saving meets the loop, in the order in which they are called. The defaults are plain training.

    - ``sampler`` makes the plan of the samples to visit, given how many there are.
    - ``transforms`` change a batch, after the recipe's augmentation.
    - ``reduce`` makes one loss of losses of shape (batch,); ``batch.index`` says which samples they belong to.
    - ``before_step`` is told the progress of training, from 0 to 1.
    - ``penalty`` is added to the loss once per step.
    - ``after_step`` is called after the optimizer's step, with the number of steps done.
    - ``at_end`` is called after the last step, before the model is judged.
    - ``log`` gives values for the lines of metrics.
    - ``epoch_facts`` say what an epoch's line in the record holds beside times and visits: JSON values by key. They are
      asked for when the epoch ends, on the main rank.
    - ``before_restore`` is given, by the name in ``state``, what a checkpoint has there, before anything is restored.
    - ``has_changed`` says, before each step, whether the model is another since it was last asked, so that it has to be
      wrapped for DDP again.
    - ``take_change`` gives what was removed from the model since it was last asked, before a checkpoint is saved.
    - ``before_save`` is called on every rank before the main one saves a checkpoint, to tell it what only they know.

    ``state`` is what they have to keep in checkpoints, by name; the sampler's state is kept with the loader's.
    """

    sampler: Callable[[int], IndexPlan] | None = None
    transforms: tuple[BatchTransform, ...] = ()
    reduce: Callable[[Tensor, Batch], Tensor] = mean_loss
    penalty: Callable[[nn.Module], Tensor] | None = None
    before_step: tuple[Callable[[float], None], ...] = ()
    after_step: tuple[Callable[[int], None], ...] = ()
    at_end: tuple[Callable[[], None], ...] = ()
    log: tuple[Callable[[], Mapping[str, float]], ...] = ()
    epoch_facts: tuple[Callable[["Job"], Mapping[str, Any]], ...] = ()
    before_restore: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    has_changed: Callable[[], bool] = lambda: False
    take_change: Callable[[], StructureChange | None] = lambda: None
    before_save: tuple[Callable[[], None], ...] = ()
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
    average: WeightAverage | None = None  # judged in place of the model
    compressor: "Compressor | None" = None
    shrink: ProgressiveResize | None = None
    whitening: nn.Conv2d | None = None
    freeze: EarlyFreeze | None = None  # of the bias behind it
    data_checksum: str = ""  # a resumed run refuses other data

    def num_parameters(self) -> int:
        """Parameters of the plain model, before anything was removed from it."""
        if self.compressor is not None:
            return self.compressor.plain_parameters
        return sum(parameter.numel() for parameter in self.model.parameters())

    def precision(self) -> torch.autocast:
        """The autocast context of every forward pass; does nothing for float32."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )

    def in_size(self, batch: Batch, progress: float) -> Batch:
        """The batch with its images in the size that training has at ``progress`` from 0 to 1."""
        if self.shrink is None:
            return batch
        return dataclasses.replace(batch, inputs=self.shrink(batch.inputs, progress))
