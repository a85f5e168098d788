"""`scrimp train` as a user meets it: results, resumption after kills and Ctrl-C, and what bad input gets."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from tests.reference.command import QUICK, SCRIMP, environment, lines_without_times, same_bits, scrimp, weights

from scrimp.checkpoints import CheckpointStore
from scrimp.cli import main
from scrimp.report.record import read_run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two and a half epochs with a checkpoint at every third of one."""
    folder = tmp_path_factory.mktemp("runs")
    done = scrimp(*QUICK, "--num-epochs", "2.5", "--checkpoint-every", "0.3", "--out", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def test_digits_reaches_its_accuracy_and_leaves_everything(tmp_path: Path) -> None:
    done = scrimp("train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "runs" / "digits-001"
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints",
        "model.safetensors", "model.scrimp",
    }  # fmt: skip
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.985
    assert summary["sample_visits_full"] == 40 * (1438 // 64) * 64
    assert summary["sample_visits"] == summary["num_steps"] * 64 <= 0.7 * summary["sample_visits_full"]
    assert summary["model_packed_bytes"] <= summary["model_float32_bytes"] / 15
    assert summary["checkpoint_delta_ratio"] > 10
    assert f"{100 * summary['test_accuracy']:.2f} %" in done.stdout
    assert "runs/digits-001/report.html" in done.stdout
    assert done.stderr == ""
    again = scrimp("report", "runs/digits-001", cwd=tmp_path)
    assert again.returncode == 0
    assert f"{100 * summary['test_accuracy']:.2f} %" in again.stdout


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_anywhere_resumes_bit_for_bit(uninterrupted: Path, tmp_path: Path, seed: int) -> None:
    words = [*QUICK, "--num-epochs", "2.5", "--checkpoint-every", "0.3", "--out", "killed"]
    checkpoints = CheckpointStore(tmp_path / "killed" / "checkpoints")
    wait_for = random.Random(seed).choice([1, 2, 3, 4])
    process = subprocess.Popen([*SCRIMP, *words], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    seen: set[int] = set()
    while process.poll() is None and len(seen) < wait_for and time.monotonic() < deadline:
        seen.update(checkpoints.steps())
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen, "the run ended before its first checkpoint"
    assert not (tmp_path / "killed" / "summary.json").exists(), "the run ended before it was killed"

    resumed = scrimp("train", "--resume", "--out", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert same_bits(weights(uninterrupted), weights(tmp_path / "killed"))
    ours = CheckpointStore(uninterrupted / "checkpoints").load()
    theirs = checkpoints.load()
    assert ours["step"] == theirs["step"] == 55
    for name, slot in ours["optimizer"]["state"].items():
        assert torch.equal(slot["momentum_buffer"], theirs["optimizer"]["state"][name]["momentum_buffer"])
    assert lines_without_times(uninterrupted) == lines_without_times(tmp_path / "killed")


def test_the_comparison_above_can_fail(uninterrupted: Path, tmp_path: Path) -> None:
    other = scrimp(*QUICK, "--num-epochs", "2.5", "--seed", "1", "--out", "other", cwd=tmp_path)
    assert other.returncode == 0
    assert not same_bits(weights(uninterrupted), weights(tmp_path / "other"))


def test_ctrl_c_saves_says_how_to_resume_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    words = [*QUICK, "--num-epochs", "12", "--checkpoint-every", "4"]
    process = subprocess.Popen(
        [*SCRIMP, *words, "--out", "stopped"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"event": "step"') >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "scrimp train --resume --out stopped" in out
    assert "Traceback" not in err
    record = read_run(tmp_path / "stopped")
    assert record.status.value == "interrupted"
    assert (tmp_path / "stopped" / "report.html").exists()
    (newest,) = CheckpointStore(tmp_path / "stopped" / "checkpoints").steps()[-1:]
    assert record.metrics[-1]["step"] == newest

    resumed = scrimp("train", "--resume", "--out", "stopped", cwd=tmp_path)
    whole = scrimp(*words, "--out", "whole", cwd=tmp_path)
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_a_closed_output_does_not_stop_training(tmp_path: Path) -> None:
    command = " ".join([*SCRIMP, *QUICK, "--num-epochs", "4", "--evaluate-every", "0.5", "--out", "r"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "summary.json").exists()


def test_a_terminal_without_utf_8_gets_escapes(tmp_path: Path) -> None:
    done = scrimp(*QUICK, "--num-epochs", "0.1", "--out", "\u00fc b", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "\u00fc b" / "summary.json").exists()


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    words = [*QUICK, "--num-epochs", "60", "--checkpoint-every", "0.2", "--out", "r"]
    first = subprocess.Popen([*SCRIMP, *words], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    while not CheckpointStore(tmp_path / "r" / "checkpoints").steps():
        assert first.poll() is None
        time.sleep(0.01)
    second = scrimp("train", "--resume", "--out", "r", cwd=tmp_path)
    assert first.poll() is None
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "another process is training in r" in second.stderr
    assert not (tmp_path / "r" / "summary.json").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "r"
    assert main([*QUICK, "--num-epochs", "0.05", "--learning-rate", "1e38", "--out", str(run_dir)]) == 1
    err = capsys.readouterr().err
    assert "test loss is nan" in err or "NaN or infinite" in err
    assert CheckpointStore(run_dir / "checkpoints").steps() == []


def test_resume_takes_the_newest_unfinished_run_of_any_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem.txt").write_text("to be or not to be, that is the question. " * 200)
    words = [
        "train",
        "text",
        "--data",
        "poem.txt",
        "--context-length",
        "16",
        "--batch-size",
        "8",
        "--num-epochs",
        "0.5",
    ]
    words += ["--model-args", "depth=1", "width=32", "num_heads=2"]
    assert main(words) == 0
    (tmp_path / "runs" / "text-001" / "summary.json").unlink()
    (tmp_path / "runs" / "digits-001").mkdir()
    (tmp_path / "runs" / "digits-001" / "config.json").write_text("{damaged")
    assert main(["train", "--resume"]) == 0
    assert (tmp_path / "runs" / "text-001" / "summary.json").exists()
    capsys.readouterr()
    assert main(["train", "--resume"]) == 2
    assert "no unfinished run" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.iterdir() if path.is_file()}
    done = scrimp("train", "--resume", "--out", uninterrupted, cwd=uninterrupted.parent)
    assert done.returncode == 0
    assert {path: path.read_bytes() for path in before} == before


def test_own_model_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make(num_classes, in_channels, image_size, width=8):\n"
        "    flat = in_channels * image_size ** 2\n"
        "    layers = torch.nn.Linear(flat, width), torch.nn.ReLU(), torch.nn.Linear(width, num_classes)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), *layers)\n"
    )
    words = ["train", "--model", "mine:make", "--model-args", "width=12", "--num-epochs", "3", "--out", "r"]
    done = scrimp(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["num_parameters"] == 64 * 12 + 12 + 12 * 10 + 10


def test_own_text(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("to be or not to be, that is the question. " * 200)
    words = ["train", "text", "--data", "poem.txt", "--context-length", "16", "--num-epochs", "3", "--batch-size", "8"]
    words += ["--model-args", "depth=1", "--model-args", "width=32", "--model-args", "num_heads=2", "--out", "r"]
    done = scrimp(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["test_loss_nats"] < 0.5
    assert summary["test_accuracy"] is None
    assert len(summary["sample_text"]) == 400


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "poem.txt").write_text("to be or not to be, that is the question. " * 200)
    words = ["train", "text", "--data", str(tmp_path / "poem.txt"), "--context-length", "16", "--batch-size", "8"]
    words += ["--model-args", "depth=1", "--model-args", "width=32", "--model-args", "num_heads=2"]
    run_dir = tmp_path / "r"
    assert main([*words, "--num-epochs", "0.5", "--out", str(run_dir)]) == 0
    (run_dir / "summary.json").unlink()  # as if it had been killed at the end
    (tmp_path / "poem.txt").write_text("to be or not to be: that is the question. " * 200)
    assert main(["train", "--resume", "--out", str(run_dir)]) == 2
    assert "not what the run was started with" in capsys.readouterr().err


BAD = {
    "unknown recipe": (["train", "digit"], "did you mean 'digits'"),
    "unknown flag": (["train", "--lerning-rate", "1"], "did you mean '--learning-rate'"),
    "unknown command": (["trian"], "did you mean 'train'"),
    "two recipes": (["train", "digits", "text"], "one word too many"),
    "batch of none": (["train", "--batch-size", "0"], "--batch-size"),
    "batch larger than the data": (["train", "--batch-size", "5000"], "only 1,438 training samples"),
    "no number": (["train", "--num-epochs", "many"], "many"),
    "negative epochs": (["train", "--num-epochs", "-1"], "positive"),
    "unknown choice": (["train", "--optimizer", "adam"], "adamw"),
    "model that does not import": (["train", "--model", "nowhere:make"], "nowhere"),
    "model argument": (["train", "--model-args", "widht=3"], "widht"),
    "malformed model argument": (["train", "--model-args", "width"], "NAME=VALUE"),
    "missing data": (["train", "cifar10-small", "--data", "no/such/folder"], "no/such/folder"),
    "recipe's data": (["train", "cifar10-small"], "SCRIMP_DATA"),
    "no such rung": (["train", "cifar10-page", "--rung", "11"], "the ladder has the rungs 0 (baseline) to 10"),
    "rung of another recipe": (["train", "text", "--rung", "1"], "--rung is for cifar10-page"),
    "two averages": (["train", "digits", "--savings", "none", "--ema", "0.9", "--lookahead"], "choose one of them"),
    "device": (["train", "--device", "cuda:77"], "cuda:77"),
    "no run to resume": (["train", "--resume"], "no unfinished run"),
    "nothing in the folder": (["train", "--resume", "--out", "empty"], "empty"),
    "report of nothing": (["report"], "at least one run"),
    "report of no run": (["report", "empty"], "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_leaves_no_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRIMP_DATA", raising=False)
    monkeypatch.setenv("SCRIMP_CACHE", str(tmp_path / "cache"))
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("scrimp: error: ")
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_an_existing_run_is_never_mixed_with_another(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(uninterrupted.parent)
    before = {path: path.read_bytes() for path in uninterrupted.iterdir() if path.is_file()}
    assert main(["train", "--out", "whole", "--seed", "3"]) == 2
    assert "seed: 0 != 3" in capsys.readouterr().err
    assert main([*QUICK, "--num-epochs", "2.5", "--checkpoint-every", "0.3", "--out", "whole"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", "whole", "--seed", "3"]) == 2
    assert "seed: 0 != 3" in capsys.readouterr().err
    assert main(["train", "text", "--resume", "--out", "whole"]) == 2
    assert "'digits'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--checkpoint-every", "0.5", "--learning-rate", "1e30", "--warmup", "1", "--out", "r"]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "NaN or infinite at step" in err
    assert "Traceback" not in err
    for step in CheckpointStore(tmp_path / "r" / "checkpoints").verify():
        state = CheckpointStore(tmp_path / "r" / "checkpoints").load(step)["model"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    real_fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 20:  # a checkpoint takes up to seven
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main([*QUICK, "--num-epochs", "3", "--checkpoint-every", "0.3", "--out", "r"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert CheckpointStore(tmp_path / "r" / "checkpoints").verify()
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))
    monkeypatch.setattr(os, "fsync", real_fsync)
    assert main(["train", "--resume", "--out", "r"]) == 0


def test_help_needs_no_data_and_shows_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "scrimp COMMAND" in capsys.readouterr().out
    assert main(["train", "cifar10-small", "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("--learning-rate", "recipes:", "fashion-mnist", "(default: 256)", "examples:"):
        assert text in shown
    assert main(["train", "cifar10-page", "--rung", "0", "--help"]) == 0
    assert "epochs; may be fractional (default: 24)" in capsys.readouterr().out
    assert main(["--version"]) == 0
