"""Two gloo processes under torchrun: the same training as one process, and the same resumption."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from tests.reference.command import environment, lines_without_times, same_bits, scrimp, weights

from scrimp.checkpoints import CheckpointStore

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scrimp"]
# no batch norm: its statistics are of one process's part of the batch
VIT = [
    "train", "digits", "--savings", "checkpoints", "--device", "cpu", "--precision", "float32", "--model", "vit", "--log-every", "5",
    "--model-args", "depth=1", "--model-args", "width=16", "--model-args", "num_heads=2",
    "--model-args", "patch_size=4",
    "--optimizer", "sgd", "--learning-rate", "0.05", "--num-epochs", "2",
]  # fmt: skip


def torchrun(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *words], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """torchrun and its workers, which have sessions of their own: a signal to torchrun's group would leave them."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3, "torchrun and two workers"
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_two_processes_at_half_the_batch_train_like_one(tmp_path: Path) -> None:
    one = scrimp(*VIT, "--batch-size", "64", "--out", "one", cwd=tmp_path)
    two = torchrun(*VIT, "--batch-size", "32", "--out", "two", cwd=tmp_path)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    single = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["world_size"] == 2
    for key in ("num_steps", "sample_visits", "sample_visits_full", "test_accuracy"):
        assert summary[key] == single[key]
    # one process alone writes: every line once
    events = [(line["event"], line["step"]) for line in lines_without_times(tmp_path / "two")]
    assert events == [(line["event"], line["step"]) for line in lines_without_times(tmp_path / "one")]
    assert two.stdout.count("report.html") == 1

    different = scrimp(*VIT, "--batch-size", "64", "--seed", "1", "--out", "other", cwd=tmp_path)
    assert different.returncode == 0
    assert not all(torch.allclose(t, weights(tmp_path / "other")[n], atol=1e-3) for n, t in ours.items())


def test_two_processes_with_dropout_and_batch_norm_resume_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    conv = nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()\n"
        "    return nn.Sequential(*conv, nn.Linear(392, num_classes))\n"
    )
    words = ["train", "--savings", "checkpoints", "--model", "mine:make", "--device", "cpu", "--precision", "float32", "--batch-size", "32"]
    words += ["--num-epochs", "30", "--checkpoint-every", "1.3", "--evaluate-every", "10", "--log-every", "4"]
    words += ["--whiten", "--whiten-bias-epochs", "0.7"]  # a parameter less that DDP waits for
    whole = torchrun(*words, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*TORCHRUN, *words, "--out", "stopped"], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = CheckpointStore(tmp_path / "stopped" / "checkpoints")
    deadline = time.monotonic() + 120
    while not checkpoints.steps():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kill_all(process)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    resumed = torchrun("train", "--resume", "--out", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
