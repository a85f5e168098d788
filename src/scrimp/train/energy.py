"""The energy that a machine says it has used: the counters of processors (RAPL) and of NVIDIA GPUs (NVML).

Counters are of whole packages and whole GPUs: whatever else runs there is in them too.
"""

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, of the processor packages and, on CUDA, of the GPU; ``None`` if no counter is readable.

    A package's counter begins anew every few minutes to hours, so ``joules`` has to be asked for now and then.
    Cost: a few small files are read.
    """

    def __init__(self, device: torch.device, powercap: Path = _POWERCAP) -> None:
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
        self._gpu = _gpu_counter(device)
        self._last = [_read_number(zone / "energy_uj") for zone in self._packages]
        self._packages = [zone for zone, last in zip(self._packages, self._last, strict=True) if last is not None]
        self._last = [last for last in self._last if last is not None]
        self._gpu_start = None if self._gpu is None else self._gpu()
        self._microjoules = 0.0

    def joules(self) -> float | None:
        """Energy so far."""
        for number, zone in enumerate(self._packages):
            now, last = _read_number(zone / "energy_uj"), self._last[number]
            if now is None or last is None:
                continue
            span = _read_number(zone / "max_energy_range_uj") or 0
            self._microjoules += now - last if now >= last else now - last + span
            self._last[number] = now
        if not self._packages and self._gpu is None:
            return None
        gpu = 0.0 if self._gpu is None or self._gpu_start is None else self._gpu() - self._gpu_start
        return self._microjoules / 1e6 + gpu


def _is_package(zone: Path) -> bool:
    """Packages are ``intel-rapl:N``; cores and memory inside one are ``intel-rapl:N:M``."""
    return zone.name.count(":") == 1


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _gpu_counter(device: torch.device) -> Any:
    """A function that reads the GPU's counter in joules; ``None`` where there is none."""
    if device.type != "cuda":
        return None
    with suppress(Exception):  # whatever is missing: the package, the driver, the counter of this GPU
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    return None
