"""What a finished run leaves beside its record: its model and its summary."""

import dataclasses
import json
import platform
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import scrimp
from scrimp import bits
from scrimp._core.atomic_files import atomic_write
from scrimp._core.ranks import world_size
from scrimp._core.structure import read_structure
from scrimp.report.record import read_run
from scrimp.report.summary import Summary
from scrimp.train.config import TrainConfig, parse_model_arg
from scrimp.train.data import Dataset
from scrimp.train.evaluation import views_of
from scrimp.train.hardware import peak_memory_bytes
from scrimp.train.job import Job
from scrimp.train.journal import Journal
from scrimp.train.loop import epochs_begun, steps_wanted
from scrimp.train.pruning import class_keep_rates, pruning_totals, rule_in_words
from scrimp.train.recipes import RECIPES
from scrimp.train.text_sample import restored_weights, sample_text

MODEL_NAME = "model.safetensors"
PACKED_NAME = "model.scrimp"


def model_facts(dataset: Dataset) -> dict[str, Any]:
    """What using a model takes beside its weights, as JSON values."""
    facts: dict[str, Any] = {"kind": dataset.kind, "classes": dataset.classes, "version": scrimp.__version__}
    if dataset.kind == "images":
        facts |= {"image_shape": dataset.image_shape, "mean": dataset.mean, "std": dataset.std}
    return facts


def packed_metadata(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """The settings and facts in a packed file that a fresh instance of its model is made from."""
    return {"config": settings_of_model(config), "facts": model_facts(dataset)}


def settings_of_model(config: TrainConfig) -> dict[str, Any]:
    """The settings that a fresh instance of the model takes, as far as they are not the defaults."""
    plain = TrainConfig()
    needed = [f.name for f in dataclasses.fields(config) if f.metadata["group"] == "model"] + ["context_length"]
    return {name: getattr(config, name) for name in needed if getattr(config, name) != getattr(plain, name)}


def write_model(model: nn.Module, dataset: Dataset, path: Path, *, is_shrunk: bool = False) -> None:
    """The weights under their names, for ``scrimp.train.load_run`` or ``safetensors.torch.load_model``.

    Of tied weights the file has the first name; the others are in its metadata, as the latter expects them. The
    metadata also holds what using the model takes: classes or vocabulary, how images are normalised, and of a model
    that has lost channels its structure.
    """
    first_name: dict[tuple[object, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    other_names: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # a module's extra state is in the checkpoints only
            continue
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first_name:
            other_names[name] = first_name[key]
        else:
            first_name[key] = name
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    facts = model_facts(dataset)
    if is_shrunk:
        facts["structure"] = read_structure(model).to_state()
    metadata = {**other_names, "format": "pt", "scrimp": json.dumps(facts)}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def summarize(job: Job, dataset: Dataset, journal: Journal, packed: bits.SizeReport | None = None) -> Summary:
    """The summary of a run that has finished. Cost: text models write two samples, about a second each on a CPU."""
    config = job.config
    is_text = dataset.kind == "text"
    restored = restored_weights(job, journal.checkpoints) if is_text else None
    phase_seconds = journal.clock.seconds()
    in_steps = sum(seconds for phase, seconds in phase_seconds.items() if phase not in ("evaluation", "checkpoint"))
    num_parameters = job.num_parameters()
    saved = journal.checkpoints.report()
    assert journal.record is not None, "the main rank alone sums up, and it keeps the record"
    record = read_run(journal.record.run_dir)
    return Summary(
        recipe=config.recipe, data=config.data, model=config.model, seed=config.seed,
        device=torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type,
        precision=str(job.autocast or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(), world_size=world_size(),
        num_epochs=config.num_epochs, num_steps=journal.step,
        sample_visits=journal.sample_visits, sample_visits_full=_full_visits(job),
        train_seconds=journal.clock.train_seconds(), total_seconds=journal.clock.total_seconds(),
        examples_per_second=journal.sample_visits / max(in_steps, 1e-9), phase_seconds=phase_seconds,
        cpu_seconds=journal.clock.cpu_seconds(), energy_joules=journal.clock.joules(),
        test_accuracy=journal.evaluation.get("test_accuracy"), test_loss_nats=journal.evaluation["test_loss_nats"],
        test_accuracy_one_view=journal.evaluation.get("test_accuracy_one_view"),
        evaluation_views=len(views_of(config)[0]), sample_rule=rule_in_words(config),
        num_parameters=num_parameters, model_float32_bytes=4 * num_parameters,
        model_packed_bytes=None if packed is None else packed.packed_bytes,
        weights_kept_fraction=1.0 if packed is None else packed.weights_kept_fraction,
        checkpoint_raw_bytes=saved.raw_bytes, checkpoint_stored_bytes=saved.stored_bytes,
        num_checkpoints=saved.num_checkpoints, num_keyframes=saved.num_keyframes,
        checkpoint_exact_bytes=saved.exact_bytes, checkpoint_delta_ratio=saved.delta_ratio,
        checkpoint_bytes_per_weight=saved.raw_bytes_per_weight,
        peak_memory_bytes=peak_memory_bytes(),
        versions={"scrimp": scrimp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        command=command_line(config, world_size()), finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pruning=pruning_totals(record),
        class_keep_rates=class_keep_rates(record, dataset.classes) if dataset.kind == "images" else {},
        sample_text=sample_text(job, dataset) if is_text else None,
        restored_sample_text=sample_text(job, dataset, weights=restored) if restored is not None else None,
    )  # fmt: skip


def command_line(config: TrainConfig, num_processes: int = 1) -> str:
    """The command that repeats the run: the recipe, and what was changed in it."""
    base = RECIPES[config.recipe if config.recipe in RECIPES else "digits"]()  # the command line's default is digits
    theirs = {**base.with_model(config.model).to_dict(), "model": base.model}
    start = ["torchrun", "--nproc-per-node", str(num_processes), "-m"] if num_processes > 1 else []
    words = [*start, "scrimp", "train", *([config.recipe] if config.recipe in RECIPES else [])]
    for name, value in config.to_dict().items():
        if name != "recipe" and value != theirs[name]:
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (flag, f"{key}={_argument(item)}")]
    return [flag, "none" if value is None else str(value)]


def _argument(value: Any) -> str:
    is_plain = isinstance(value, str) and parse_model_arg(f"x={value}") == ("x", value)
    return value if is_plain else json.dumps(value)


def _full_visits(job: Job) -> int:
    """Visits of a run that sees every sample in every epoch, but for the incomplete last batch that is dropped."""
    batch = job.loader.batch_size * world_size()
    steps = job.loader.num_samples // batch
    num_epochs = job.config.num_epochs
    return batch * sum(steps_wanted(num_epochs, epoch, steps) for epoch in range(epochs_begun(num_epochs)))
