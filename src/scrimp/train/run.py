"""A whole run: from a configuration to a directory with its record, its checkpoints, its model and its page."""

import json
import platform
import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import scrimp
from scrimp._core.atomic_files import atomic_write
from scrimp._core.ranks import is_main, rank, world_size
from scrimp.checkpoints import ExactCheckpoints
from scrimp.errors import CheckpointNotFoundError, ConfigError, FormatError, RunExistsError
from scrimp.report.page import write_page
from scrimp.report.record import CONFIG_NAME, RunStatus, read_run
from scrimp.report.summary import Summary
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, load_dataset
from scrimp.train.hardware import choose_autocast, choose_device, deterministic_kernels, peak_memory_bytes, seeded
from scrimp.train.job import Job, Seams
from scrimp.train.journal import Journal, StepInfo
from scrimp.train.loop import train
from scrimp.train.mirrors import open_mirrors
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.optimization import build_optimizer
from scrimp.train.parallel import from_all_ranks
from scrimp.train.sampling import sample_text
from scrimp.train.task import Task, build_loaders

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class Started:
    """What is known of a run when its training begins, for whoever shows it."""

    run_dir: Path
    dataset: Dataset
    job: Job
    num_parameters: int
    resumed_step: int | None


@dataclass(frozen=True)
class Run:
    """How a run ended; ``summary`` is there when it finished."""

    run_dir: Path
    status: RunStatus
    step: int
    summary: Summary | None


def run(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    seams: Seams | None = None,
    on_data: Callable[[int, int, str], None] | None = None,
    on_start: Callable[[Started], None] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Carry out ``config`` in the directory ``out`` (by default the next free ``runs/RECIPE-NNN``).

    Everything that can be wrong with the settings, the data and the model is found before the directory is touched.
    The caller's random state, thread count and determinism settings are as they were afterwards.

    Raises: ConfigError, DataError, RunExistsError (``out`` holds another run), CheckpointNotFoundError (nothing to
    resume), NonFiniteLossError, OSError (a full disk; the former checkpoint is intact).
    """
    device = choose_device(config.device, local_rank=rank())
    autocast = choose_autocast(config.precision, device)
    dataset = load_dataset(config.data, progress=on_data)
    with ExitStack() as settings:
        settings.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        settings.enter_context(deterministic_kernels(config.deterministic))
        settings.enter_context(seeded(config.seed, device))
        job = _build_job(config, dataset, device, autocast, seams or Seams())
        torch.manual_seed(config.seed + rank())  # noqa: TID251 - inside `seeded`; dropout differs between ranks
        run_dir = from_all_ranks(str(_run_dir(config, out, resume)) if is_main() else None)[0]
        return _train_in(Path(run_dir), job, dataset, resume, on_start, on_step, should_stop)


def newest_unfinished(recipe: str) -> Path:
    """The directory under ``runs/`` of the newest unfinished run of ``recipe``, for ``--resume`` without a name."""
    runs = [path.parent for path in RUNS_DIR.glob(f"{recipe}-*/{CONFIG_NAME}")]
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


def _build_job(
    config: TrainConfig, dataset: Dataset, device: torch.device, autocast: torch.dtype | None, seams: Seams
) -> Job:
    loader, test_loader = build_loaders(
        config, dataset, device=device, dtype=autocast or torch.float32, rank=rank(), world_size=world_size()
    )
    model = build_model(config.model, config.model_args, _facts(config, dataset))
    model.to(device)
    if dataset.kind == "images":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Job(
        config=config, model=model, task=Task(dataset.kind, config.label_smoothing), loader=loader,
        test_loader=test_loader, optimizer=build_optimizer(config, model), device=device, autocast=autocast,
        seams=seams,
    )  # fmt: skip


def _facts(config: TrainConfig, dataset: Dataset) -> ModelFacts:
    if dataset.kind == "text":
        return ModelFacts(vocab_size=dataset.vocab_size, context_length=config.context_length)
    channels, height, width = dataset.image_shape
    size = height if height == width else (height, width)
    return ModelFacts(num_classes=dataset.num_classes, in_channels=channels, image_size=size)


def _run_dir(config: TrainConfig, out: Path | None, resume: bool) -> Path:
    """Where the run goes; refuses to mix two runs in one directory."""
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


def _next_free(recipe: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", recipe)
    taken = {path.name for path in RUNS_DIR.glob(f"{name}-*")} if RUNS_DIR.is_dir() else set()
    number = 1
    while f"{name}-{number:03d}" in taken:
        number += 1
    return RUNS_DIR / f"{name}-{number:03d}"


def _train_in(
    run_dir: Path,
    job: Job,
    dataset: Dataset,
    resume: bool,
    on_start: Callable[[Started], None] | None,
    on_step: Callable[[StepInfo], None] | None,
    should_stop: Callable[[], bool],
) -> Run:
    config = job.config
    checkpoints = ExactCheckpoints(run_dir / "checkpoints", keep_last=config.keep_checkpoints)
    if resume and (finished := read_run(run_dir).summary) is not None:
        return Run(run_dir, RunStatus.FINISHED, finished.num_steps, finished)
    stored_steps = checkpoints.steps()
    # a run that was stopped before its first checkpoint starts anew
    resumed_step = stored_steps[-1] if resume and stored_steps else None
    with ExitStack() as files:
        record = files.enter_context(open_mirrors(config, run_dir)) if is_main() else None
        if record is not None:
            record.write_config(config.to_dict())
            if resume and resumed_step is None:
                record.truncate_after(-1)
        num_parameters = sum(p.numel() for p in job.model.parameters())
        if on_start is not None:
            on_start(Started(run_dir, dataset, job, num_parameters, resumed_step))
        status, journal = train(
            job, checkpoints, record, resume=resumed_step is not None, on_step=on_step, should_stop=should_stop
        )
        summary = None
        if record is not None:
            if status is RunStatus.FINISHED:
                _write_model(job.model, run_dir / "model.safetensors")
                summary = _summarize(job, dataset, journal, run_dir, num_parameters)
                record.write_summary(summary)
            write_page(run_dir)
    return Run(run_dir, status, journal.step, summary)


def _write_model(model: nn.Module, path: Path) -> None:
    """The weights under their names, for ``safetensors.torch.load_file`` and ``model.load_state_dict``."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    seen: dict[int, str] = {}
    shared = {name: seen[p] for name, t in tensors.items() if seen.setdefault(p := t.data_ptr(), name) != name and p}
    kept = {name: tensor for name, tensor in tensors.items() if name not in shared}
    metadata = {"format": "pt", "scrimp": json.dumps({"version": scrimp.__version__, "shared": shared})}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(kept, metadata))


