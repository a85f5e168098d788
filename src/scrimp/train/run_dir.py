"""Which directory a run goes to, so that two runs are never mixed."""

import itertools
import re
from contextlib import suppress
from pathlib import Path

from scrimp.errors import CheckpointNotFoundError, ConfigError, FormatError, RunExistsError
from scrimp.report.record import CONFIG_NAME, read_run
from scrimp.train.config import TrainConfig

RUNS_DIR = Path("runs")


def choose_run_dir(config: TrainConfig, out: Path | None, *, resume: bool) -> Path:
    """The directory for ``config``: ``out``, or the next free ``runs/RECIPE-NNN``, which is made.

    Raises: RunExistsError - another run, or this one without ``resume``, is there already.
        CheckpointNotFoundError - nothing to resume.
    """
    if out is None:
        return newest_unfinished(config.recipe) if resume else _next_free(config.recipe)
    if not (out / CONFIG_NAME).exists():
        if resume:
            raise CheckpointNotFoundError(f"nothing to resume: {out} holds no run ({CONFIG_NAME} is missing)")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunExistsError(f"{out} exists and is not an empty directory; choose another --out")
        return out
    differences = read_config(out).differences(config)
    if differences:
        raise RunExistsError(
            f"{out} holds a run with other settings (there != here): {'; '.join(differences)}. "
            "Choose another --out, or leave these settings out to resume that run"
        )
    if not resume:
        raise RunExistsError(f"{out} already holds this run; go on with --resume, or choose another --out")
    return out


def newest_unfinished(recipe: str) -> Path:
    """The directory under ``runs/`` of the newest unfinished run of ``recipe``, for ``--resume`` without a name.

    Raises: CheckpointNotFoundError - there is none.
    """
    runs = [path.parent for path in RUNS_DIR.glob(f"{_as_name(recipe)}-*/{CONFIG_NAME}")]
    unfinished = [path for path in runs if read_run(path).summary is None]
    if not unfinished:
        raise CheckpointNotFoundError(f"no unfinished run of {recipe!r} under {RUNS_DIR}/; name one with --out DIR")
    return max(unfinished, key=lambda path: (path / CONFIG_NAME).stat().st_mtime)


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration of the run in ``run_dir``. Raises DataNotFoundError, FormatError."""
    try:
        return TrainConfig.from_dict(read_run(run_dir).config)
    except ConfigError as error:
        raise FormatError(f"{run_dir / CONFIG_NAME}: {error}") from error


def _next_free(recipe: str) -> Path:
    """The first free name, made at once: of two runs that start together, one gets the next."""
    RUNS_DIR.mkdir(exist_ok=True)
    for number in itertools.count(1):
        candidate = RUNS_DIR / f"{_as_name(recipe)}-{number:03d}"
        with suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError


def _as_name(recipe: str) -> str:
    return re.sub(r"[^\w.-]+", "-", recipe)
