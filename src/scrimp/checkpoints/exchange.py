"""Checkpoints to and from the files of others: safetensors, ``torch.save``, folders of the Hugging Face Trainer."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scrimp._core.atomic_files import atomic_write
from scrimp._core.state_tree import flatten_state
from scrimp.checkpoints.reports import SaveReport
from scrimp.checkpoints.store import CheckpointStore
from scrimp.errors import CheckpointNotFoundError, ConfigError, FormatError

_MODEL_KEYS = ("model", "model_state_dict", "state_dict")
_OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict")


def export_weights(store: CheckpointStore, path: str | os.PathLike[str], step: int | None = None) -> int:
    """Write the model of a checkpoint (the newest by default) as a safetensors file; returns its bytes.

    The tensors are those that were saved, under their names, and nothing else is decoded; see ``write_weights``.

    Raises: as ``CheckpointStore.load``; ConfigError - it was saved without a model. OSError.
    """
    return write_weights(store.load(step, only="model")["model"], path)


def write_weights(state: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write the tensors of a model's state as a safetensors file; returns its bytes.

    Of tied weights the file has the first name; the others are in its metadata, as ``safetensors.torch.load_model``
    expects them.

    Raises: OSError.
    """
    first_name: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key in first_name:
            metadata[name] = first_name[key]
        else:
            first_name[key] = name
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    with atomic_write(path) as file:
        return file.write(safetensors.torch.save(tensors, metadata))


def export_state(store: CheckpointStore, path: str | os.PathLike[str], step: int | None = None) -> int:
    """Write the whole state of a checkpoint (the newest by default) as ``torch.save`` does; returns its bytes.

    ``torch.load(path, weights_only=True)`` reads it: a dict of ``step``, ``model``, ``optimizer``, ``extra``.

    Raises: as ``CheckpointStore.load``; OSError.
    """
    state = store.load(step)
    with atomic_write(path) as file:
        torch.save(state, file)
        return file.tell()


@dataclass(frozen=True)
class ImportReport:
    """What was imported from ``path``, and which of its files were left out, with the reason."""

    path: Path
    saved: SaveReport
    left_out: Mapping[str, str]


def import_checkpoint(store: CheckpointStore, path: str | os.PathLike[str], step: int | None = None) -> ImportReport:
    """Store a checkpoint that another tool wrote. Nothing in it is run: what only a pickle could read is refused.

    Args: path - a ``.safetensors`` file of weights; a file of ``torch.save`` with weights, or with a dict of model and
        optimizer state; a ``checkpoint-N`` folder of the Hugging Face Trainer. step - by default what the folder says,
        or the last number in the name.
    Raises: CheckpointNotFoundError, FormatError; ConfigError - no step is known; else as ``CheckpointStore.save``.
    """
    source = Path(path)
    if not source.exists():
        raise CheckpointNotFoundError(f"there is no {source}")
    left_out: dict[str, str] = {}
    state = _read_folder(source, left_out) if source.is_dir() else _read_file(source)
    number = step if step is not None else _step_of(source, state)
    saved = store.save_state(number, state)
    assert saved is not None
    return ImportReport(source, saved, left_out)


def _read_file(path: Path) -> dict[str, Any]:
    value = _read_tensors(path)
    if not isinstance(value, Mapping):
        raise FormatError(f"{path} holds a {type(value).__name__}; a checkpoint is a dict of tensors or of states")
    if all(isinstance(item, Tensor) for item in value.values()):
        return {"model": dict(value)}
    state: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, item in value.items():
        if key in _MODEL_KEYS and isinstance(item, Mapping):
            state["model"] = item
        elif key in _OPTIMIZER_KEYS and isinstance(item, Mapping):
            state["optimizer"] = item
        elif key == "extra" and isinstance(item, Mapping):
            extra.update(item)
        elif key in ("step", "optimizer_class") and isinstance(item, int | str):
            state[key] = item
        else:
            extra[str(key)] = item
    return {**state, "extra": extra}


def _read_folder(folder: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """The parts of a Trainer's folder; what cannot be read without running it is left out."""
    state: dict[str, Any] = {"model": _read_weights(folder), "extra": {}}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".pt", ".pth"} and file.name != "training_args.bin":
            try:
                value = _read_tensors(file)
                flatten_state({"value": value})
            except (FormatError, ConfigError) as error:
                left_out[file.name] = str(error)
                continue
            if file.name == "optimizer.pt":
                state["optimizer"] = value
            else:
                state["extra"][file.stem] = value
        elif file.name == "trainer_state.json":
            state["extra"]["trainer_state"] = json.loads(file.read_text())
    return state


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, in one file or several."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        weights = {name: tensor for file in files for name, tensor in _read_tensors(file).items()}
        if weights:
            return weights
    raise CheckpointNotFoundError(f"{folder} has no weights (*.safetensors, pytorch_model*.bin)")


def _read_tensors(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, from two libraries
        reason = str(error).splitlines()[0][:200]
        raise FormatError(f"{path} cannot be read without running what is in it, or is damaged ({reason})") from error


def _step_of(path: Path, state: Mapping[str, Any]) -> int:
    told = state.get("extra", {})
    trainer = told.get("trainer_state", {})
    candidates = (trainer.get("global_step"), state.get("step"), told.get("global_step"), told.get("iteration"))
    for value in candidates:
        if isinstance(value, int):
            return value
    numbers = re.findall(r"\d+", path.stem if path.is_file() else path.name)
    if not numbers:
        raise ConfigError(f"no step is known for {path}; name one (--step N)")
    return int(numbers[-1])
