"""What a run shows while it goes: a progress bar on a terminal, plain lines elsewhere, nothing on other ranks."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from scrimp._core.ranks import is_main
from scrimp.bits import inspect_packed
from scrimp.cli.output import output_may_vanish
from scrimp.errors import MissingDependencyError
from scrimp.report.network import profile_rows
from scrimp.report.record import RunStatus, read_run
from scrimp.report.table import summary_panel, summary_text
from scrimp.train.config import TrainConfig
from scrimp.train.data import describe
from scrimp.train.journal import StepInfo
from scrimp.train.outcome import PACKED_NAME
from scrimp.train.profiler import TRACE_NAME
from scrimp.train.run import Run, Started

_BAR_SECONDS = 0.25  # between redraws: each costs the training thread about a millisecond
_LINE_SECONDS = 10.0  # between plain lines
_NEAR_TARGET = 0.02  # how far off a size may be before that is said


class Display(Protocol):
    """The moments of a run that can be shown."""

    def on_data(self, done: int, total: int, what: str) -> None:
        """A data set is being decoded."""
        ...

    def on_start(self, started: Started) -> None:
        """Training begins."""
        ...

    def on_step(self, info: StepInfo) -> None:
        """A step was made."""
        ...

    def on_end(self, ended: Run) -> None:
        """The run finished or was interrupted."""
        ...


@contextmanager
def open_display(config: TrainConfig) -> Iterator[Display]:
    """The display that fits standard output; a bar is taken away when the block is left."""
    if not is_main() or sys.stdout is None or sys.stdout.closed:
        yield _Silent()
    elif sys.stdout.isatty():
        bar = _Bar(config)
        try:
            yield _Guarded(bar)
        finally:
            with output_may_vanish():
                bar.close()
    else:
        yield _Guarded(_Lines(config))


def start_line(started: Started) -> str:
    """What is trained on what, in one or two lines."""
    job, config = started.job, started.job.config
    precision = "bfloat16" if job.autocast is not None else "float32"
    lines = [
        describe(started.dataset),
        f"{config.model} ({started.num_parameters:,} parameters) on {job.device}, {precision}, into {started.run_dir}",
    ]
    if started.resumed_step is not None:
        step = started.resumed_step
        lines.append(f"resuming after step {step:,}" if step else "nothing was saved yet: starting anew")
    return "\n".join(lines)


def _evaluation_text(info: StepInfo) -> str:
    assert info.evaluation is not None
    text = f"test loss {info.evaluation['test_loss_nats']:.4f}"
    if "test_accuracy" in info.evaluation:
        text += f", accuracy {100 * info.evaluation['test_accuracy']:.2f} %"
    return text


def _end_lines(ended: Run) -> list[str]:
    if ended.status is RunStatus.INTERRUPTED:
        return [
            *_profile_lines(ended),
            f"interrupted after step {ended.step:,}; everything up to it is saved",
            f"continue with: scrimp train --resume --out {shlex.quote(str(ended.run_dir))}",
        ]
    if ended.was_finished:
        return [f"this run had finished already: {ended.run_dir / 'report.html'}"]
    return [
        *_profile_lines(ended),
        f"page: {ended.run_dir / 'report.html'}",
        f"model: {ended.run_dir / 'model.safetensors'}",
        *_packed_lines(ended),
    ]


def _packed_lines(ended: Run) -> list[str]:
    """The packed file, and how far off the size is that was asked for, if it is."""
    packed = ended.run_dir / PACKED_NAME
    if not packed.exists() or ended.summary is None:
        return []
    lines = [f"packed: {packed}"]
    size, target = packed.stat().st_size, read_run(ended.run_dir).config.get("target_bytes")
    if target and abs(size / target - 1) > _NEAR_TARGET:
        why = (
            "more could not be taken away: names, scales and norms need this much, or training was too short"
            if size > target
            else "fewer bytes do as well: bits end at 16"
        )
        lines.append(f"it has {size:,} bytes where --target-bytes asked for {target:,}; {why}")
    empty = [one.name for one in inspect_packed(packed).layers if one.zero_channels == one.num_channels]
    if empty:
        others = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        lines.append(
            f"nothing is left of {empty[0]}{others}: every weight is zero, and what passes through it depends on the "
            f"input no more; {'a larger --target-bytes' if target else 'a smaller --gamma'} leaves more"
        )
    return lines


def _profile_lines(ended: Run) -> list[str]:
    """What profiled steps were spent on, and where the trace is."""
    rows = profile_rows(read_run(ended.run_dir))
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [
        "where a step goes (operation, time per step, share, calls):",
        *lines,
        f"trace: {ended.run_dir / TRACE_NAME}",
    ]


class _Guarded:
    """A display that can no longer be seen stops nothing."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def on_data(self, done: int, total: int, what: str) -> None:
        with output_may_vanish():
            self._display.on_data(done, total, what)

    def on_start(self, started: Started) -> None:
        with output_may_vanish():
            self._display.on_start(started)

    def on_step(self, info: StepInfo) -> None:
        with output_may_vanish():
            self._display.on_step(info)

    def on_end(self, ended: Run) -> None:
        with output_may_vanish():
            self._display.on_end(ended)


