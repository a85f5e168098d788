"""Which directory a run goes to, so that two runs are never mixed."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scrimp.errors import CheckpointNotFoundError, ConfigError, FormatError, RunExistsError
from scrimp.report.record import CONFIG_NAME, RunStatus, read_run
from scrimp.train.config import TrainConfig

RUNS_DIR = Path("runs")


def choose_run_dir(config: TrainConfig, out: Path | None, *, resume: bool) -> Path:
    """The directory for ``config``: ``out``, or the next free ``runs/RECIPE-NNN``, which is made.

    Raises: RunExistsError - another run, or this one without ``resume``, is there already.
        CheckpointNotFoundError - nothing to resume.
    """
    if out is None:
        return newest_unfinished(config.recipe) if resume else next_free(config.recipe)
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
            f"Choose another --out, or go on with that run as it is: scrimp train --resume --out {out}"
        )
    if not resume:
        raise RunExistsError(f"{out} already holds this run; go on with --resume, or choose another --out")
    return out


def newest_unfinished(recipe: str | None = None) -> Path:
    """The directory under ``runs/`` of the newest unfinished run, of ``recipe`` where one is given.

    One that failed comes after those that were interrupted; one that is going on now, or whose record is damaged, is
    passed over.

    Raises: CheckpointNotFoundError - there is none.
    """
    candidates = []
    for path in RUNS_DIR.glob(f"*/{CONFIG_NAME}"):
        try:
            record = read_run(path.parent)
            with locked(path.parent):
                is_wanted = record.summary is None and recipe in (None, record.config.get("recipe"))
        except (FormatError, RunExistsError):
            continue
        if is_wanted:
            candidates.append((record.status is not RunStatus.FAILED, path.stat().st_mtime_ns, path.parent))
    if not candidates:
        of_recipe = "" if recipe is None else f" of {recipe!r}"
        raise CheckpointNotFoundError(f"no unfinished run{of_recipe} under {RUNS_DIR}/; name one with --out DIR")
    return max(candidates)[-1]


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir``, which is made if need be, against other processes that would train in it.

    Raises: RunExistsError - one does. ConfigError - the directory cannot be made or read.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot use {run_dir} for a run: {error.strerror} ({error.filename})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RunExistsError(
            f"another process is training in {run_dir}; wait for it, or choose another --out"
        ) from error
    finally:
        os.close(descriptor)  # which also gives the lock back, as does the end of the process


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration of the run in ``run_dir``. Raises DataNotFoundError, FormatError."""
    try:
        return TrainConfig.from_dict(read_run(run_dir).config)
    except ConfigError as error:
        raise FormatError(f"{run_dir / CONFIG_NAME}: {error}") from error


def next_free(recipe: str) -> Path:
    """The first free ``runs/RECIPE-NNN``, made at once: of two runs that start together, one gets the next.

    Raises: ConfigError - no directory can be made there.
    """
    try:
        RUNS_DIR.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the directory {RUNS_DIR}/: {error.strerror}; name another with --out"
        ) from error
    for number in itertools.count(1):
        candidate = RUNS_DIR / f"{_as_name(recipe)}-{number:03d}"
        with suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError


def _as_name(recipe: str) -> str:
    return re.sub(r"[^\w.-]+", "-", recipe)
