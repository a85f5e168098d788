"""What a comparison says while it goes, and its table in a terminal."""

import json

import pytest

from scrimp.cli import compare_display
from scrimp.cli.tables import fitting
from scrimp.report.comparison_table import CellText, ComparisonTable
from scrimp.train.comparison import plan_variants, runs_of


@pytest.fixture
def runs(tmp_path):
    variants = plan_variants("digits", ["plain", "steps", "bits"], lambda config: config.replace(num_epochs=8))
    return runs_of(variants, [0], tmp_path / "c")


def record(run, epoch):
    run.run_dir.mkdir(parents=True, exist_ok=True)
    line = {"event": "step", "step": 1, "epoch": epoch, "seconds": 1.0}
    (run.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_lines_say_which_run_how_far_and_how_long(runs, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with compare_display.open_progress(runs, 3) as progress:
        assert capsys.readouterr().out == f"3 runs, 3 at a time, into {runs[0].run_dir.parent}\n"
        for run in runs:
            progress.on_start(run)
        now = 9.0
        progress.on_wait(runs)
        assert capsys.readouterr().out == ""
        now = 11.0
        progress.on_wait(runs)
        assert capsys.readouterr().out == "0/3 done, plain, seed 0: starting; steps, seed 0: starting; 1 more\n"
        for run in runs[1:]:
            record(run, 1.0)
        now = 12.0
        progress.on_wait(runs)
        for run in runs[1:]:
            record(run, 4.0)
        now = 30.0
        progress.on_wait(runs[1:])
        # 6 s an epoch, of which plain has all eight to go
        assert capsys.readouterr().out == (
            "0/3 done, steps, seed 0: epoch 4.0/8; bits, seed 0: epoch 4.0/8, about 50 s left\n"
        )
        progress.on_end(runs[0], False)
        assert capsys.readouterr().out == "1/3 plain, seed 0: failed\n"
        # a tenth of the time that has passed, and never more than five minutes
        now = 1030.0
        progress.on_wait(runs[1:])
        capsys.readouterr()
        now = 1030.0 + 103.0
        progress.on_wait(runs[1:])
        assert capsys.readouterr().out == ""
        now = 1030.0 + 120.0
        progress.on_wait(runs[1:])
        assert capsys.readouterr().out.startswith("1/3 done, steps, seed 0: epoch 4.0/8; ")
        progress.on_stop()
        assert capsys.readouterr().out.startswith("stopping: ")


def test_a_narrow_terminal_gets_the_columns_that_matter_whole():
    header = ("accuracy", "visits", "steps", "time", "processor time", "examples/s", "model")
    cells = tuple(CellText("1,234", "±1 %", "0.65x") for _ in header)
    table = ComparisonTable(header, (("plain", cells), ("checkpoints", cells)))
    assert fitting(table, 200) == (table, ())
    # 11 for the name, 10 for each column, 3 between them
    needed = 11 + 7 * 13 + 2
    assert fitting(table, needed) == (table, ())
    narrower, gone = fitting(table, needed - 1)
    assert gone == ("examples/s",)
    assert narrower.header == ("accuracy", "visits", "steps", "time", "processor time", "model")
    assert all(len(row) == 6 for _, row in narrower.rows)
    narrowest, gone = fitting(table, 1)
    assert narrowest.header == ("accuracy", "processor time", "model")
    assert set(gone) == {"examples/s", "steps", "time", "visits"}
