"""Two gloo processes under torchrun, to their end or killed on the way."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
from tests.reference.command import environment

from scrimp.checkpoints import CheckpointStore

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scrimp"]
# no batch norm: its statistics are of one process's part of the batch
VIT = [
    "train", "digits", "--savings", "checkpoints", "--device", "cpu", "--precision", "float32", "--model", "vit",
    "--model-args", "depth=1", "width=16", "num_heads=2", "patch_size=4", "--optimizer", "sgd", "--log-every", "5",
    "--learning-rate", "0.05", "--num-epochs", "2",
]  # fmt: skip


def torchrun(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *words], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def killed_after(num_checkpoints: int, *words: str, out: Path) -> None:
    """Train into ``out`` and kill all processes once so many checkpoints are there, before the run ends."""
    process = subprocess.Popen(
        [*TORCHRUN, *words, "--out", out.name], cwd=out.parent, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = CheckpointStore(out / "checkpoints")
    deadline = time.monotonic() + 240
    while len(checkpoints.steps()) < num_checkpoints:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    # workers have sessions of their own: a signal to torchrun's group would leave them
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3, "torchrun and two workers"
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not (out / "summary.json").exists(), "the run ended before it was killed"
