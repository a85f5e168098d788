"""How a comparison gets on: a bar over all of its runs on a terminal, a line per run elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from scrimp.cli.run_pool import epochs_done
from scrimp.report.record import read_run
from scrimp.report.units import format_bytes, format_percent, format_seconds
from scrimp.train.comparison import PlannedRun


class Progress(Protocol):
    """The moments of a comparison that can be shown."""

    def on_start(self, run: PlannedRun) -> None:
        """A run begins, or goes on."""
        ...

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        """A run has ended."""
        ...

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        """Time passes."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


@contextmanager
def open_progress(runs: Sequence[PlannedRun], num_at_once: int) -> Iterator[Progress]:
    """The display that fits standard output."""
    num_there = sum(run.is_finished for run in runs)
    there = f", {num_there} of them there already" if num_there else ""
    at_once = f", {num_at_once} at a time" if num_at_once > 1 else ""
    print(f"{len(runs)} runs{there}{at_once}, into {runs[0].run_dir.parent}", flush=True)
    progress: Progress = _Bar(runs) if sys.stdout.isatty() else _Lines(runs)
    try:
        yield progress
    finally:
        progress.close()


def _told(run: PlannedRun) -> str:
    """What a finished run reached and spent, in a line."""
    summary = read_run(run.run_dir).summary
    if summary is None:
        return "ended"
    accuracy, loss = summary.test_accuracy, summary.test_loss_nats
    result = f"test loss {loss:.4f}" if accuracy is None else f"accuracy {format_percent(accuracy)}"
    size = summary.model_float32_bytes if summary.model_packed_bytes is None else summary.model_packed_bytes
    visited = f"{summary.sample_visits:,} visits"
    return f"{result}, {visited}, {format_seconds(summary.train_seconds)}, model {format_bytes(size)}"


class _Lines:
    """For logs and pipes."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._total, self._done = len(runs), sum(run.is_finished for run in runs)

    def on_start(self, run: PlannedRun) -> None: ...

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        self._done += 1
        told = _told(run) if is_finished else "failed"
        print(f"{self._done}/{self._total} {run.variant}, seed {run.config.seed}: {told}", flush=True)

    def on_wait(self, going: Sequence[PlannedRun]) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """For terminals: one bar over the epochs of all runs, and a line for each run that has finished."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        from rich.console import Console  # noqa: PLC0415 - optional package
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._done: float = sum(run.config.num_epochs for run in runs if run.is_finished)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn(),
            console=Console(), auto_refresh=False, transient=True,
        )  # fmt: skip
        total = sum(run.config.num_epochs for run in runs)
        self._task: Any = self._progress.add_task("starting", total=total)
        self._progress.start()
        self._drawn = 0.0

    def on_start(self, run: PlannedRun) -> None:
        pass

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        self._done += run.config.num_epochs
        told = _told(run) if is_finished else "failed"
        self._progress.console.print(f"{run.variant}, seed {run.config.seed}: {told}", markup=False, highlight=False)

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        now = time.monotonic()
        if now - self._drawn < 0.5:
            return
        self._drawn = now
        names = ", ".join(f"{run.variant} {run.config.seed}" for run in going)
        completed = self._done + sum(map(epochs_done, going))
        self._progress.update(self._task, description=names, completed=completed)
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()