def _summarize(job: Job, dataset: Dataset, journal: Journal, run_dir: Path, num_parameters: int) -> Summary:
    config, record = job.config, read_run(run_dir)
    phase_seconds = journal.clock.seconds()
    in_steps = sum(s for phase, s in phase_seconds.items() if phase not in ("evaluation", "checkpoint"))

    def saved(key: str) -> int:
        return int(sum(point.value for point in record.series("checkpoint", key)))

    return Summary(
        recipe=config.recipe, data=config.data, model=config.model, seed=config.seed,
        device=_device_name(job.device), precision=str(job.autocast or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(), world_size=world_size(),
        num_epochs=config.num_epochs, num_steps=journal.step,
        sample_visits=journal.sample_visits, sample_visits_full=_full_visits(job),
        train_seconds=journal.clock.train_seconds(), total_seconds=journal.clock.total_seconds(),
        examples_per_second=journal.sample_visits / max(in_steps, 1e-9), phase_seconds=phase_seconds,
        test_accuracy=journal.evaluation.get("test_accuracy"), test_loss_nats=journal.evaluation["test_loss_nats"],
        num_parameters=num_parameters, model_float32_bytes=4 * num_parameters,
        checkpoint_raw_bytes=saved("raw_bytes"), checkpoint_stored_bytes=saved("stored_bytes"),
        peak_memory_bytes=peak_memory_bytes(), versions=_versions(), command=_command(config),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        sample_text=sample_text(job, dataset) if dataset.kind == "text" else None,
    )  # fmt: skip


def _full_visits(job: Job) -> int:
    """Visits of a run that sees every sample in every epoch, but for the incomplete last batch that is dropped."""
    batch = job.loader.batch_size * world_size()
    steps = job.loader.num_samples // batch
    whole, part = divmod(job.config.num_epochs, 1)
    return batch * (int(whole) * steps + round(steps * part))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> dict[str, str]:
    return {"scrimp": scrimp.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _command(config: TrainConfig) -> str:
    """The command line that repeats the run: the recipe, and what was changed in it."""
    from scrimp.train.recipes import RECIPES  # noqa: PLC0415 - recipes are above a run

    base = RECIPES[config.recipe]() if config.recipe in RECIPES else TrainConfig()
    ours, theirs = config.to_dict(), base.to_dict()
    words = ["scrimp", "train", *([config.recipe] if config.recipe in RECIPES else [])]
    for name, value in ours.items():
        if name != "recipe" and value != theirs[name]:
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (flag, f"{key}={json.dumps(item)}")]
    return [flag, "none" if value is None else str(value)]
