"""A whole run: from a configuration to a directory with its record, its checkpoints, its model and its page."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from scrimp import bits
from scrimp._core.ranks import is_main, rank, world_size
from scrimp._core.state_tree import flatten_state
from scrimp.errors import ConfigError, ScrimpError
from scrimp.report.page import require_page_libraries, write_page
from scrimp.report.record import RunStatus, read_run
from scrimp.report.summary import Summary
from scrimp.steps import ProgressiveResize
from scrimp.train.averages import with_average
from scrimp.train.compression import compressor_of, with_compression
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, load_dataset
from scrimp.train.hardware import choose_autocast, choose_device, deterministic_kernels, seeded
from scrimp.train.job import Job, Seams
from scrimp.train.journal import StepInfo
from scrimp.train.loop import train
from scrimp.train.mirrors import open_mirrors, require_mirrors
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.optimization import build_optimizer
from scrimp.train.outcome import PACKED_NAME, packed_metadata, summarize, write_model
from scrimp.train.page_ladder import ladder_facts, rung_of
from scrimp.train.parallel import local_rank, on_main
from scrimp.train.profiler import profiled
from scrimp.train.pruning import rule_of, with_pruning, with_rule_named
from scrimp.train.run_dir import choose_run_dir, locked
from scrimp.train.saving import codec_of, open_checkpoints
from scrimp.train.surgery import change_model_, images_to_whiten, whitening_facts, with_bias_freeze
from scrimp.train.task import Task, build_loaders
from scrimp.train.visited import VISIT_COUNTS, VisitCounts, visited_facts, with_visit_counts

_SMALL_SIDE = 64


@dataclass(frozen=True)
class Started:
    """What is known of a run when its training begins, for whoever shows it."""

    run_dir: Path
    dataset: Dataset
    job: Job
    num_parameters: int
    resumed_step: int | None  # 0 when nothing had been saved yet


@dataclass(frozen=True)
class Run:
    """How a run ended; ``summary`` is there when it finished."""

    run_dir: Path
    status: RunStatus
    step: int
    summary: Summary | None
    was_finished: bool = False  # there was nothing left to resume


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
    config = with_rule_named(config)
    require_page_libraries()
    require_mirrors(config)
    codec_of(config)  # refuses now what does not go together
    seams = with_pruning(config, seams or Seams())
    device = choose_device(config.device, local_rank=local_rank())
    autocast = choose_autocast(config.precision, device)
    dataset = _load_once(config, on_data)
    with ExitStack() as settings:
        settings.callback(torch.set_num_threads, torch.get_num_threads())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        settings.enter_context(deterministic_kernels(config.deterministic))
        settings.enter_context(seeded(config.seed, device))
        job = _build_job(config, dataset, device, autocast, seams)
        torch.manual_seed(config.seed + rank())  # noqa: TID251 - inside `seeded`; dropout differs between ranks
        run_dir = on_main(lambda: choose_run_dir(config, out, resume=resume))
        if is_main():
            settings.enter_context(locked(run_dir))
            if out is not None:
                choose_run_dir(config, out, resume=resume)  # again: another process may have begun there meanwhile
        return _train_in(run_dir, job, dataset, resume, on_start, on_step, should_stop)


def _load_once(config: TrainConfig, on_data: Callable[[int, int, str], None] | None) -> Dataset:
    """The data set, decoded by the main rank alone; the others find it in the cache."""
    loaded: list[Dataset] = []
    on_main(lambda: loaded.append(load_dataset(config.data, image_size=config.image_size, progress=on_data)))
    return loaded[0] if is_main() else load_dataset(config.data, image_size=config.image_size)


def _build_job(
    config: TrainConfig, dataset: Dataset, device: torch.device, autocast: torch.dtype | None, seams: Seams
) -> Job:
    loader, test_loader = build_loaders(
        config,
        dataset,
        device=device,
        dtype=autocast or torch.float32,
        rank=rank(),
        world_size=world_size(),
        sampler=seams.sampler,
        transforms=seams.transforms,
    )
    model = build_model(config.model, config.model_args, _facts(config, dataset))
    images = images_to_whiten(config, dataset)
    if images is not None and device.type == "cuda":
        images = images.to(device)
    whitening = change_model_(config, model, images)
    flatten_state(model.state_dict())  # refuses now what no checkpoint could hold
    model.to(device)
    if dataset.kind == "images":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if rule_of(config) is not None:
        seams = with_visit_counts(seams, loader.num_samples)
    compressor = compressor_of(config, model, _facts(config, dataset), packed_metadata(config, dataset))
    # here, and not before: the average lies where the model does
    seams, average = with_average(config, seams, model)
    optimizer = build_optimizer(config, model)
    seams = with_compression(compressor, seams, optimizer, average)
    seams, freeze = with_bias_freeze(config, seams, optimizer, whitening)
    return Job(
        config=config, model=model, task=Task(dataset.kind, config.label_smoothing), loader=loader,
        test_loader=test_loader, optimizer=optimizer, device=device, autocast=autocast, seams=seams,
        average=average if config.ema is not None else None, compressor=compressor, shrink=shrink_of(config, dataset),
        whitening=whitening, freeze=freeze,
        data_checksum=dataset.checksum,
    )  # fmt: skip


def shrink_of(config: TrainConfig, dataset: Dataset) -> ProgressiveResize | None:
    """How the images of training grow, if they do. Raises: ConfigError - they would be larger than they are."""
    if config.first_size is None:
        return None
    side = min(dataset.image_shape[1:])
    for name in ("first_size", "last_size"):
        if (size := getattr(config, name)) is not None and size > side:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{name} is {size}, but an image has only {side} pixels ({flag})")
    multiple = 4 if side <= _SMALL_SIDE else 32  # few sizes: each is another shape to compile for
    return ProgressiveResize(config.first_size, config.full_size_from, multiple, config.last_size)


def _facts(config: TrainConfig, dataset: Dataset) -> ModelFacts:
    if dataset.kind == "text":
        return ModelFacts(vocab_size=dataset.vocab_size, context_length=config.context_length)
    return ModelFacts.of_images(dataset.num_classes, dataset.image_shape)


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
    checkpoints = open_checkpoints(config, run_dir)
    if resume and (finished := read_run(run_dir).summary) is not None:
        return Run(run_dir, RunStatus.FINISHED, finished.num_steps, finished, was_finished=True)
    stored_steps = checkpoints.steps()
    # a run that was stopped before its first checkpoint starts anew
    resumed_step = (stored_steps[-1] if stored_steps else 0) if resume else None
    with ExitStack() as files:
        record = files.enter_context(open_mirrors(config, run_dir)) if is_main() else None
        if record is not None:
            record.write_config(config.to_dict())
            if resume and resumed_step == 0:
                record.truncate_after(-1)
        if on_start is not None:
            on_start(Started(run_dir, dataset, job, job.num_parameters(), resumed_step))
        if record is not None:
            files.callback(_write_last_page, run_dir)
            if not resumed_step and job.whitening is not None:
                values = whitening_facts(job.whitening, config.whiten_epsilon)
                record.write("whitening", step=0, epoch=0.0, seconds=0.0, **values)
            if not resumed_step and (rung := rung_of(config)) is not None:
                record.write("ladder", step=0, epoch=0.0, seconds=0.0, **ladder_facts(rung))
        if config.profile and record is not None:
            job = files.enter_context(profiled(job, record))
        status, journal = train(
            job, checkpoints, record, resume=bool(resumed_step), on_step=on_step, should_stop=should_stop
        )
        summary = None
        if record is not None and status is RunStatus.FINISHED:
            if isinstance(counts := job.seams.state.get(VISIT_COUNTS), VisitCounts):
                journal.write("visited", **visited_facts(counts, dataset))
            model, packed = job.model, None
            if job.compressor is not None:
                packed = bits.pack(model, run_dir / PACKED_NAME, metadata=job.compressor.metadata)
                journal.note_sizes(packed, job.compressor)
                model = bits.plain_copy(model)
            write_model(model, dataset, run_dir / "model.safetensors", is_shrunk=packed is not None)
            summary = summarize(job, dataset, journal, packed)
            record.write_summary(summary)
    return Run(run_dir, status, journal.step, summary)


def _write_last_page(run_dir: Path) -> None:
    """The page of a run that ended, however it ended; it must not hide the error of one that failed."""
    with suppress(OSError, ScrimpError):
        write_page(run_dir)
