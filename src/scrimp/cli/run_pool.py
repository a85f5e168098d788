"""Training runs in processes of their own, several at once if wanted; each leaves a directory and can go on later."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from scrimp.report.record import METRICS_NAME
from scrimp.train.comparison import PlannedRun
from scrimp.train.outcome import command_line

LOGS_DIR = "logs"
_POLL_SECONDS = 0.1
_TAIL_BYTES = 4096


class Progress(Protocol):
    """The moments of a comparison that can be shown."""

    def on_start(self, run: PlannedRun) -> None:
        """A run begins, or goes on."""
        ...

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        """A run has ended."""
        ...

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        """Time passes, ten times a second."""
        ...

    def on_stop(self) -> None:
        """The runs that are going on are asked to save and end."""
        ...


@dataclass(frozen=True)
class Failure:
    """A run that ended without a summary: what it said last, and where the rest is."""

    run: PlannedRun
    message: str
    log: Path


@dataclass
class _Process:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    log: Path
    file: IO[bytes]


def carry_out(runs: Sequence[PlannedRun], num_at_once: int, progress: Progress) -> list[Failure]:
    """Make those of ``runs`` that have not finished, in their order, at most ``num_at_once`` together.

    A run that was begun goes on. Failures do not stop the others; they are returned.

    Raises: KeyboardInterrupt - after all runs have saved where they are, and ended; a second one ends them at once.
    """
    waiting = [run for run in runs if not run.is_finished]
    going: list[_Process] = []
    failures: list[Failure] = []
    try:
        while waiting or going:
            while waiting and len(going) < num_at_once:
                going.append(_begin(waiting.pop(0)))
                progress.on_start(going[-1].run)
            time.sleep(_POLL_SECONDS)
            progress.on_wait([one.run for one in going])
            for one in [one for one in going if one.process.poll() is not None]:
                going.remove(one)
                failure = _end(one)
                failures += [] if failure is None else [failure]
                progress.on_end(one.run, failure is None)
    except BaseException:
        _stop(going, progress)
        raise
    return failures


def epochs_done(run: PlannedRun) -> float:
    """How far a run is, by the last whole line of its record."""
    try:
        with (run.run_dir / METRICS_NAME).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            tail = file.read().decode(errors="replace")
    except OSError:
        return 0.0
    _, found, rest = tail.rpartition('"epoch": ')
    number = rest.split(",")[0].strip(" }\n")
    try:
        return float(number) if found else 0.0
    except ValueError:
        return 0.0


def _begin(run: PlannedRun) -> _Process:
    where = ["--out", str(run.run_dir)]
    # what is run is what the summary tells to run
    words = ["train", "--resume"] if run.is_begun else shlex.split(command_line(run.config))[1:]
    log = run.run_dir.parent / LOGS_DIR / f"{run.run_dir.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("wb")
    # a session of its own: Ctrl-C reaches it through us, once
    process = subprocess.Popen(
        [sys.executable, "-m", "scrimp", *words, *where],
        stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    return _Process(run, process, log, file)


def _end(one: _Process) -> Failure | None:
    """Tidy up after a process that has ended."""
    one.file.close()
    if one.process.returncode == 0 and one.run.is_finished:
        one.log.unlink(missing_ok=True)
        if not any(one.log.parent.iterdir()):
            one.log.parent.rmdir()
        return None
    lines = one.log.read_text(errors="replace").strip().splitlines()
    message = lines[-1] if lines else f"ended with exit code {one.process.returncode}"
    return Failure(one.run, message.removeprefix("scrimp: error: ").removeprefix("scrimp: "), one.log)


def _stop(going: Sequence[_Process], progress: Progress) -> None:
    """Ask all to save and end, and wait until they have; asked again, end them at once."""
    try:
        for one in going:
            one.process.send_signal(signal.SIGINT)
        progress.on_stop()
        for one in going:
            one.process.wait()
    except BaseException:
        for one in going:
            one.process.kill()
            one.process.wait()
        raise
    finally:
        for one in going:
            _end(one)
