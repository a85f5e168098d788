"""Sections about the network: from lines of a record to what the page shows."""

import re
from pathlib import Path
from typing import Any

from scrimp.report import RunWriter, read_run
from scrimp.report.network import ladder, norm_scales, profile, profile_rows, whitening
from scrimp.report.page import render_page


def record_with(path: Path, event: str, *lines: dict[str, Any]) -> Any:
    with RunWriter(path) as writer:
        writer.write_config({"recipe": "digits"})
        for number, values in enumerate(lines):
            writer.write(event, step=number, epoch=float(number), seconds=0.0, **values)
    return read_run(path)


def test_a_record_without_them_has_no_such_sections(tmp_path: Path) -> None:
    record = record_with(tmp_path, "note", {"text": "x"})
    assert [make(record) for make in (profile, norm_scales, whitening, ladder)] == [None] * 4
    assert profile_rows(record) == []


def test_shares_of_a_step_add_up(tmp_path: Path) -> None:
    operations = [{"name": "conv<2>", "seconds": 0.006, "calls": 8.0}, {"name": "add_", "seconds": 0.003, "calls": 2.5}]
    told = {"num_steps": 20, "operations": operations, "other_seconds": 0.001, "clock": "cpu"}
    record = record_with(tmp_path, "profile", told)
    rows = profile_rows(record)
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("conv<2>", "60.0 %", "8"), ("add_", "30.0 %", "2.5"), ("all others", "10.0 %", ""),
    ]  # fmt: skip
    page = render_page(record)
    assert "Where a step goes" in page
    assert "conv&lt;2&gt;" in page
    assert "By processor time of each operation itself, mean of 20 steps" in page


def test_scales_of_norms_are_drawn_over_epochs(tmp_path: Path) -> None:
    names = ("least", "tenth", "median", "ninetieth", "greatest")
    lines = [{name: number + place / 10 for place, name in enumerate(names)} for number in (1, 2, 3)]
    section = norm_scales(record_with(tmp_path, "norms", *lines))
    assert section is not None
    (figure,) = section.figures
    assert figure.html.count("<path") == 3
    assert "At the end: least 3, median 3.2, greatest 3.4." in figure.html


def test_filters_are_pictures_with_their_eigenvalues(tmp_path: Path) -> None:
    red_left = [[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, -1.0]]]  # channels, rows, columns
    gray = [[[0.5, -0.5]]] * 3
    record = record_with(tmp_path, "whitening", {"filters": [red_left, gray], "eigenvalues": [2.5, 0.125]})
    section = whitening(record)
    assert section is not None
    pictures = section.figures[0].html
    assert pictures.count("<svg") == 2
    colours = re.findall(r'fill="rgb\(([\d,]+)\)"', pictures)
    assert colours == ["255,128,128", "128,128,0", "255,255,255", "0,0,0"]
    assert [shown for shown in ("2.5", "0.125") if f'<span class="unit">{shown}</span>' in pictures] == ["2.5", "0.125"]
    assert "Eigenvalues" in section.figures[1].html
    assert "Whitening filters" in render_page(record)


def test_many_filters_are_not_all_shown(tmp_path: Path) -> None:
    one = [[[1.0]]]
    told = {"filters": [one] * 147, "eigenvalues": [1.0] * 147}
    section = whitening(record_with(tmp_path, "whitening", told))
    assert section is not None
    assert section.figures[0].html.count("<svg") == 64
    assert section.note.endswith("The first 64 of 147.")


def test_the_ladder_says_where_the_run_stands(tmp_path: Path) -> None:
    told = {"rung": 1, "names": ["baseline", "pooling", "more"], "published_seconds": [75, 50.0, None]}
    record = record_with(tmp_path, "ladder", told)
    section = ladder(record)
    assert section is not None
    bars = section.figures[0].html
    assert re.findall(r'scope="row">([^<]+)<', bars) == ["baseline", "pooling (this run)", "more"]
    assert re.findall(r'width="([\d.]+)" height="8"', bars) == ["100.00", "66.67", "0.00"]
    assert "The ladder" in render_page(record)
