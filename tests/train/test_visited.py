"""Counts of visits, and the pictures of the samples visited least and most."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tests.reference.runs import run_until, tiny

from scrimp.report.png import encode_png
from scrimp.report.record import read_run
from scrimp.report.thumbnails import visit_figures
from scrimp.train.data import load_dataset
from scrimp.train.run import run
from scrimp.train.visited import VisitCounts


def test_the_record_has_what_was_visited(tmp_path):
    done = run(tiny(keep=0.5, num_epochs=4), out=tmp_path / "run")
    (line,) = read_run(done.run_dir).events("visited")
    assert sum(line["histogram"]) == line["num_counted"] == line["num_samples"] == 1438
    visits = sum(number * count for number, count in enumerate(line["histogram"]))
    planned = [
        epoch["num_samples"] * (1 - epoch["pruned_fraction"]) for epoch in read_run(done.run_dir).events("epoch")
    ]
    assert visits == pytest.approx(sum(planned))
    least, most = line["least"], line["most"]
    assert max(one["visits"] for one in least) <= min(one["visits"] for one in most)
    assert most[0]["visits"] == len(line["histogram"]) - 1
    dataset = load_dataset("digits")
    picture = Image.open(io.BytesIO(base64.b64decode(least[0]["png"])))
    expected = dataset.train.inputs[least[0]["sample"], 0].numpy()
    assert (np.asarray(picture) == expected).all()
    assert least[0]["class"] == dataset.classes[int(dataset.train.targets[least[0]["sample"]])]
    assert len(visit_figures(read_run(done.run_dir))) == 3
    assert "Visited least" in (done.run_dir / "report.html").read_text()


def test_a_stopped_run_counts_on(tmp_path):
    config = tiny(keep=0.5, num_epochs=4)
    run(config, out=tmp_path / "whole")
    run_until(config, tmp_path / "parts", 40)
    run(config, out=tmp_path / "parts", resume=True)
    lines = [read_run(tmp_path / name).events("visited")[0]["histogram"] for name in ("whole", "parts")]
    assert lines[0] == lines[1]


def test_a_run_without_pruning_counts_nothing(tmp_path):
    done = run(tiny(), out=tmp_path / "run")
    assert read_run(done.run_dir).events("visited") == []


def test_of_many_samples_two_thousand_are_counted():
    counts = VisitCounts(10_000)
    assert counts.counts.numel() == 2000
    counts.count_epoch(torch.arange(0, 10_000, 10))
    assert int(counts.counts.sum()) == 1000


@pytest.mark.parametrize("num_channels", [1, 3])
def test_png_is_read_by_others(num_channels):
    pixels = bytes(range(5 * 7 * num_channels))
    picture = Image.open(io.BytesIO(encode_png(pixels, width=7, height=5, num_channels=num_channels)))
    assert (picture.size, picture.tobytes()) == ((7, 5), pixels)
