"""Random streams that depend on nothing but their name, and the global generators as plain state.

Whatever is random in scrimp draws from ``generator(seed, "what for", epoch, ...)``. A stream is then a pure function of
its name: nothing has to be remembered for a resume, and no draw moves any other.
"""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrimp.errors import ConfigError

_NUMPY_BIT_GENERATOR = "MT19937"


def stream_seed(seed: int, *stream: int | str) -> int:
    """The 63-bit seed of a stream: blake2b over the values, their types and their lengths.

    The same in every process, on every platform and in every version of scrimp (a test pins it).

    Raises: ConfigError - the seed is not an integer, or part of the name is neither an integer nor a string.
    """
    digest = hashlib.blake2b(digest_size=8)
    for position, value in enumerate((seed, *stream)):
        if isinstance(value, bool) or not isinstance(value, (int, str) if position else int):
            what = f"part {position} of a random stream's name" if position else "seed"
            raise ConfigError(f"{what} is {value!r}; it has to be an integer{' or a string' if position else ''}")
        text = str(value).encode()
        digest.update(b"%c%d:" % (b"i" if isinstance(value, int) else b"s", len(text)) + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for the stream that ``seed`` and ``stream`` name: ``generator(0, "shuffle", epoch)``.

    Streams of different names are independent. (torch's CPU generator uses the low 32 bits of a seed, so among a
    thousand streams two coincide with a probability of about one in ten thousand.)

    Raises: ConfigError - as ``stream_seed``.
    """
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *stream))


def capture_global_rng() -> dict[str, Any]:
    """The state of the global generators of torch (CPU, CUDA, MPS), Python and NumPy, as tensors and JSON values.

    scrimp draws from none of them, but dropout layers and the user's own code do.

    Raises: ConfigError - NumPy's global generator was replaced by one that is not MT19937.
    Cost: about 10 kB; one host sync per CUDA device that is in use. CUDA is not initialised if it was not.
    """
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what is captured
    assert isinstance(numpy_state, dict)
    if numpy_state["bit_generator"] != _NUMPY_BIT_GENERATOR:
        raise ConfigError(
            f"NumPy's global generator is {numpy_state['bit_generator']}, which cannot be stored; "
            f"leave the default ({_NUMPY_BIT_GENERATOR}) in place and use numpy.random.Generator objects of your own"
        )
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }


def restore_global_rng(state: dict[str, Any]) -> None:
    """Put the global generators back to what ``capture_global_rng`` returned.

    Devices that are not on this machine are passed over: a run that moves to another kind of machine continues, though
    its dropout masks then differ.

    Raises: ConfigError - the state lacks a part; nothing was changed.
    """
    missing = {"torch", "cuda", "mps", "python", "numpy"} - state.keys()
    if missing:
        raise ConfigError(f"the state of the global random generators lacks {', '.join(sorted(missing))}")
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_bytes(device_state), index)
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_bytes(state["mps"]))
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        (
            _NUMPY_BIT_GENERATOR,
            numpy_state["words"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        )
    )


def _bytes(state: Tensor) -> Tensor:
    """A generator's state where torch wants it: on the CPU, in storage of its own."""
    return state.to(device="cpu", dtype=torch.uint8, copy=True)
