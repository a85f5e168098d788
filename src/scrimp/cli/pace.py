"""How far a comparison is, and how long the rest of it will take at the speed seen so far."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scrimp.train.comparison import PlannedRun


@dataclass
class _Seen:
    """A run that was watched: from which epoch on, since when, and how far it has come."""

    run: PlannedRun
    first_epoch: float
    started: float
    epoch: float
    seconds: float = 0.0


class Pace:
    """Watches the runs of a comparison; ``epochs_done`` tells how far one is."""

    def __init__(
        self, runs: Sequence[PlannedRun], num_at_once: int, epochs_done: Callable[[PlannedRun], float]
    ) -> None:
        self.num_runs = len(runs)
        self._unfinished = {run.run_dir: run for run in runs if not run.is_finished}
        self._num_at_once, self._epochs_done = num_at_once, epochs_done
        self._seen: dict[Path, _Seen] = {}
        self._total = sum(run.config.num_epochs for run in runs)

    @property
    def num_ended(self) -> int:
        """Runs that have finished or failed."""
        return self.num_runs - len(self._unfinished)

    def on_start(self, run: PlannedRun) -> None:
        """``run`` begins, or goes on from where it was."""
        epoch = self._epochs_done(run)
        self._seen[run.run_dir] = _Seen(run, epoch, time.monotonic(), epoch)

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        """Look how far those are that are going on."""
        for run in going:
            seen = self._seen[run.run_dir]
            seen.epoch = max(seen.epoch, self._epochs_done(run))
            seen.seconds = time.monotonic() - seen.started

    def on_end(self, run: PlannedRun) -> None:
        """``run`` has ended; one that failed is counted as if it had been made, since nobody will go on with it now."""
        del self._unfinished[run.run_dir]
        seen = self._seen[run.run_dir]
        seen.epoch, seen.seconds = run.config.num_epochs, time.monotonic() - seen.started

    def epoch(self, run: PlannedRun) -> float:
        """How far ``run`` was when it was last looked at."""
        seen = self._seen.get(run.run_dir)
        return 0.0 if seen is None else seen.epoch

    def fraction_done(self) -> float:
        """Of the epochs of all runs."""
        return 1 - sum(map(self._epochs_left, self._unfinished.values())) / self._total

    def seconds_left(self) -> float | None:
        """About how long the rest takes; None before anything was seen.

        A variant takes what it took with other seeds, or what all runs took on average, per epoch.
        """
        mean = self._seconds_per_epoch(list(self._seen.values()))
        if mean is None:
            return None
        rates = {
            variant: self._seconds_per_epoch([seen for seen in self._seen.values() if seen.run.variant == variant])
            for variant in {run.variant for run in self._unfinished.values()}
        }
        left = [self._epochs_left(run) * (rates[run.variant] or mean) for run in self._unfinished.values()]
        # no sooner than the longest of them
        return max(sum(left) / self._num_at_once, max(left, default=0.0))

    def _epochs_left(self, run: PlannedRun) -> float:
        return max(0.0, run.config.num_epochs - self.epoch(run))

    @staticmethod
    def _seconds_per_epoch(seen: Sequence[_Seen]) -> float | None:
        epochs = sum(one.epoch - one.first_epoch for one in seen)
        return sum(one.seconds for one in seen) / epochs if epochs > 0 else None


def about(seconds: float) -> str:
    """A length of time that is only guessed: ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(10 * round(minutes / 10), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
