import html
import re
import shutil
import subprocess
import sys

import pytest
from tests.report.fake_run import CONFIG, summary, write_image_run, write_text_run

from scrimp.errors import DataNotFoundError, MissingDependencyError
from scrimp.report import RunStatus, RunWriter, read_run, render_page, write_page

OUTSIDE = re.compile(
    r"""https?://|(?:src|href|action|poster|srcset)\s*=|url\(|@import|\bfetch\(|XMLHttpRequest|<(?:link|img|iframe|base)"""
)


def headings(page, level):
    return [html.unescape(heading) for heading in re.findall(f"<h{level}>(.*?)</h{level}>", page)]


def words(page):
    return " ".join(
        html.unescape(
            re.sub("<[^>]*>", " ", re.sub("(?s)<(style|script).*?</\\1>", "", page.replace("<wbr>", "")))
        ).split()
    )


def test_a_finished_run_has_every_section(tmp_path):
    path = write_page(write_image_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text()
    assert headings(page, 1) == ["cifar10-small"]
    assert headings(page, 2) == ["Training", "Time", "Checkpoints", "To repeat this run", "Configuration"]
    assert headings(page, 3) == [
        "Loss", "Accuracy", "Learning rate", "Speed", "Where the time went", "Time per epoch",
        "Size of each checkpoint",
    ]  # fmt: skip
    shown = words(page)
    for text in (
        "finished", "92.31 %", "6 m 47 s", "866,412 of 1,200,000 in full training (72.2 %)", "2,127 examples/s",
        "1.7 MB", "7.3 MB", "resnet9", "2026-11-21 05:12", "optimizer.weight_decay 0.0005", "torch 2.13.0",
        summary().command,
    ):  # fmt: skip
        assert text in shown


def test_checkpoints_show_sizes_ratios_and_errors(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.write_config({"recipe": "mine"})
        for number in range(4):
            roles = {
                "weight": {"raw_bytes": 8000, "coded_bytes": 400, "relative_error": 0.02 * number},
                "exact": {"raw_bytes": 100, "coded_bytes": 50, "relative_error": 0.0},
            }
            writer.write(
                "checkpoint", step=100 * number, epoch=float(number), seconds=1.0, raw_bytes=8100,
                stored_bytes=6000 if number else 5000, history_bytes=500 if number else 5000, exact_bytes=5500,
                is_keyframe=number == 0, save_seconds=0.1, held_seconds=0.1, by_role=roles,
            )  # fmt: skip
        writer.write_summary(
            summary(
                checkpoint_raw_bytes=32_400,
                checkpoint_stored_bytes=12_000,
                num_checkpoints=4,
                num_keyframes=1,
                checkpoint_exact_bytes=5500,
                checkpoint_delta_ratio=16.2,
                checkpoint_bytes_per_weight=12.04,
            )
        )
    page = write_page(tmp_path).read_text()
    titles = ["Size of each checkpoint", "How much smaller, by kind of tensor", "Error along the history"]
    assert [title for title in headings(page, 3) if title in titles] == titles
    shown = words(page)
    for text in (
        "weight 20.0x, exact 2.0x", "weight: 3 values from 2 to 6", "whole store: raw / stored 2.7x",
        "a difference alone: raw / stored 16.2x", "raw bytes for each weight of the model 12.04",
        "4 kept, 1 of them keyframe", "a difference 16.2x smaller",
    ):  # fmt: skip
        assert text in shown, text


def test_a_text_run_shows_loss_per_character_and_its_sample(tmp_path):
    page = write_page(write_text_run(tmp_path / "run")).read_text()
    assert headings(page, 2) == ["Training", "Time", "Sample", "Notes", "To repeat this run", "Configuration"]
    assert "Accuracy" not in headings(page, 3)
    shown = words(page)
    assert "1.571 nats per character 2.267 bits per character" in shown
    assert "And sets the morrow <burning> & awake?" in shown
    assert "resumed from step 620" in shown


@pytest.mark.parametrize(
    ("restored", "alike"),
    [("ROMEO: ah", "Of 9 characters the first 8 are the same"), ("ROMEO: a!", "All of it is the same")],
)
def test_what_a_restored_model_writes_stands_beside_the_sample(tmp_path, restored, alike):
    with RunWriter(tmp_path) as writer:
        writer.write_config(CONFIG)
        writer.write_summary(summary(sample_text="ROMEO: a!", restored_sample_text=restored))
    page = write_page(tmp_path).read_text()
    assert "Sample after a restore" in headings(page, 2)
    assert restored in words(page)
    assert alike in words(page)


def test_an_unfinished_run_shows_where_it_stands(tmp_path):
    run_dir = write_image_run(tmp_path / "run", num_epochs=2, is_finished=False)
    assert "unfinished" in words(write_page(run_dir).read_text())
    with RunWriter(run_dir) as writer:
        writer.note("NaN loss at step 195", step=195, epoch=2.01, seconds=33.4, status=RunStatus.FAILED)
    shown = words(write_page(run_dir).read_text())
    assert "cifar10-small cifar10 \u00b7 resnet9 \u00b7 cpu \u00b7 seed 7 NaN loss at step 195 " in shown
    assert "training time 33.4 s 2.01 epochs, 195 steps so far" in shown


def test_a_run_that_has_recorded_nothing_still_has_a_page(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.write_config({})
    assert "Nothing has been recorded yet." in words(write_page(tmp_path).read_text())


def test_values_that_are_not_finite_are_survived(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.write_config({"lr": 1.0})
        for step in range(5):
            at = {"step": step, "epoch": float(step), "seconds": 1.0}
            writer.write("step", **at, train_loss=float("nan"), learning_rate=float("inf"), examples_per_second=None)
            writer.write("epoch", **at, epoch_seconds=float("nan"), data_seconds=float("nan"))
            writer.write("checkpoint", **at, raw_bytes=0, stored_bytes=0)
    page = write_page(tmp_path).read_text()
    assert "Nothing was recorded." in words(page)


@pytest.mark.parametrize("write_run", [write_image_run, write_text_run])
def test_nothing_is_loaded_from_outside(tmp_path, write_run):
    page = write_page(write_run(tmp_path / "run")).read_text()
    assert not OUTSIDE.search(page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "text", ["see https://a.b", '<img src="x">', "a { background: url(x) }", "@import 'x'", "<link rel=icon>"]
)
def test_the_guard_against_outside_loads_can_fail(text):
    assert OUTSIDE.search(text)


def test_whatever_a_record_holds_is_text_on_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>\"'<b>&"
    with RunWriter(tmp_path) as writer:
        writer.write_config(CONFIG | {evil: evil, "nested": {evil: [evil]}})
        writer.note(evil, step=1, epoch=1.0, seconds=1.0)
        writer.write("epoch", step=1, epoch=1.0, seconds=1.0, epoch_seconds=1.0)
        names = (
            "recipe",
            "data",
            "model",
            "device",
            "precision",
            "command",
            "finished_at",
            "sample_text",
            "restored_sample_text",
        )
        changes = dict.fromkeys(names, evil) | {"versions": {evil: evil}, "phase_seconds": {evil: 1.0}}
        writer.write_summary(summary(**changes))
    page = write_page(tmp_path).read_text()
    assert page.count("<script") == page.count("</script>") == 1
    assert "<b>&" not in page
    assert html.unescape(page).count(evil) >= 12


def test_control_characters_are_shown_as_pictures(tmp_path):
    raw = "a\0b\x1b[31mc\x7f\x85\td\r\ne\rf\ud800"
    with RunWriter(tmp_path) as writer:
        writer.write_config(CONFIG | {"note": raw})
        writer.write_summary(summary(sample_text=raw, restored_sample_text=raw, command=raw))
    page = write_page(tmp_path).read_bytes().decode()
    shown = "a\u2400b\u241b[31mc\u2421\ufffd\td\r\ne\u240df\ufffd"
    assert page.count(shown) == 4
    assert set(re.findall(r"[\x00-\x1f\x7f-\x9f]", page)) == {"\t", "\n", "\r"}


def test_the_page_is_small_however_long_the_run(tmp_path):
    short = len(write_page(write_image_run(tmp_path / "short")).read_text())
    long = len(write_page(write_image_run(tmp_path / "long", num_epochs=300)).read_text())
    assert short < 80_000
    assert long < 150_000


def test_a_directory_without_a_run_is_refused_and_gets_no_page(tmp_path):
    with pytest.raises(DataNotFoundError):
        write_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path, monkeypatch):
    from scrimp.report import summary_panel

    record = read_run(write_image_run(tmp_path / "run", num_epochs=1))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"scrimp\[train\]"):
        render_page(record)
    for name in {"rich", *(name for name in sys.modules if name.split(".")[0] == "rich")}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"scrimp\[train\]"):
        summary_panel(summary())


def test_importing_the_package_loads_no_optional_package():
    code = "import sys, scrimp.report; sys.exit(any(name in sys.modules for name in ('jinja2', 'rich', 'markupsafe')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_is_valid(tmp_path):
    page = write_page(write_image_run(tmp_path / "run", num_epochs=1)).read_text()
    script = tmp_path / "page.js"
    script.write_text(page.split("<script>")[1].split("</script>")[0])
    subprocess.run(["node", "--check", script], check=True)
