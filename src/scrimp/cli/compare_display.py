"""How a comparison gets on: a bar over all of its runs on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scrimp.cli.output import output_may_vanish
from scrimp.cli.pace import Pace, about
from scrimp.cli.run_pool import Progress, epochs_done
from scrimp.report.record import read_run
from scrimp.report.units import format_bytes, format_percent, format_seconds
from scrimp.train.comparison import PlannedRun

_BAR_SECONDS = 0.5  # between redraws
_LINE_SECONDS = (10.0, 300.0)  # between lines, at least and at most: a tenth of the time that has passed
_MOST_SHOWN = 2  # of runs that go on at the same time
_STOPPING = "stopping: what is going on saves where it is (Ctrl-C again to stop at once)"


@contextmanager
def open_progress(runs: Sequence[PlannedRun], num_at_once: int) -> Iterator[Progress]:
    """The display that fits standard output."""
    pace = Pace(runs, num_at_once, epochs_done)
    there = f", {pace.num_ended} of them there already" if pace.num_ended else ""
    at_once = f", {num_at_once} at a time" if num_at_once > 1 else ""
    print(f"{len(runs)} runs{there}{at_once}, into {runs[0].run_dir.parent}", flush=True)
    display = _Bar(pace) if sys.stdout.isatty() else _Lines(pace)
    try:
        yield _Watched(pace, display)
    finally:
        with output_may_vanish():
            display.close()


class _Watched:
    """Tells the pace before the display; a display that can no longer be seen stops nothing."""

    def __init__(self, pace: Pace, display: "_Lines | _Bar") -> None:
        self._pace, self._display = pace, display

    def on_start(self, run: PlannedRun) -> None:
        self._pace.on_start(run)

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        self._pace.on_end(run, is_finished)
        with output_may_vanish():
            self._display.on_end(run, is_finished)

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        self._pace.on_wait(going)
        with output_may_vanish():
            self._display.on_wait(going)

    def on_stop(self) -> None:
        with output_may_vanish():
            self._display.on_stop()


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


def _end_line(pace: Pace, run: PlannedRun, is_finished: bool) -> str:
    told = _told(run) if is_finished else "failed"
    return f"{pace.num_ended}/{pace.num_runs} {run.variant}, seed {run.config.seed}: {told}"


def _where(pace: Pace, going: Sequence[PlannedRun]) -> str:
    """How far the runs are that go on now."""
    texts = []
    for run in going[:_MOST_SHOWN]:
        epoch = pace.epoch(run)
        at = f"epoch {epoch:.1f}/{run.config.num_epochs:g}" if epoch else "starting"
        texts.append(f"{run.variant}, seed {run.config.seed}: {at}")
    more = len(going) - len(texts)
    return "; ".join(texts) + (f"; {more} more" if more else "")


def _rest(pace: Pace) -> str:
    seconds = pace.seconds_left()
    return "" if seconds is None else f"about {about(seconds)} left"


class _Lines:
    """For logs and pipes: a line when a run has ended, and now and then one between."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._started = self._last = time.monotonic()

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        self._last = time.monotonic()
        print(_end_line(self._pace, run, is_finished), flush=True)

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        now = time.monotonic()
        least, most = _LINE_SECONDS
        if now - self._last < min(most, max(least, (now - self._started) / 10)):
            return
        self._last = now
        done = f"{self._pace.num_ended}/{self._pace.num_runs} done"
        print(", ".join(filter(None, [done, _where(self._pace, going), _rest(self._pace)])), flush=True)

    def on_stop(self) -> None:
        print(_STOPPING, flush=True)

    def close(self) -> None: ...


class _Bar:
    """For terminals: one bar over the epochs of all runs, and a line for each run that has ended."""

    def __init__(self, pace: Pace) -> None:
        from rich.console import Console  # noqa: PLC0415 - optional package
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._pace = pace
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None),
            TextColumn("{task.fields[where]}", markup=False), TextColumn("{task.fields[rest]}"),
            console=Console(), auto_refresh=False, transient=True,
        )  # fmt: skip
        self._task: Any = self._progress.add_task("", total=1.0, where="", rest="")
        self._progress.start()
        self._drawn = 0.0

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        line = _end_line(self._pace, run, is_finished)
        self._progress.console.print(line, markup=False, highlight=False)

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        now = time.monotonic()
        if now - self._drawn < _BAR_SECONDS:
            return
        self._drawn = now
        self._progress.update(
            self._task, description=f"{self._pace.num_ended}/{self._pace.num_runs}",
            completed=self._pace.fraction_done(), where=_where(self._pace, going), rest=_rest(self._pace),
        )  # fmt: skip
        self._progress.refresh()

    def on_stop(self) -> None:
        self._progress.console.print(_STOPPING, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
