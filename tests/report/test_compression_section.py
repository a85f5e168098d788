"""What the page shows of compression, in one run and over runs at several gammas."""

import re
from pathlib import Path

import pytest
from tests.report.fake_run import CONFIG, summary

from scrimp.report import RunWriter
from scrimp.report.architecture import LayerShape, architecture_figure
from scrimp.report.compression_section import compression, epoch_times
from scrimp.report.record import read_run
from scrimp.report.sweep import sweep_figures, sweep_points, sweep_section

LAYERS = [
    ["stem", 8, 6, 72, 54, 160.0],
    ["inner", 8, 0, 576, 0, 0.0],
    ["<head>", 10, 10, 80, 60, 200.0],
]


def write(run_dir: Path, gamma: float | None, *, seed: int = 0, kept=(1.0, 0.5), accuracy: float | None = 0.9) -> Path:
    with RunWriter(run_dir) as writer:
        writer.write_config({**CONFIG, "gamma": 0.02 if gamma is None else gamma, "seed": seed})
        for epoch, fraction in enumerate(kept, start=1):
            at = {"step": epoch, "epoch": float(epoch), "seconds": float(epoch)}
            if gamma is not None:
                writer.write("step", **at, packed_bytes=10_000 / epoch, weights_kept_fraction=fraction, gamma=gamma)
            times = {"forward_seconds": 4.0 * fraction, "backward_seconds": 1.0, "evaluation_seconds": 9.0}
            writer.write("epoch", **at, epoch_seconds=15.0, **times)
        if gamma is not None:
            parts = {f"{name}_bytes": 1000 for name in ("code", "scale", "tensor", "header", "packed")}
            edges = [["stem", "inner"], ["stem", "<head>"], ["inner", "<head>"]]
            writer.write(
                "compression", step=9, epoch=2.0, seconds=2.0, layers=LAYERS, waiting={"stem": 2}, edges=edges, **parts
            )
        size = None if gamma is None else round(1000 / gamma)
        writer.write_summary(
            summary(
                seed=seed, model_packed_bytes=size, model_float32_bytes=100_000, weights_kept_fraction=kept[-1],
                test_accuracy=accuracy,
            )
        )  # fmt: skip
    return run_dir


def test_the_section_of_a_run_has_its_figures(tmp_path):
    section = compression(read_run(write(tmp_path / "a", 0.1)))
    titles = [figure.html.split("<h3>")[1].split("</h3>")[0] for figure in section.figures]
    assert titles == ["Size of the model", "Weights left", "Time of an epoch", "Architecture"]
    assert compression(read_run(write(tmp_path / "plain", None))) is None


def test_epoch_times_are_those_of_the_steps_by_weights_left(tmp_path):
    """Evaluation, with its nine seconds, is not in them."""
    record = read_run(write(tmp_path / "a", 0.1, kept=(1.0, 0.5, 0.25)))
    assert epoch_times(record) == [(0.25, 2.0), (0.5, 3.0), (1.0, 5.0)]


def test_the_architecture_shows_what_is_left_what_waits_and_where_branches_go():
    layers = [LayerShape("a", 8, 6, 2, 3.0), LayerShape("b", 8, 0, 0, 0.0), LayerShape("<c>", 16, 16, 0, 2.5)]
    html = architecture_figure(layers, [("a", "b"), ("b", "<c>"), ("a", "<c>")]).html
    assert "22 of 32 channels are left in 3 layers, 2 of them at zero bits." in html
    assert "6 of 8" in html
    assert "branch removed" in html
    assert "&lt;c&gt;" in html
    assert "<c>" not in html
    assert html.count("V") == 2  # two lines to the next row, and an arc
    assert len(re.findall(r"C\d", html)) == 1
    assert html.count('class="s2" x') == 1
    bars = [float(part.split('width="')[1].split('"')[0]) for part in html.split('class="s1" x')[1:]]
    assert bars == pytest.approx([220 * 4 / 16, 0.0, 220.0])


def test_points_of_a_sweep_are_those_of_the_finished_runs(tmp_path):
    runs = [write(tmp_path / "a", 0.2), write(tmp_path / "b", 0.1, seed=1), write(tmp_path / "c", None)]
    unfinished = write(tmp_path / "d", 0.4)
    (unfinished / "summary.json").unlink()
    points = sweep_points([read_run(one) for one in (*runs, unfinished)])
    assert [(one.gamma, one.size_bytes) for one in points] == [(None, 100_000), (0.1, 10_000), (0.2, 5000)]
    assert points[1].seed == 1


def test_a_sweep_has_its_figures_and_a_row_for_each_gamma(tmp_path):
    names = [(0.1, 0), (0.1, 1), (0.2, 0), (None, 0)]
    records = [read_run(write(tmp_path / f"{g}-{seed}", g, seed=seed)) for g, seed in names]
    section = sweep_section(records)
    assert len(section.figures) == 3
    (table,) = section.tables
    assert [row[:4] for row in table.rows] == [
        ("plain", "1", "100.0 KB", "100.00 %"), ("0.1", "2", "10.0 KB", "10.00 %"), ("0.2", "1", "5.0 KB", "5.00 %"),
    ]  # fmt: skip
    assert "test accuracy, %" in section.figures[0].html
    assert sweep_section(records[2:]) is None
    assert sweep_figures(records[3:]) == []


def test_a_sweep_of_losses_counts_in_nats(tmp_path):
    records = [read_run(write(tmp_path / str(g), g, accuracy=None)) for g in (0.1, 0.2)]
    assert "test loss, nats" in sweep_section(records).figures[1].html
