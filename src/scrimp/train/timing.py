"""Where the time of a run goes: a clock with named phases that does not slow down what it measures."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from scrimp.train.energy import EnergyMeter

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
        self._before = self._cpu_before = self._joules_before = 0.0
        self._started: float | None = None
        self._cpu_started = 0.0
        self._device, self._meter = device, EnergyMeter(device)

    def start(self) -> None:
        """Begin to count the total."""
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._meter = EnergyMeter(self._device)

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

    def cpu_seconds(self) -> float:
        """Processor seconds of all threads of this process since the start, those of an earlier part included."""
        return self._cpu_before + (0.0 if self._started is None else time.process_time() - self._cpu_started)

    def joules(self) -> float | None:
        """Energy since the start, as far as the machine tells; to be asked for now and then."""
        used = self._meter.joules()
        return None if used is None else self._joules_before + used

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
        more = {"total": self.total_seconds(), "cpu": self.cpu_seconds(), "joules": self.joules() or 0.0}
        return {**self.seconds(), **more}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from ``state``."""
        self._spent = {phase: state[phase] for phase in PHASES}
        self._before = state["total"]
        self._cpu_before, self._joules_before = state.get("cpu", 0.0), state.get("joules", 0.0)
        self._pending.clear()
