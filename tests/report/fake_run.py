"""Records that look like those of real runs, made without training."""

import math
import random
from pathlib import Path
from typing import Any

from scrimp.report import RunWriter, Summary

CONFIG: dict[str, Any] = {
    "recipe": "cifar10-small",
    "data": "cifar10",
    "model": "resnet9",
    "model_args": {"width": 16, "pool_early": True},
    "num_epochs": 24.0,
    "batch_size": 512,
    "optimizer": {"name": "sgd", "lr": 0.4, "momentum": 0.9, "weight_decay": 0.0005, "nesterov": True},
    "label_smoothing": 0.1,
    "transforms": ["RandomCrop(4)", "RandomFlip()"],
    "clip_norm": None,
    "seed": 7,
    "device": "cpu",
    "threads": 2,
    "precision": "bf16",
    "deterministic": False,
}


def summary(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "recipe": "cifar10-small",
        "data": "cifar10",
        "model": "resnet9",
        "seed": 7,
        "device": "cpu",
        "precision": "bf16",
        "threads": 2,
        "num_epochs": 24.0,
        "num_steps": 2328,
        "sample_visits": 866_412,
        "sample_visits_full": 1_200_000,
        "train_seconds": 407.31,
        "total_seconds": 431.08,
        "examples_per_second": 2127.2,
        "phase_seconds": {
            "data": 14.2, "forward": 131.7, "backward": 221.9, "optimizer": 11.3,
            "evaluation": 19.6, "checkpoint": 4.2, "other": 4.4,
        },
        "test_accuracy": 0.9231,
        "test_loss_nats": 0.2714,
        "num_parameters": 412_906,
        "model_float32_bytes": 1_651_624,
        "checkpoint_raw_bytes": 39_638_976,
        "checkpoint_stored_bytes": 7_341_212,
        "peak_memory_bytes": 1_204_551_680,
        "versions": {"scrimp": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "platform": "Linux x86_64, 2 cores"},
        "command": "scrimp train cifar10-small --data cifar10 --seed 7 --threads 2 --precision bf16 --out runs/a",
        "finished_at": "2026-11-21T05:12:44+00:00",
    }  # fmt: skip
    return Summary(**(values | changes))


def write_image_run(
    run_dir: Path, *, num_epochs: int = 24, is_finished: bool = True, lines_per_epoch: int = 10
) -> Path:
    chance = random.Random(0)
    steps_per_epoch = 97
    with RunWriter(run_dir) as writer:
        writer.write_config(CONFIG)
        seconds = 0.0
        for epoch in range(num_epochs):
            for part in range(1, lines_per_epoch + 1):
                now = epoch + part / lines_per_epoch
                progress = now / num_epochs
                seconds += 16.5 / lines_per_epoch * chance.uniform(0.9, 1.15)
                writer.write(
                    "step",
                    step=round(now * steps_per_epoch),
                    epoch=now,
                    seconds=seconds,
                    train_loss=0.34 + 1.9 * math.exp(-4.5 * progress) + chance.gauss(0, 0.03),
                    train_accuracy=0.985 - 0.72 * math.exp(-4.2 * progress) + chance.gauss(0, 0.008),
                    learning_rate=0.4 * min(progress / 0.2, (1 - progress) / 0.8),
                    examples_per_second=2900 + chance.gauss(0, 90),
                )
            at = {"step": (epoch + 1) * steps_per_epoch, "epoch": float(epoch + 1), "seconds": seconds}
            progress = (epoch + 1) / num_epochs
            writer.write(
                "evaluation",
                **at,
                test_loss_nats=0.2714 + 1.6 * math.exp(-4.6 * progress) + chance.gauss(0, 0.04) * (1 - progress),
                test_accuracy=0.9231 - 0.6 * math.exp(-4.6 * progress) + chance.gauss(0, 0.012) * (1 - progress),
            )
            spent = {"data": 0.6, "forward": 5.5, "backward": 9.2, "optimizer": 0.5, "evaluation": 0.8, "other": 0.2}
            spent["checkpoint"] = 0.7 if epoch % 4 == 3 else 0.0
            spent = {name: value * chance.uniform(0.92, 1.1) for name, value in spent.items()}
            writer.write(
                "epoch",
                **at,
                epoch_seconds=sum(spent.values()),
                sample_visits=36_000 + epoch,
                **{f"{name}_seconds": value for name, value in spent.items()},
            )
            if epoch % 4 == 3:
                stored = 3_303_248 if epoch == 3 else round(3_303_248 / (4 + epoch / 6))
                writer.write("checkpoint", **at, raw_bytes=3_303_248, stored_bytes=stored, save_seconds=0.71)
        if is_finished:
            writer.write_summary(summary())
    return run_dir


def write_text_run(run_dir: Path) -> Path:
    chance = random.Random(1)
    with RunWriter(run_dir) as writer:
        writer.write_config({"recipe": "text", "data": "tiny-shakespeare", "model": "gpt", "seed": 0, "lr": 1e-3})
        for step in range(20, 1201, 20):
            at = {"step": step, "epoch": step / 480, "seconds": step * 0.6}
            loss = 1.45 + 2.7 * math.exp(-step / 170)
            writer.write(
                "step",
                **at,
                train_loss=loss + chance.gauss(0, 0.02),
                learning_rate=1e-3 * (1 - step / 1201),
                examples_per_second=41.3 + chance.gauss(0, 0.6),
            )
            if step % 100 == 0:
                writer.write("evaluation", **at, test_loss_nats=loss + 0.12)
        writer.write("epoch", **at, epoch_seconds=288.0, data_seconds=1.0, forward_seconds=92.0, backward_seconds=180.0)
        writer.note("resumed from step 620", step=620, epoch=620 / 480, seconds=372.0)
        writer.write_summary(
            summary(
                recipe="text",
                data="tiny-shakespeare",
                model="gpt",
                seed=0,
                test_accuracy=None,
                test_loss_nats=1.5712,
                sample_visits=9600,
                sample_visits_full=9600,
                sample_text="ROMEO:\nWhat light is this that yonder window breaks,\n"
                "And sets the morrow <burning> & awake?\n\n"
                "JULIET:\nGood night, good night; the parting is but sorrow\n"
                "That speaks the sweeter for the coming day.",
            )
        )
    return run_dir
