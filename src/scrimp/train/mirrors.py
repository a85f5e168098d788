"""Metrics in other tools too: the run's record, mirrored to TensorBoard and Weights & Biases when asked."""

import importlib
from pathlib import Path
from typing import Any, Protocol

from scrimp.errors import MissingDependencyError
from scrimp.report.record import RunWriter
from scrimp.train.config import TrainConfig


class Mirror(Protocol):
    """Another place for the numbers of a record line."""

    def write(self, event: str, step: int, values: dict[str, float]) -> None:
        """Take the numbers of one line."""
        ...

    def close(self) -> None:
        """Flush what is left."""
        ...


class MirroringWriter(RunWriter):
    """A run's record that also sends every line's numbers to ``mirrors``."""

    def __init__(self, run_dir: Path, mirrors: list[Mirror]) -> None:
        super().__init__(run_dir)
        self._mirrors = mirrors

    def write(self, event: str, *, step: int, epoch: float, seconds: float, **values: Any) -> None:
        """Append one line here, and its numbers there."""
        super().write(event, step=step, epoch=epoch, seconds=seconds, **values)
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for mirror in self._mirrors:
            mirror.write(event, step, {"epoch": epoch, **numbers})

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for mirror in self._mirrors:
            mirror.close()


class TensorBoardMirror:
    """Scalars named ``event/key``, in the run directory's ``tensorboard`` folder."""

    def __init__(self, run_dir: Path) -> None:
        self._writer = _import_tensorboard().SummaryWriter(str(run_dir / "tensorboard"))

    def write(self, event: str, step: int, values: dict[str, float]) -> None:
        """Add one scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(f"{event}/{key}", value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbMirror:
    """Values named ``event/key`` in one Weights & Biases run."""

    def __init__(self, project: str, config: TrainConfig, run_dir: Path) -> None:
        self._run = _import_wandb().init(project=project, config=config.to_dict(), name=run_dir.name, dir=str(run_dir))

    def write(self, event: str, step: int, values: dict[str, float]) -> None:
        """Log the values of one line; several lines of one step are merged by the service."""
        self._run.log({f"{event}/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()


def _import_tensorboard() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise MissingDependencyError('--tensorboard needs TensorBoard: pip install "scrimp[tensorboard]"') from error


def _import_wandb() -> Any:
    try:
        import wandb  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError('--wandb needs Weights & Biases: pip install "scrimp[wandb]"') from error
    return wandb


def require_mirrors(config: TrainConfig) -> None:
    """Raise MissingDependencyError before anything is made, if ``config`` asks for a tool that is not installed."""
    if config.tensorboard:
        _import_tensorboard()
    if config.wandb is not None:
        _import_wandb()


def open_mirrors(config: TrainConfig, run_dir: Path) -> RunWriter:
    """The record of a run, with the mirrors that ``config`` asks for. Raises MissingDependencyError."""
    mirrors: list[Mirror] = []
    if config.tensorboard:
        mirrors.append(TensorBoardMirror(run_dir))
    if config.wandb is not None:
        mirrors.append(WandbMirror(config.wandb, config, run_dir))
    return MirroringWriter(run_dir, mirrors) if mirrors else RunWriter(run_dir)
