"""What a run shows: a bar with a table on a terminal, plain lines in a pipe."""

import os
import pty
import re
import subprocess
from pathlib import Path

from tests.reference.command import QUICK, SCRIMP, environment, scrimp


def in_terminal(words: list[str], cwd: Path) -> str:
    """What the command writes to a terminal of 100 columns, without control sequences."""
    main_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [*SCRIMP, *words], cwd=cwd, env=environment(TERM="xterm", COLUMNS="100"), stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    chunks = []
    while True:
        try:
            chunk = os.read(main_end, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(main_end)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(chunks).decode())


def test_a_terminal_gets_a_bar_and_a_table(tmp_path: Path) -> None:
    shown = in_terminal([*QUICK, "--num-epochs", "6", "--out", "r"], tmp_path)
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