class _Silent:
    """Ranks other than the first."""

    def on_data(self, done: int, total: int, what: str) -> None: ...
    def on_start(self, started: Started) -> None: ...
    def on_step(self, info: StepInfo) -> None: ...
    def on_end(self, ended: Run) -> None: ...


class _Lines:
    """For logs and pipes: a line at every evaluation, and one every ten seconds between."""

    def __init__(self, config: TrainConfig) -> None:
        self._num_epochs = config.num_epochs
        self._started = self._last = self._last_data = time.monotonic()
        self._first_epoch: float | None = None

    def on_data(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._last_data >= _LINE_SECONDS:
            self._last_data = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", flush=True)

    def on_start(self, started: Started) -> None:
        print(start_line(started), flush=True)
        self._started = self._last = time.monotonic()

    def on_step(self, info: StepInfo) -> None:
        if self._first_epoch is None:
            self._first_epoch = info.epoch
        now = time.monotonic()
        if info.evaluation is None and (info.train_loss is None or now - self._last < _LINE_SECONDS):
            return
        self._last = now
        parts = [f"epoch {info.epoch:.2f}/{self._num_epochs:g}", f"step {info.step:,}"]
        if info.train_loss is not None:
            parts.append(f"train loss {info.train_loss:.4f}")
        if info.evaluation is not None:
            parts.append(_evaluation_text(info))
        trained = info.epoch - self._first_epoch
        if trained > 0:
            left = (now - self._started) * max(0.0, self._num_epochs - info.epoch) / trained
            parts.append(f"{left:.0f} s left")
        print(", ".join(parts), flush=True)

    def on_end(self, ended: Run) -> None:
        if ended.summary is not None:
            print(summary_text(ended.summary))
        print("\n".join(_end_lines(ended)), flush=True)


class _Bar:
    """For terminals: a bar with loss, accuracy, examples/s and time left."""

    def __init__(self, config: TrainConfig) -> None:
        try:
            from rich.console import Console  # noqa: PLC0415 - optional package
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415
        except ImportError as error:
            raise MissingDependencyError('the progress bar needs rich: pip install "scrimp[train]"') from error
        self._num_epochs = config.num_epochs
        self._console = Console()
        # no refresh thread: it would take turns with the training threads
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._progress.start()
        self._data_task: Any = None
        self._task: Any = None
        self._train = self._test = ""
        self._last_drawn = 0.0
        self._at_speed = (0, 0.0)
        self._speed = 0.0

    def close(self) -> None:
        self._progress.stop()

    def on_data(self, done: int, total: int, what: str) -> None:
        if self._data_task is None:
            self._data_task = self._progress.add_task(what, total=total, numbers="")
        self._progress.update(
            self._data_task, completed=done, total=total, description=what, numbers=f"{done:,}/{total:,}"
        )
        self._draw(done == total)
        if done == total:
            self._progress.remove_task(self._data_task)
            self._data_task = None

    def on_start(self, started: Started) -> None:
        self._console.print(start_line(started), markup=False, highlight=False)
        self._task = self._progress.add_task("starting", total=self._num_epochs, numbers="")
        self._at_speed = (-1, time.monotonic())
        self._draw(force=True)

    def on_step(self, info: StepInfo) -> None:
        assert self._task is not None
        if info.train_loss is not None:
            self._train = f"loss {info.train_loss:.3f}"
        if info.evaluation is not None:
            accuracy = info.evaluation.get("test_accuracy")
            loss = info.evaluation["test_loss_nats"]
            self._test = f"test {100 * accuracy:.2f} %" if accuracy is not None else f"test loss {loss:.4f}"
        now = time.monotonic()
        if now - self._last_drawn < _BAR_SECONDS and info.epoch < self._num_epochs:
            return
        visits, at = self._at_speed
        if visits >= 0:
            self._speed = (info.sample_visits - visits) / max(now - at, 1e-9)
        self._at_speed = (info.sample_visits, now)
        numbers = [self._train, self._test, f"{self._speed:,.0f} examples/s" if self._speed else ""]
        self._progress.update(
            self._task,
            completed=info.epoch,
            description=f"epoch {info.epoch:.1f}/{self._num_epochs:g}",
            numbers="  ".join(filter(None, numbers)),
        )
        self._draw(force=True)

    def on_end(self, ended: Run) -> None:
        self.close()
        if ended.summary is not None:
            self._console.print(summary_panel(ended.summary))
        self._console.print("\n".join(_end_lines(ended)), markup=False, highlight=False, soft_wrap=True)

    def _draw(self, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._last_drawn >= _BAR_SECONDS:
            self._last_drawn = now
            self._progress.refresh()
