"""Many small runs: the real loop on a data set in memory, scaled down, without a run directory."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from scrimp.checkpoints import CheckpointStore
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset
from scrimp.train.data.dataset import Split
from scrimp.train.hardware import choose_autocast, choose_device, seeded
from scrimp.train.job import Job, Seams
from scrimp.train.loop import train
from scrimp.train.run import _build_job


def scaled(dataset: Dataset, side: int) -> Dataset:
    """The images at ``side`` by ``side`` pixels, with antialiasing."""

    def scale(split: Split) -> Split:
        small = [
            functional.interpolate(part.float(), size=(side, side), mode="bilinear", antialias=True)
            for part in split.inputs.split(1000)
        ]
        pixels = torch.cat(small).round().clamp(0, 255).to(torch.uint8)
        return dataclasses.replace(split, inputs=pixels.contiguous(memory_format=torch.channels_last))

    return dataclasses.replace(dataset, train=scale(dataset.train), test=scale(dataset.test))


def first_samples(dataset: Dataset, num_samples: int) -> Dataset:
    """The data set with at most so many training samples."""
    train, targets = dataset.train, dataset.train.targets
    part = dataclasses.replace(
        train, inputs=train.inputs[:num_samples], targets=None if targets is None else targets[:num_samples]
    )
    return dataclasses.replace(dataset, train=part)


def train_in_memory(
    config: TrainConfig, dataset: Dataset, change: Callable[[Job], Job] = lambda job: job
) -> tuple[Job, dict[str, Any]]:
    """One run, evaluated at its end only: the trained job, its accuracies, visits and processor seconds.

    ``change`` is what no setting says: it gets the job before it starts.
    """
    config = config.replace(evaluate_every=1e6, checkpoint_every=1e6)
    device = choose_device(config.device)
    with seeded(config.seed, device), tempfile.TemporaryDirectory() as folder:
        job = change(_build_job(config, dataset, device, choose_autocast(config.precision, device), Seams()))
        before = time.process_time()
        _, journal = train(job, CheckpointStore(Path(folder) / "checkpoints"), None)
        seconds = time.process_time() - before
    return job, {**journal.evaluation, "sample_visits": journal.sample_visits, "cpu_seconds": seconds}
