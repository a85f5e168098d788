"""Running the command line as a user does: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

SCRIMP = [sys.executable, "-m", "scrimp"]
SMALL = ["--device", "cpu", "--precision", "float32", "--model-args", "width=4"]
# a digits run of 22 steps per epoch that takes a second, without savings
QUICK = ["train", "digits", "--savings", "checkpoints", *SMALL, "--log-every", "5"]


def environment(**more: str) -> dict[str, str]:
    """The present one with one thread per process, without what torchrun sets."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def scrimp(*words: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``scrimp ...`` in ``cwd`` to its end."""
    return subprocess.run(
        [*SCRIMP, *map(str, words)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The finished run's model."""
    return safetensors.torch.load_file(run_dir / "model.safetensors")


def lines_without_times(run_dir: Path) -> list[dict[str, Any]]:
    """The metric lines of a run without clock readings, and without remarks about resuming."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "examples_per_second")
    # the structure of a checkpoint holds clock readings as text, of which the length varies
    sizes = ("stored_bytes", "history_bytes", "exact_bytes", "by_role")
    return [
        {k: v for k, v in line.items() if not k.endswith(times) and k not in sizes}
        for line in lines
        if line["event"] != "note"
    ]


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Equal names, and equal tensors bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
