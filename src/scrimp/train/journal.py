"""What a run writes down while it trains: metric lines, checkpoints, and where its time went."""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp._core.ranks import is_main, rank, world_size
from scrimp._core.rng import capture_global_rng, restore_global_rng
from scrimp.bits import SizeReport
from scrimp.checkpoints import CheckpointInfo, CheckpointStore, SaveReport
from scrimp.checkpoints.reports import by_role
from scrimp.errors import ConfigError, CorruptCheckpointError, NonFiniteLossError
from scrimp.report.record import RunStatus, RunWriter, read_run
from scrimp.train.compression import Compressor
from scrimp.train.evaluation import evaluate
from scrimp.train.job import Job, Stateful
from scrimp.train.metrics import RunningMetrics
from scrimp.train.parallel import any_rank, from_all_ranks
from scrimp.train.timing import PhaseClock


@dataclass(frozen=True)
class StepInfo:
    """What a progress display can show after a step. Losses are there only after the steps that read them."""

    step: int
    epoch: float
    sample_visits: int
    train_loss: float | None = None
    train_accuracy: float | None = None
    evaluation: Mapping[str, float] | None = None


class Journal:
    """Counts, logs, evaluates and saves for the loop; holds all of a run's state that is not in model or optimizer.

    ``record`` is given on the main rank only; every rank takes part in evaluation and saving.
    """

    def __init__(
        self,
        job: Job,
        checkpoints: CheckpointStore,
        record: RunWriter | None,
        on_step: Callable[[StepInfo], None] | None,
    ) -> None:
        self.job, self.checkpoints, self.record, self.on_step = job, checkpoints, record, on_step
        self.clock, self.metrics = PhaseClock(job.device), RunningMetrics(job.device)
        self.step = 0
        self.epoch = 0.0
        self.sample_visits = 0
        self.evaluation: dict[str, float] = {}
        self._saved_step = -1
        self._at_save: dict[int, dict[str, float]] = {}  # of checkpoints that are being written behind training
        self._at_log = (0, 0.0)  # visits and seconds at the last log line
        self._at_epoch: tuple[int, dict[str, float]] = (0, self.clock.seconds())

    def after_step(self, epoch: float, num_samples: int, *, finished: bool) -> None:
        """Count a step that ended ``epoch`` epochs into the run (and ``finished`` it), and do what is due then."""
        before, self.epoch = self.epoch, epoch
        self.step += 1
        self.sample_visits += num_samples
        config = self.job.config
        read: dict[str, float] = {}
        if finished or self.step % config.log_every == 0:
            read = self._log_step()
        evaluation = None
        if finished or _due(config.evaluate_every, before, epoch):
            evaluation = self._evaluate()
        if _due(1.0, before, epoch) or finished:
            self._log_epoch()
        if finished or _due(config.checkpoint_every, before, epoch):
            self.save(wait=finished)
        if self.on_step is not None:
            loss, accuracy = read.get("loss"), read.get("accuracy")
            self.on_step(StepInfo(self.step, epoch, self.sample_visits, loss, accuracy, evaluation))

    def save(self, *, wait: bool = False) -> None:
        """Write a checkpoint of the present step, unless it is there already; ``wait`` until it is on disk.

        Raises: NonFiniteLossError - a loss, a weight or a moment is not finite; nothing is written, so that the newest
            checkpoint is always one from which training can go on.
        """
        if self._saved_step == self.step:
            if wait:
                self._write_finished()
            return
        with self.clock("checkpoint"):
            self.metrics.check_finite()
            self._check_weights_are_finite()
            for prepare in self.job.seams.before_save:
                prepare()
            rng = from_all_ranks(capture_global_rng())
            if is_main():
                self._write_to_disk(rng, wait=wait or not self.job.config.checkpoint_async)
        self._saved_step = self.step

    def note(self, text: str, status: RunStatus | None = None) -> None:
        """Leave a remark in the record."""
        if self.record is not None:
            self.record.note(text, step=self.step, epoch=self.epoch, seconds=self.clock.train_seconds(), status=status)

    def note_sizes(self, report: SizeReport, compressor: Compressor) -> None:
        """Write down what compression has left of each layer, and what the packed file consists of."""
        left = {one.name: one for one in report.layers}
        layers = [
            [
                name,
                *before,
                *((one.num_channels, one.num_weights, one.code_bits) if (one := left.get(name)) else (0,) * 3),
            ]
            for name, before in compressor.layers_before.items()
        ]
        layers = [[name, was, now, had, has, bits] for name, was, had, now, has, bits in layers]
        waiting = {one.name: one.zero_channels for one in report.layers if one.zero_channels}
        parts = {
            name: getattr(report, f"{name}_bytes")
            for name in ("packed", "code", "scale", "tensor", "header", "float32", "original")
        }
        self.write(
            "compression",
            layers=layers,
            waiting=waiting,
            edges=compressor.edges,
            **{f"{name}_bytes": size for name, size in parts.items()},
        )

    def restore(self) -> None:
        """Take up the newest checkpoint: model, optimizer, order of samples, random state, counts, clock."""
        try:
            for name, prepare in self.job.seams.before_restore.items():
                prepare(self.checkpoints.load()["extra"]["stateful"][name])
            state = self.checkpoints.restore(model=self.job.model, optimizer=self.job.optimizer)
        except CorruptCheckpointError as error:
            *older, newest = self.checkpoints.steps()
            then = f"go on from step {older[-1]}, as the history has it" if older else "start the run anew"
            command = f"scrimp checkpoints delete {shlex.quote(self.checkpoints.path)} {newest}"
            raise CorruptCheckpointError(f"{error}. To {then}: {command}") from error
        if state["world_size"] != world_size():
            raise ConfigError(
                f"the run was started on {state['world_size']} processes and would go on with {world_size()}; resume "
                f"it on as many: torchrun --nproc-per-node {state['world_size']} -m scrimp train --resume ..."
            )
        if state["data_checksum"] != self.job.data_checksum:
            raise ConfigError(
                f"the data {self.job.config.data!r} is not what the run was started with (its checksum is another); "
                "put the former data back, or start a new run with another --out"
            )
        self.step, self.epoch, self.sample_visits = state["step"], state["epoch"], state["sample_visits"]
        self.evaluation = state["evaluation"]
        self._saved_step = self.step
        for name, item in self._stateful().items():
            item.load_state_dict(state["stateful"][name])
        self._at_log = (state["log_visits"], state["log_seconds"])
        self._at_epoch = (state["epoch_visits"], state["epoch_seconds"])
        if self.record is not None:
            self.record.truncate_after(self.step)
            lines = read_run(self.record.run_dir).events("checkpoint")
            if not any(line["step"] == self.step for line in lines):  # killed between saving and noting it
                info, tensors = self.checkpoints.describe(self.step), self.checkpoints.tensors(self.step)
                self._write_saved(info, by_role(tensors))
        self.note(f"resumed from the checkpoint of step {self.step}")
        restore_global_rng(state["rng"][rank()])

    def _state(self, rng: list[Any]) -> dict[str, Any]:
        return {
            "step": self.step, "epoch": self.epoch, "sample_visits": self.sample_visits,
            "evaluation": self.evaluation, "data_checksum": self.job.data_checksum,
            "log_visits": self._at_log[0], "log_seconds": self._at_log[1],
            "epoch_visits": self._at_epoch[0], "epoch_seconds": self._at_epoch[1],
            "stateful": {name: item.state_dict() for name, item in self._stateful().items()},
            "rng": rng, "world_size": world_size(),
        }  # fmt: skip

    def _check_weights_are_finite(self) -> None:
        named: dict[str, Tensor] = dict(self.job.model.named_parameters())
        names = {tensor: name for name, tensor in named.items()}
        for parameter, slots in self.job.optimizer.state.items():
            moments = {slot: value for slot, value in slots.items() if isinstance(value, Tensor)}
            named.update({f"{slot} of {names.get(parameter, '?')}": value for slot, value in moments.items()})
        floating = {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}
        finite = torch.stack([torch.isfinite(tensor).all().to(self.job.device) for tensor in floating.values()])
        if any_rank(not bool(finite.all()), self.job.device):
            bad = [name for name, is_finite in zip(floating, finite.tolist(), strict=True) if not is_finite]
            raise NonFiniteLossError(
                f"{bad[0] if bad else 'a weight on another process'} became NaN or infinite by step {self.step}; "
                "training was stopped; what was saved before is intact. Lower --learning-rate or set --clip-norm"
            )

    def _stateful(self) -> dict[str, Stateful]:
        own: dict[str, Stateful] = {"loader": self.job.loader, "clock": self.clock, "metrics": self.metrics}
        return {**own, **self.job.seams.state}

    def write(self, event: str, **values: Any) -> None:
        """Append a line to the record, as of the present step."""
        if self.record is not None:
            self.record.write(event, step=self.step, epoch=self.epoch, seconds=self.clock.train_seconds(), **values)

    def _write_to_disk(self, rng: list[Any], *, wait: bool) -> None:
        self._write_finished()
        model, optimizer = self.job.model, self.job.optimizer
        report = self.checkpoints.save(
            self.step, model=model, optimizer=optimizer, extra=self._state(rng), wait=wait,
            change=self.job.seams.take_change(),
        )  # fmt: skip
        if report is not None:
            self._write_saved(report, report.by_role())
        else:
            self._at_save[self.step] = {"epoch": self.epoch, "seconds": self.clock.train_seconds()}

    def _write_finished(self) -> None:
        """Lines of checkpoints that were written behind training; waits for the one that is being written."""
        for report in self.checkpoints.wait():
            self._write_saved(report, report.by_role(), **self._at_save.pop(report.step))

    def _write_saved(self, saved: SaveReport | CheckpointInfo, roles: Mapping[str, Any], **at: float) -> None:
        values: dict[str, Any] = {
            "raw_bytes": saved.raw_bytes, "stored_bytes": saved.stored_bytes, "history_bytes": saved.history_bytes,
            "exact_bytes": saved.exact_bytes, "is_keyframe": saved.is_keyframe, "by_role": roles,
        }  # fmt: skip
        if isinstance(saved, SaveReport):
            values |= {"save_seconds": saved.seconds, "held_seconds": saved.held_seconds}
        if self.record is not None:
            now = {"epoch": self.epoch, "seconds": self.clock.train_seconds()}
            self.record.write("checkpoint", step=saved.step, **{**now, **at}, **values)

    def _log_step(self) -> dict[str, float]:
        read = self.metrics.read()
        visits, seconds = self._at_log
        self._at_log = (self.sample_visits, self.clock.step_seconds())
        accuracy = {"train_accuracy": read["accuracy"]} if self.job.task.kind == "images" else {}
        more = {name: value for log in self.job.seams.log for name, value in log().items()}
        self.write(
            "step",
            train_loss=read["loss"], **accuracy, learning_rate=self.job.optimizer.param_groups[0]["lr"],
            examples_per_second=(self._at_log[0] - visits) / max(self._at_log[1] - seconds, 1e-9), **more,
        )  # fmt: skip
        return read

    def _evaluate(self) -> dict[str, float]:
        with self.clock("evaluation"):
            self.evaluation = evaluate(self.job)
        if not math.isfinite(self.evaluation["test_loss_nats"]):
            raise NonFiniteLossError(
                f"the test loss is {self.evaluation['test_loss_nats']} after step {self.step}; training was "
                "stopped; what was saved before is intact. Lower --learning-rate or set --clip-norm"
            )
        self.write("evaluation", **self.evaluation)
        return self.evaluation

    def _log_epoch(self) -> None:
        visits, before = self._at_epoch
        now = self.clock.seconds()
        self._at_epoch = (self.sample_visits, now)
        spent = {f"{phase}_seconds": now[phase] - before[phase] for phase in now}
        if self.record is None:
            return
        facts = {key: value for facts_of in self.job.seams.epoch_facts for key, value in facts_of(self.job).items()}
        num_visits = self.sample_visits - visits
        self.write("epoch", epoch_seconds=sum(spent.values()), sample_visits=num_visits, **spent, **facts)
        if scales := norm_scales(self.job.model):
            self.write("norms", **scales)


def norm_scales(model: nn.Module) -> dict[str, float]:
    """How the trainable scales of all batch norms spread; empty if there are none. Cost: one host sync."""
    found = [m.weight.detach().flatten().float() for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    trainable = any(m.weight.requires_grad for m in model.modules() if isinstance(m, _BatchNorm) and m.affine)
    if not trainable:
        return {}
    at = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    values = torch.quantile(torch.cat(found).cpu(), at).tolist()
    return dict(zip(("least", "tenth", "median", "ninetieth", "greatest"), values, strict=True))


def _due(every: float, before: float, after: float) -> bool:
    """Whether a multiple of ``every`` lies in (before, after]; pure, so that a resumed run agrees."""
    return math.floor(after / every + 1e-9) > math.floor(before / every + 1e-9)
