"""Two gloo processes under torchrun that prune samples train like one at twice the batch."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from tests.reference.command import environment, scrimp, weights

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scrimp"]
# no batch norm: its statistics are of one process's part of the batch; checkpoints within epochs
VIT = [
    "train", "digits", "--savings", "checkpoints", "--device", "cpu", "--precision", "float32", "--model", "vit", "--checkpoint-every", "0.4",
    "--model-args", "depth=1", "--model-args", "width=16", "--model-args", "num_heads=2",
    "--model-args", "patch_size=4", "--optimizer", "sgd", "--learning-rate", "0.05", "--num-epochs", "4",
    "--sample-rule", "random", "--keep", "0.5",
]  # fmt: skip


def test_two_processes_prune_like_one(tmp_path: Path) -> None:
    one = scrimp(*VIT, "--batch-size", "64", "--out", "one", cwd=tmp_path)
    two = subprocess.run(
        [*TORCHRUN, *VIT, "--batch-size", "32", "--out", "two"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    for key in ("num_steps", "sample_visits", "sample_visits_full"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[0]["sample_visits"] < summaries[0]["sample_visits_full"]
    theirs = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
