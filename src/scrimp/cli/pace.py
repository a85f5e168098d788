"""How far a comparison is, and how long the rest of it will take at the speed seen so far."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scrimp.train.comparison import PlannedRun


@dataclass
class _Seen:
    """A run that was watched: when it started, how far it was when it was first seen to get on, and how far it is."""

    run: PlannedRun
    started: float
    epoch: float
    seconds: float = 0.0
    first: tuple[float, float] | None = None  # epoch and seconds; what was before is the start of a process

    def look(self, epoch: float) -> None:
        """It is at ``epoch`` now."""
        self.seconds = time.monotonic() - self.started
        if epoch > self.epoch:
            self.epoch = epoch
            self.first = self.first or (epoch, self.seconds)

    @property
    def trained(self) -> tuple[float, float]:
        """Epochs, and the seconds that they took."""
        epoch, seconds = self.first or (self.epoch, self.seconds)
        return self.epoch - epoch, self.seconds - seconds


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
        self._seen[run.run_dir] = _Seen(run, time.monotonic(), self._epochs_done(run))

    def on_wait(self, going: Sequence[PlannedRun]) -> None:
        """Look how far those are that are going on."""
        for run in going:
            self._seen[run.run_dir].look(self._epochs_done(run))

    def on_end(self, run: PlannedRun, is_finished: bool) -> None:
        """``run`` has ended; nothing is left of one that failed, but only the epochs that it made tell of its speed."""
        del self._unfinished[run.run_dir]
        self._seen[run.run_dir].look(run.config.num_epochs if is_finished else self._epochs_done(run))

    def epoch(self, run: PlannedRun) -> float:
        """How far ``run`` was when it was last looked at."""
        seen = self._seen.get(run.run_dir)
        return 0.0 if seen is None else seen.epoch

    def fraction_done(self) -> float:
        """Of the epochs of all runs."""
        return 1 - sum(map(self._epochs_left, self._unfinished.values())) / self._total

    def seconds_left(self) -> float | None:
        """About how long the rest takes; None before anything was seen.

        An epoch of a variant takes what it took with other seeds, or else what it took in all runs on average. Runs
        that have not begun take as long to start as the others did.
        """
        seen = list(self._seen.values())
        mean, starts = _seconds_per_epoch(seen), [one.first[1] for one in seen if one.first is not None]
        if mean is None:
            return None
        of_variant = {
            variant: _seconds_per_epoch([one for one in seen if one.run.variant == variant])
            for variant in {run.variant for run in self._unfinished.values()}
        }
        left = [self._epochs_left(run) * (of_variant[run.variant] or mean) for run in self._unfinished.values()]
        is_waiting = [run.run_dir not in self._seen for run in self._unfinished.values()]
        left = [one + is_new * sum(starts) / len(starts) for one, is_new in zip(left, is_waiting, strict=True)]
        # no sooner than the longest of them
        return max(sum(left) / self._num_at_once, max(left, default=0.0))

    def _epochs_left(self, run: PlannedRun) -> float:
        return max(0.0, run.config.num_epochs - self.epoch(run))


def _seconds_per_epoch(seen: Sequence[_Seen]) -> float | None:
    epochs, seconds = (sum(values) for values in zip((0.0, 0.0), *(one.trained for one in seen), strict=True))
    return seconds / epochs if epochs > 0 else None


def about(seconds: float) -> str:
    """A length of time that is only guessed: ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(10 * round(minutes / 10), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
