"""Which device, which precision, how deterministic: what the hardware at hand can do, decided in one place."""

import random
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from scrimp._core.rng import capture_global_rng, restore_global_rng
from scrimp.errors import ConfigError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU. Raises ConfigError when the device asked for is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}: it must be auto, cpu, cuda, cuda:N or mps (--device)") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device is {name!r}, but torch {torch.__version__} sees no CUDA device here; use --device cpu or auto"
            )
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device is {name!r}, but there are only {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {name!r}, but torch {torch.__version__} sees no MPS device here")
    if device.type not in ("cpu", "mps"):
        raise ConfigError(f"device is {name!r}: it must be auto, cpu, cuda, cuda:N or mps (--device)")
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware and not emulated (which is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # torch has no public question for this; without these instructions bfloat16 convolutions lose to float32
        in_onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        in_cpu = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return bool(in_onednn and in_onednn()) and any(bool(ask()) for ask in in_cpu if ask is not None)
    return False


def choose_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or ``None`` for plain float32."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else None
    return torch.bfloat16 if precision == "bfloat16" else None


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Only deterministic kernels inside the block; torch's former settings come back afterwards."""
    if not enabled:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[2], before[3]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch, Python and NumPy seeded inside the block (dropout and weights draw from them).

    The caller's random state is as it was afterwards.
    """
    if device.type == "cuda":
        torch.cuda.init()  # else there is no state to keep yet
    before = capture_global_rng()
    torch.manual_seed(seed)  # noqa: TID251 - put back below
    random.seed(seed)
    np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002 - the global one is what is meant
    try:
        yield
    finally:
        restore_global_rng(before)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
