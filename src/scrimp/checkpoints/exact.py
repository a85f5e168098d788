"""Exact checkpoints: one safetensors file per step, written atomically, checked on reading, never pickled."""

import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scrimp._core.atomic_files import atomic_write
from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp.checkpoints.fit import find_misfits
from scrimp.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, FormatError

_FORMAT = "scrimp-exact-1"
_NAME = re.compile(r"step-(\d{9,})\.safetensors")


@dataclass(frozen=True)
class SaveReport:
    """What one ``save`` wrote: ``raw_bytes`` of tensors, ``stored_bytes`` on disk, ``save_seconds`` it took."""

    step: int
    path: Path
    raw_bytes: int
    stored_bytes: int
    save_seconds: float


class ExactCheckpoints:
    """A folder of bit-identical checkpoints, the newest ``keep_last`` of them (``None`` keeps all).

    A checkpoint appears under its name only when all of it is on disk, so a crash, a full disk or a kill leaves the
    former ones as they were. Older ones are deleted after the new one is durable. Files carry a CRC-32 of every
    tensor (with its name and shape) and of the structure; a reader says what is broken instead of returning it. Any
    tool that reads safetensors can open them.

    Example::

        store = ExactCheckpoints("runs/a/checkpoints")
        store.save(step, model=model, optimizer=optimizer, extra={"loader": loader.state_dict()})
        extra = store.restore(model=model, optimizer=optimizer)
    """

    def __init__(self, path: str | Path, *, keep_last: int | None = 2) -> None:
        if keep_last is not None and keep_last < 1:
            raise ConfigError(f"keep_last is {keep_last}; keep at least 1 checkpoint, or all with None")
        self.path = Path(path)
        self.keep_last = keep_last

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> SaveReport:
        """Write a checkpoint of ``step``, replacing one of the same step.

        ``extra`` is any nested state of dicts, lists, tuples, tensors, numbers and strings.

        Raises: ConfigError - a value that cannot be stored; OSError - for instance a full disk: nothing was changed.
        Cost: one copy of the state in memory, one write, one fsync.
        """
        started = time.perf_counter()
        if step < 0:
            raise ConfigError(f"step is {step}; a step counts from 0")
        state: dict[str, Any] = {"step": step, "extra": dict(extra or {})}
        if model is not None:
            state["model"] = model.state_dict()
        if optimizer is not None:
            state["optimizer"] = optimizer.state_dict()
            state["optimizer_class"] = type(optimizer).__name__
        tensors, structure = flatten_state(state)
        checksums = {name: _crc(name, tensor) for name, tensor in tensors.items()}
        metadata = {
            "format": _FORMAT,
            "structure": structure,
            "structure_crc32": f"{zlib.crc32(structure.encode()):08x}",
            "tensor_crc32": " ".join(f"{checksums[name]:08x}" for name in sorted(tensors)),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        for debris in self.path.glob(".step-*.safetensors.????????.tmp"):  # of a process that was killed while it wrote
            debris.unlink(missing_ok=True)
        target = self._file(step)
        with atomic_write(target) as file:
            file.write(safetensors.torch.save(tensors, metadata))
        self._drop_old(newest=step)
        return SaveReport(
            step=step,
            path=target,
            raw_bytes=_num_bytes(tensors),
            stored_bytes=target.stat().st_size,
            save_seconds=time.perf_counter() - started,
        )

    def steps(self) -> list[int]:
        """The steps that are stored, in ascending order."""
        if not self.path.is_dir():
            return []
        return sorted(int(m[1]) for entry in self.path.iterdir() if (m := _NAME.fullmatch(entry.name)))

    def load(self, step: int | None = None) -> dict[str, Any]:
        """The whole state of ``step`` (the newest by default): ``step``, ``extra`` and what else was saved.

        Raises: CheckpointNotFoundError, CorruptCheckpointError, FormatError (not one of our files).
        """
        path = self._existing(step)
        tensors, metadata = _read(path)
        if metadata.get("format") != _FORMAT:
            raise FormatError(
                f"{path} is not a scrimp checkpoint of a known version (format {metadata.get('format')!r})"
            )
        structure = metadata.get("structure", "")
        if f"{zlib.crc32(structure.encode()):08x}" != metadata.get("structure_crc32"):
            raise CorruptCheckpointError(f"{path}: its structure does not match its checksum; the file was altered")
        expected = metadata.get("tensor_crc32", "").split()
        if len(expected) != len(tensors):
            raise CorruptCheckpointError(f"{path}: {len(tensors)} tensors but {len(expected)} checksums")
        for name, checksum in zip(sorted(tensors), expected, strict=True):
            if f"{_crc(name, tensors[name]):08x}" != checksum:
                raise CorruptCheckpointError(
                    f"{path}: tensor {name!r} does not match its checksum; the file was altered"
                )
        state: dict[str, Any] = unflatten_state(tensors, structure)
        return state

    def restore(
        self,
        step: int | None = None,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
    ) -> dict[str, Any]:
        """Load ``step`` (the newest by default) into ``model`` and ``optimizer``; returns what was saved as ``extra``.

        Names, shapes and dtypes are compared before anything is copied.

        Raises: as ``load``; ConfigError - the checkpoint holds no such part, or it does not fit; nothing was changed.
        """
        state = self.load(step)
        parts = {name: part for name, part in (("model", model), ("optimizer", optimizer)) if part is not None}
        for name in parts:
            if name not in state:
                raise ConfigError(f"the checkpoint of step {state['step']} in {self.path} was saved without a {name}")
        # torch copies what fits before it complains about the rest: so all of it is compared first
        for name, part in parts.items():
            if misfits := find_misfits(part, state[name], state.get("optimizer_class")):
                raise ConfigError(self._does_not_fit(name, state["step"], misfits) + "; nothing was changed")
        for name, part in parts.items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ConfigError(self._does_not_fit(name, state["step"], [str(error)])) from error
        extra: dict[str, Any] = state["extra"]
        return extra

    def stored(self, step: int) -> SaveReport:
        """What the checkpoint of ``step`` holds and takes on disk; its ``save_seconds`` is not known and 0.

        Raises: CheckpointNotFoundError, CorruptCheckpointError.
        """
        path = self._existing(step)
        tensors, _ = _read(path)
        return SaveReport(step, path, _num_bytes(tensors), path.stat().st_size, save_seconds=0.0)

    def verify(self) -> list[int]:
        """Read every checkpoint in full; returns their steps. Raises CorruptCheckpointError at the first broken one."""
        steps = self.steps()
        for step in steps:
            self.load(step)
        return steps

    def delete(self, step: int) -> None:
        """Remove the checkpoint of ``step``. Raises CheckpointNotFoundError when there is none."""
        self._existing(step).unlink()

    def _does_not_fit(self, part: str, step: int, misfits: list[str]) -> str:
        more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        return (
            f"the {part} saved at step {step} in {self.path} does not fit the one given: {'; '.join(misfits[:3])}{more}"
        )

    def _file(self, step: int) -> Path:
        return self.path / f"step-{step:09d}.safetensors"

    def _existing(self, step: int | None) -> Path:
        steps = self.steps()
        if not steps:
            raise CheckpointNotFoundError(f"no checkpoint in {self.path}")
        wanted = steps[-1] if step is None else step
        if wanted not in steps:
            raise CheckpointNotFoundError(f"no checkpoint of step {wanted} in {self.path}; there are {steps}")
        return self._file(wanted)

    def _drop_old(self, newest: int) -> None:
        if self.keep_last is None:
            return
        older = [step for step in self.steps() if step < newest]
        for step in older[: max(0, len(older) - (self.keep_last - 1))]:
            self._file(step).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # copied, because they are mapped: a state must not change when its file does
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise CorruptCheckpointError(f"{path} is truncated or not a safetensors file ({error})") from error


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _crc(name: str, tensor: Tensor) -> int:
    described = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="surrogatepass"))
    if tensor.numel() == 0:
        return described
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, described)
