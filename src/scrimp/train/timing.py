"""Where the time of a run goes: a clock with named phases that does not slow down what it measures."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "checkpoint")


class PhaseClock:
    """Seconds spent in each of ``PHASES`` and in total.

    On the CPU a phase is the time between two readings of a clock. On CUDA work runs behind the host, so a phase is
    bracketed by two events whose distance is read in ``seconds()``: the only place that waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._before = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Begin to count the total."""
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what runs inside the ``with`` block as ``phase``."""
        if self._on_cuda:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            yield
            last.record()
            self._pending.append((phase, first, last))
        else:
            started = time.perf_counter()
            yield
            self._spent[phase] += time.perf_counter() - started

    def total_seconds(self) -> float:
        """Seconds since the start, those of an earlier, interrupted part of the run included. Does not wait."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    def step_seconds(self) -> float:
        """The total without evaluations and checkpoints; on CUDA without those that were read already."""
        return self.total_seconds() - self._spent["evaluation"] - self._spent["checkpoint"]

    def train_seconds(self) -> float:
        """The total without evaluation."""
        return self.total_seconds() - self._spent["evaluation"]

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and ``other``, the rest of the total. Waits for the device on CUDA."""
        if self._pending:
            torch.cuda.synchronize()
            for phase, first, last in self._pending:
                self._spent[phase] += first.elapsed_time(last) / 1000
            self._pending.clear()
        spent = dict(self._spent)
        spent["other"] = max(0.0, self.total_seconds() - sum(spent.values()))
        return spent

    def state_dict(self) -> dict[str, float]:
        """Seconds so far, so that a resumed run goes on counting."""
        return {**self.seconds(), "total": self.total_seconds()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from ``state``."""
        self._spent = {phase: state[phase] for phase in PHASES}
        self._before = state["total"]
        self._pending.clear()
