"""A terminal that is closed while a command works in it: what it did is saved, and can go on."""

import json
import time

from tests.reference.command import QUICK, SMALL
from tests.reference.terminal import Terminal

from scrimp.checkpoints import CheckpointStore
from scrimp.report.record import RunStatus, read_run


def close_when_training(terminal, metrics):
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"event": "step"' in metrics.read_text()):
        terminal.read()
        assert time.monotonic() < deadline
    terminal.close()
    assert terminal.process.wait(timeout=60) in (120, 130)  # python's own for output that cannot be written


def assert_saved(run_dir):
    record = read_run(run_dir)
    assert record.status is RunStatus.INTERRUPTED
    assert CheckpointStore(run_dir / "checkpoints").steps()[-1] == record.metrics[-1]["step"]


def test_train_saves_the_step_that_it_is_at(tmp_path):
    terminal = Terminal([*QUICK, "--num-epochs", "60", "--checkpoint-every", "60", "--out", "r"], tmp_path)
    close_when_training(terminal, tmp_path / "r" / "metrics.jsonl")
    assert_saved(tmp_path / "r")


def test_compare_lets_its_run_save_and_starts_no_other(tmp_path):
    words = ["compare", "digits", *SMALL, "--num-epochs", "30", "--seeds", "1", "--jobs", "1", "--log-every", "5"]
    words += ["--checkpoint-every", "30", "--variants", "plain", "steps"]
    terminal = Terminal([*words, "--out", "c"], tmp_path)
    close_when_training(terminal, tmp_path / "c" / "plain-seed0" / "metrics.jsonl")
    assert_saved(tmp_path / "c" / "plain-seed0")
    assert not (tmp_path / "c" / "steps-seed0").exists()
    assert json.loads((tmp_path / "c" / "plan.json").read_text())["seeds"] == [0]
    assert "0/2" in terminal.shown
