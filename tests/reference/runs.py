"""Tiny runs on the digits: 22 steps of 64 samples per epoch, a tenth of a second each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from scrimp.checkpoints import CheckpointStore
from scrimp.train.config import TrainConfig
from scrimp.train.journal import StepInfo
from scrimp.train.recipes import digits
from scrimp.train.run import Run, run
from scrimp.train.variants import with_savings

STEPS_PER_EPOCH = 22


def tiny(**changes: Any) -> TrainConfig:
    """A digits run without savings that takes a tenth of a second per epoch."""
    quick = {
        "model_args": {"width": 4}, "num_epochs": 2, "log_every": 5, "evaluate_every": 1, "checkpoint_every": 1,
        "threads": 1, "device": "cpu", "precision": "float32",
    }  # fmt: skip
    if "model" in changes:
        quick["model_args"] = {}
    return with_savings(digits(), ()).replace(**{**quick, "checkpoint_codec": "residual", **changes})


def run_until(config: TrainConfig, out: Path, step: int, **more: Any) -> Run:
    """Run, and ask it to stop after ``step`` steps of the whole training."""
    seen: list[int] = []
    on_step: Callable[[StepInfo], None] = lambda info: seen.append(info.step)  # noqa: E731
    return run(config, out=out, on_step=on_step, should_stop=lambda: seen[-1] == step, **more)


def last_state(out: Path) -> dict[str, Any]:
    """All of the newest checkpoint but clock readings and what the calling process had drawn from Python and NumPy."""
    state = CheckpointStore(out / "checkpoints").load()
    extra = state["extra"]
    extra["stateful"].pop("clock")
    for key in ("log_seconds", "epoch_seconds"):
        extra.pop(key)
    return state


def bits(state: Any) -> Any:
    """A nested state with its tensors as (dtype, shape, strides, bytes)."""
    if isinstance(state, Tensor):
        dense = state.detach().contiguous().reshape(-1)
        return str(state.dtype), tuple(state.shape), state.stride(), dense.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [bits(value) for value in state]
    return state
