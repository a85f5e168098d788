"""Devices, precision, determinism, seeds: decided once, and put back."""

import random
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from scrimp.errors import ConfigError
from scrimp.train import hardware
from scrimp.train.hardware import (
    choose_autocast,
    choose_device,
    deterministic_kernels,
    has_native_bfloat16,
    peak_memory_bytes,
    seeded,
)

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(*, num_cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_auto_takes_the_fastest(machine: Any) -> None:
    machine()
    assert choose_device("auto") == CPU
    machine(mps=True)
    assert choose_device("auto") == torch.device("mps")
    machine(num_cuda=4, mps=True)
    assert choose_device("auto", local_rank=2) == torch.device("cuda", 2)


def test_devices_by_name(machine: Any) -> None:
    machine(num_cuda=2, mps=True)
    assert choose_device("cpu", local_rank=1) == CPU
    assert choose_device("cuda", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    assert choose_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "sees no CUDA device here; use --device cpu or auto"), ("cuda:1", "sees no CUDA device"),
     ("mps", "sees no MPS device"), ("gpu", "must be auto, cpu, cuda"), ("meta", "must be auto, cpu, cuda"),
     ("", "must be auto, cpu, cuda"), ("cuda:x", "must be auto, cpu, cuda")],
)  # fmt: skip
def test_devices_that_are_not_there_are_refused(machine: Any, name: str, message: str) -> None:
    machine()
    with pytest.raises(ConfigError, match=f"device is '{name}'.*{message}"):
        choose_device(name)


def test_more_cuda_devices_than_there_are(machine: Any) -> None:
    machine(num_cuda=2)
    with pytest.raises(ConfigError, match="there are only 2 CUDA devices"):
        choose_device("cuda:2")
    with pytest.raises(ConfigError, match="there are only 2 CUDA devices"):
        choose_device("cuda", local_rank=2)


@pytest.mark.parametrize("native", [True, False])
def test_precision(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(hardware, "has_native_bfloat16", lambda device: native)
    assert choose_autocast("auto", CPU) is (torch.bfloat16 if native else None)
    assert choose_autocast("bfloat16", CPU) is torch.bfloat16
    assert choose_autocast("float32", CPU) is None


def test_native_bfloat16_is_a_fact_of_the_machine() -> None:
    flags = set(psutil.Process().environ()) and _cpu_flags()
    if flags:
        assert has_native_bfloat16(CPU) == bool(flags & {"avx512_bf16", "amx_tile"})
    assert has_native_bfloat16(torch.device("mps")) is False


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:  # noqa: PTH123
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def determinism() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
    )  # fmt: skip


def test_deterministic_kernels_only_inside() -> None:
    before = determinism()
    with deterministic_kernels(True):
        assert determinism() == (True, False, False, True)
    assert determinism() == before
    with deterministic_kernels(False):
        assert determinism() == before


def test_deterministic_kernels_are_put_back_after_an_error() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(KeyError), deterministic_kernels(True):
            raise KeyError
        assert determinism() == (True, True, True, False)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002


def test_seeded_draws_repeat_and_leave_no_trace() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    drawn = []
    for seed in (3, 3, 4, 2**63 - 1):
        with seeded(seed, CPU):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert len({value for one in drawn for value in one}) == 9
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


def test_seeded_leaves_no_trace_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(IndexError), seeded(1, CPU):
        torch.rand(3)[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_peak_memory_is_in_bytes() -> None:
    resident = psutil.Process().memory_info().rss
    # the kernel counts pages per thread and adds them up now and then
    assert 0.9 * resident <= peak_memory_bytes() < psutil.virtual_memory().total
    assert resident > 50e6  # kilobytes would not come near it
