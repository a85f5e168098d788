"""The training loop, read from top to bottom.

Five seams are where a saving meets it, in the order in which they are called: which samples an epoch visits (the
loader's sampler), what is done to a batch (the loader's transforms), how the losses of a batch become one (``reduce``),
what is added to it (``penalty``), and what follows a step (``after_step``).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from torch import Tensor, nn

from scrimp._core.ranks import world_size
from scrimp.checkpoints import CheckpointStore
from scrimp.errors import ConfigError
from scrimp.report.record import RunStatus, RunWriter
from scrimp.steps import Batch
from scrimp.train.job import Job
from scrimp.train.journal import Journal, StepInfo
from scrimp.train.optimization import learning_rate_factor, set_learning_rate
from scrimp.train.parallel import any_rank, for_ranks, gradients_stay_local
from scrimp.train.step_graphs import step_graphs


def train(
    job: Job,
    checkpoints: CheckpointStore,
    record: RunWriter | None,
    *,
    resume: bool = False,
    on_step: Callable[[StepInfo], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[RunStatus, Journal]:
    """Train to the end, or until ``should_stop()``: then a checkpoint is saved and the status is INTERRUPTED.

    With ``resume`` training goes on from the newest checkpoint exactly as if it had never stopped. ``record`` is the
    writer of the run's metrics, on the main rank only; ``on_step`` feeds a progress display.

    Raises: NonFiniteLossError - checked wherever losses are read and before every checkpoint.
    Cost: the host waits for the device at log points, evaluations and checkpoints only.
    """
    journal = Journal(job, checkpoints, record, on_step)
    if resume:
        journal.restore()
    try:
        status = _run_epochs(job, journal, should_stop)
    except Exception as error:
        with suppress(OSError):  # the disk may be what failed
            journal.note(str(error), RunStatus.FAILED)
        raise
    if status is RunStatus.INTERRUPTED:
        journal.note("interrupted", status)
    return status, journal


def _run_epochs(job: Job, journal: Journal, should_stop: Callable[[], bool]) -> RunStatus:
    config, model, task, seams, optimizer = job.config, job.model, job.task, job.seams, job.optimizer
    wrapped = for_ranks(model, job.device, some_unused=config.compress)
    parameters = [p for p in model.parameters() if p.requires_grad]
    graphs = step_graphs(job) if config.graphs else None
    clock, num_ranks = journal.clock, world_size()
    model.train()
    clock.start()

    last_epoch = epochs_begun(config.num_epochs) - 1
    for epoch in range(math.floor(journal.epoch + 1e-9), last_epoch + 1):
        job.loader.set_epoch(epoch)
        num_steps = len(job.loader)
        if not num_steps:
            raise ConfigError(
                f"epoch {epoch} visits too few samples for one batch of {config.batch_size}; raise --keep (or lower "
                "--prune-ratio), or lower --batch-size"
            )
        batches = iter(job.loader)
        num_wanted = steps_wanted(config.num_epochs, epoch, num_steps)
        for position in range(job.loader.steps_done, num_wanted):
            # a last epoch that is only begun has a whole step, which may reach beyond the end
            progress = min(1.0, (epoch + (position + 0.5) / num_steps) / max(config.num_epochs, 1 / num_steps))
            set_learning_rate(optimizer, learning_rate_factor(config, progress))
            for before_step in seams.before_step:
                before_step(progress)
            if seams.has_changed():
                del wrapped  # first, since its hooks last as long as it does
                wrapped = for_ranks(model, job.device, some_unused=config.compress)

            with clock("data"):
                batch = job.in_size(next(batches), progress)
            if graphs is not None:  # the whole step at once
                with clock("forward"):
                    losses, num_correct = graphs(batch)
                journal.metrics.update(journal.step + 1, losses, num_correct)
            for part, is_last in _parts(batch, config.accumulation) if graphs is None else ():
                with nullcontext() if is_last else gradients_stay_local(wrapped):
                    with clock("forward"), job.precision():
                        inputs, targets = task.split(part.inputs, part.targets)
                        outputs = wrapped(inputs)
                        losses = task.losses(outputs, targets)
                        # parts and ranks may differ in size, and DDP averages over ranks
                        loss = seams.reduce(losses, part) * (len(losses) * num_ranks / batch.global_size)
                        if seams.penalty is not None and is_last:
                            loss = loss + seams.penalty(model)
                    with clock("backward"):
                        loss.backward()
                journal.metrics.update(journal.step + 1, losses, task.num_correct(outputs, targets))
                del outputs, losses, loss  # or a removal of channels would have to find out that they wait for nothing
            with clock("optimizer"):
                if graphs is None:
                    if config.clip_norm is not None:
                        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                for after_step in seams.after_step:
                    after_step(journal.step + 1)
                finished = epoch == last_epoch and position + 1 == num_wanted
                for at_end in seams.at_end if finished else ():
                    at_end()

            now = epoch + (position + 1) / num_steps
            journal.after_step(now, batch.global_size, finished=finished)
            asked_to_stop = should_stop()
            if num_ranks > 1:  # all ranks stop after the same step; on CUDA asking each time would wait for the device
                is_asking = job.device.type == "cpu" or journal.step % config.log_every == 0
                asked_to_stop = is_asking and any_rank(asked_to_stop, job.device)
            if asked_to_stop and not finished:
                journal.save(wait=True)
                return RunStatus.INTERRUPTED
    return RunStatus.FINISHED


def epochs_begun(num_epochs: float) -> int:
    """How many epochs are trained, the last of them perhaps in part."""
    return max(1, math.ceil(num_epochs - 1e-9))


def steps_wanted(num_epochs: float, epoch: int, num_steps: int) -> int:
    """How many of the ``num_steps`` of ``epoch`` are trained; at least one of a last epoch that is only begun."""
    return max(1, round(num_steps * min(1.0, num_epochs - epoch)))


def _parts(batch: Batch, num_parts: int) -> Iterator[tuple[Batch, bool]]:
    """The batch in ``num_parts`` parts of nearly equal size, each with whether it is the last."""
    if num_parts == 1:
        yield batch, True
        return

    def split(tensor: Tensor | None) -> Sequence[Any]:
        return (None,) * num_parts if tensor is None else tensor.tensor_split(num_parts)

    pieces = zip(split(batch.index), split(batch.inputs), split(batch.targets), split(batch.weights), strict=True)
    for number, (index, inputs, targets, weights) in enumerate(pieces, start=1):
        yield Batch(index, inputs, targets, weights, batch.global_size), number == num_parts
