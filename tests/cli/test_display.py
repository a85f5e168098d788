"""What a run shows: a bar with a table on a terminal, plain lines in a pipe."""

import re
from pathlib import Path

from tests.reference.command import QUICK, scrimp
from tests.reference.terminal import Terminal


def test_a_terminal_gets_a_bar_and_a_table(tmp_path: Path) -> None:
    terminal = Terminal([*QUICK, "--num-epochs", "6", "--out", "r"], tmp_path)
    shown = terminal.read_to_end()
    assert terminal.process.wait(timeout=60) == 0
    assert "1,438 train + 359 test images of 1x8x8" in shown
    assert re.search(r"epoch 6\.0/6 ━+ loss \d\.\d+  test \d+\.\d+ %  [\d,]+ examples/s \d:\d\d:\d\d", shown)
    assert "╭─ digits: small-cnn on digits, cpu, seed 0" in shown
    assert "page: r/report.html" in shown


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = scrimp(*QUICK, "--num-epochs", "2", "--evaluate-every", "1", "--out", "r", cwd=tmp_path)
    lines = done.stdout.splitlines()
    evaluations = [line for line in lines if "accuracy" in line and line.startswith("epoch")]
    assert [line.split(",")[0] for line in evaluations] == ["epoch 1.00/2", "epoch 2.00/2"]
    assert all(" s left" in line for line in evaluations[:1])
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert lines[-2:] == ["page: r/report.html", "model: r/model.safetensors"]
