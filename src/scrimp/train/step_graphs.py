"""Whole training steps as CUDA graphs: one launch in place of hundreds, for networks whose kernels are short."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scrimp._core.ranks import world_size
from scrimp.steps import Batch
from scrimp.train.job import Job, mean_loss

_WARMUP_STEPS = 3  # per shape, as real steps on a side stream: allocations and choices of kernels before a capture
_MOST_GRAPHS = 8  # each holds the activations of its shape

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, Tensor | None]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Record what a function does on the device, without doing it; gives what does it, and where its outputs will lie."""


def reason_against(job: Job) -> str | None:
    """Why the steps of this job cannot be captured, in a few words; ``None`` if they can.

    A graph repeats what the device did: nothing that the host decides in a step can be in it.
    """
    if job.device.type != "cuda":
        return f"they are for CUDA, and this run is on {job.device.type}"
    if world_size() > 1:
        return "they are for one process"
    if job.config.accumulation > 1:
        return "a batch is split into parts (--accumulation)"
    if job.task.kind != "images":
        return "they are for images"
    if job.seams.reduce is not mean_loss or job.seams.penalty is not None or job.seams.sampler is not None:
        return "a saving takes part in each step"
    return None


def step_graphs(job: Job) -> "StepGraphs | None":
    """The graphs of a job that asks for them; ``None``, and a logged sentence, where its steps cannot be captured."""
    reason = reason_against(job)
    if reason is not None:
        logger.warning("steps are not captured as CUDA graphs (--graphs): %s", reason)
        return None
    return StepGraphs(job)


def capture_on_cuda(work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """``Capture`` by a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph.replay, outputs


@dataclass
class _Captured:
    replay: Callable[[], None]
    outputs: Outputs
    inputs: Tensor
    targets: Tensor
    rates: list[Tensor]


class StepGraphs:
    """Training steps of a job, captured once per shape of a batch and replayed: forward, loss, backward, optimizer.

    Calling it with a batch is one step and gives the losses and the number of correct ones, valid until the next call.
    The first steps of each shape are run as usual; beyond eight graphs, and where a capture fails, all are (this is
    said once). Learning rates are read from the optimizer at each step. What is called after a step, averages for
    instance, is not part of it.

    Source: the whole-network capture of PyTorch's notes on CUDA semantics.
    """

    def __init__(self, job: Job, capture: Capture = capture_on_cuda) -> None:
        self._job, self._capture = job, capture
        self._parameters = [p for p in job.model.parameters() if p.requires_grad]
        self._graphs: dict[object, _Captured] = {}
        self._num_seen: dict[object, int] = {}
        self._gave_up = False

    def __call__(self, batch: Batch) -> Outputs:
        """One training step."""
        assert batch.targets is not None
        freeze = self._job.freeze
        key = (batch.inputs.shape, batch.inputs.dtype, freeze is not None and freeze.is_frozen)
        self._num_seen[key] = self._num_seen.get(key, 0) + 1
        if key not in self._graphs and self._is_worth_it(key):
            self._try_to_capture(key, batch)
        if key not in self._graphs:
            return self._on_side_stream(lambda: self._step(batch.inputs, batch.targets))
        graph = self._graphs[key]
        graph.inputs.copy_(batch.inputs)
        graph.targets.copy_(batch.targets)
        for rate, group in zip(graph.rates, self._job.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        graph.replay()
        if freeze is not None:
            freeze.count_step()
        return graph.outputs

    def _is_worth_it(self, key: object) -> bool:
        if self._gave_up or self._num_seen[key] <= _WARMUP_STEPS:
            return False
        if len(self._graphs) < _MOST_GRAPHS:
            return True
        self._give_up(f"there are {_MOST_GRAPHS} graphs already, and a batch of another shape came")
        return False

    def _try_to_capture(self, key: object, batch: Batch) -> None:
        assert batch.targets is not None
        optimizer, freeze = self._job.optimizer, self._job.freeze
        inputs, targets = batch.inputs.clone(), batch.targets.clone()
        plain = [group["lr"] for group in optimizer.param_groups]
        rates = [torch.tensor(rate, dtype=torch.float32, device=inputs.device) for rate in plain]
        counted = None if freeze is None else freeze.state_dict()
        optimizer.zero_grad(set_to_none=True)  # so that the backward pass in the graph writes gradients and adds none
        try:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            replay, outputs = self._capture(lambda: self._step(inputs, targets, keeps_gradients=True))
            self._graphs[key] = _Captured(replay, outputs, inputs, targets, rates)
        except RuntimeError as error:
            self._give_up(f"capturing one failed ({str(error).splitlines()[0]})")
        finally:
            for group, rate in zip(optimizer.param_groups, plain, strict=True):
                group["lr"] = rate
            if freeze is not None and counted is not None:
                freeze.load_state_dict(counted)  # a capture is no step
            optimizer.zero_grad(set_to_none=True)

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        logger.warning("steps go on without further CUDA graphs: %s", reason)

    def _on_side_stream(self, work: Callable[[], Outputs]) -> Outputs:
        if self._job.device.type != "cuda":
            return work()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            outputs = work()
        torch.cuda.current_stream().wait_stream(side)
        return outputs

    def _step(self, inputs: Tensor, targets: Tensor | None, *, keeps_gradients: bool = False) -> Outputs:
        """A whole step of the loop, for a plain job."""
        job = self._job
        assert targets is not None
        # weights that autocast has cast must not be kept from one capture or step to the next
        with torch.autocast(
            job.device.type, dtype=job.autocast or torch.bfloat16, enabled=job.autocast is not None, cache_enabled=False
        ):
            outputs = job.model(inputs)
            losses = job.task.losses(outputs, targets)
            loss = losses.mean()
        loss.backward()
        if job.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, job.config.clip_norm)
        job.optimizer.step()
        if not keeps_gradients:
            job.optimizer.zero_grad(set_to_none=True)
        return losses.detach(), job.task.num_correct(outputs, targets)
