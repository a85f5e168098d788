"""Two gloo processes under torchrun: the same training as one process, and the same resumption."""

import json
from pathlib import Path

import torch
from tests.reference.command import lines_without_times, same_bits, scrimp, weights
from tests.reference.processes import VIT, killed_after, torchrun

from scrimp.report.record import read_run

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


def test_two_processes_with_all_savings_and_dropout_resume_bit_for_bit(tmp_path: Path) -> None:
    """Killed when samples have been pruned and channels have left; batch norm and dropout differ between ranks."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    conv = nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)\n"
        "    rest = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, num_classes)\n"
        "    return nn.Sequential(*conv, *rest)\n"
    )
    words = ["train", "digits", "--savings", "all", "--gamma", "0.5", "--model", "mine:make", "--batch-size", "32"]
    words += ["--device", "cpu", "--precision", "float32", "--num-epochs", "12", "--checkpoint-every", "1.3"]
    words += ["--evaluate-every", "6", "--log-every", "4"]
    words += ["--whiten", "--whiten-bias-epochs", "0.7"]  # a parameter less that DDP waits for
    whole = torchrun(*words, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["sample_visits"] < 0.8 * summary["sample_visits_full"]
    assert summary["weights_kept_fraction"] < 1
    killed_after(6, *words, out=tmp_path / "stopped")
    kept = read_run(tmp_path / "stopped").series("step", "weights_kept_fraction")
    assert kept[-1].value < 1
    resumed = torchrun("train", "--resume", "--out", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    packed = [(tmp_path / name / "model.scrimp").read_bytes() for name in ("whole", "stopped")]
    assert packed[0] == packed[1]
