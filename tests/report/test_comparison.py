"""The table and page of a comparison, from records made without training."""

import json
import re
from dataclasses import replace

import pytest
from tests.report.fake_run import CONFIG, summary, write_image_run

from scrimp.errors import DataNotFoundError, FormatError
from scrimp.report.comparison import (
    MODEL,
    VISITS,
    cell,
    comparison_dict,
    difference,
    read_comparison,
    run_name,
    verdict,
)
from scrimp.report.comparison_files import write_comparison
from scrimp.report.comparison_page import render_comparison
from scrimp.report.comparison_table import comparison_markdown, comparison_table, ratio_text, verdicts
from scrimp.report.record import RunWriter, read_run

CHANGES = {
    "plain": {},
    "samples": {"sample_visits": 600_000, "train_seconds": 300.0},
    "all": {"sample_visits": 600_000, "model_packed_bytes": 60_000, "train_seconds": 200.0, "cpu_seconds": 390.0},
}


def write(folder, *, changes=CHANGES, seeds=3, accuracy=lambda variant, seed: 0.92 + 0.001 * seed, missing=(), **more):
    plan = {
        "recipe": "cifar10-small", "seeds": list(range(seeds)), "command": "scrimp compare cifar10-small",
        "num_at_once": 1, "given": {},
        "variants": [{"name": name, "meaning": f"what {name} is", "settings": {}} for name in changes],
        **more,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    for name, of_variant in changes.items():
        for seed in range(seeds):
            if (name, seed) in missing:
                continue
            run_dir = write_image_run(folder / run_name(name, seed), num_epochs=4)
            with RunWriter(run_dir) as writer:
                gamma = float(name.rpartition("-")[2]) if "gamma" in name else 0.02
                writer.write_config({**CONFIG, "gamma": gamma})
                one = {**of_variant, "seed": seed}
                if accuracy is not None:
                    one["test_accuracy"] = accuracy(name, seed)
                writer.write_summary(replace(summary(), **one))
    return read_comparison(folder)


def test_cells_are_means_with_their_spread_and_paired_ratios(tmp_path):
    found = write(tmp_path / "c")
    every = {variant.name: variant for variant in found.variants}
    visits = cell(found, every["samples"], VISITS)
    assert (visits.mean, visits.std, visits.num) == (600_000, 0.0, 3)
    assert visits.ratio == pytest.approx(600_000 / 866_412)
    assert cell(found, every["all"], MODEL).ratio == pytest.approx(60_000 / 1_651_624)
    accuracy = cell(found, every["plain"], next(m for m in _measures(found) if m.key == "test_accuracy"))
    assert (accuracy.mean, accuracy.std) == (pytest.approx(0.921), pytest.approx(0.001))
    assert accuracy.ratio is None, "the ratio of two accuracies is no saving"


def _measures(found):
    from scrimp.report.comparison import measures_of

    return measures_of(found)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((0.0, 0.0, 0.0), "all reached what plain training did"),
        ((-0.01, -0.011, -0.009), "all is 1.00 points lower than plain training"),
        ((-0.01, -0.011, -0.009), "worse by more than chance"),
        ((0.01, 0.011, 0.009), "better by more than chance"),
        ((-0.01, 0.01, -0.002), "no difference that these seeds can tell"),
        ((-0.01, -0.01), "too few seeds to tell a difference"),
        ((-0.01,), "with one seed nothing can be said about chance"),
    ],
)
def test_what_the_seeds_say(tmp_path, gains, said):
    found = write(
        tmp_path / "c", seeds=len(gains), accuracy=lambda name, seed: 0.92 + (gains[seed] if name == "all" else 0.0)
    )
    assert said in verdict(found, found.variants[-1])
    assert verdict(found, found.variants[0]) == ""


def test_differences_are_taken_over_the_pairs_that_there_are(tmp_path):
    found = write(tmp_path / "c", missing=[("plain", 0), ("all", 2)])
    assert difference(found, found.variants[-1]).num == 1
    assert not found.is_complete
    without_plain = write(tmp_path / "d", missing=[("plain", seed) for seed in range(3)])
    assert without_plain.plain is None
    assert verdicts(without_plain) == ()
    assert "cifar10-small" in render_comparison(without_plain)


def test_a_sweep_counts_plain_training_alone_as_plain(tmp_path):
    changes = {
        "plain": {}, "samples": {},
        **{f"bits-gamma-{gamma}": {"model_packed_bytes": round(9000 / gamma)} for gamma in (0.01, 0.1)},
    }  # fmt: skip
    found = write(tmp_path / "c", changes=changes, seeds=1)
    page = render_comparison(found)
    assert "Size against quality" in page
    rows = re.findall(r'<th scope="row">(?:plain|0.01|0.1)</th><td>(\d+)</td>', page)
    assert rows == ["1", "1", "1"]
    assert "Size against quality" not in render_comparison(write(tmp_path / "d"))


@pytest.mark.parametrize(
    ("accuracies", "shown"),
    [
        ((0.92, 0.918, 0.80), "0.02"),
        ((0.95, 0.93, 0.921), "0.04"),
        ((0.90, 0.898, 0.88), "0.02"),
        ((0.90, 0.85, 0.80), "0.01"),
        ((0.918, 0.914, 0.80), "0.01"),
        ((0.914, 0.91, 0.80), "0.02"),
        ((None, 0.918, 0.80), "0.02"),
    ],
)
def test_a_sweep_shows_the_smallest_model_that_is_as_good(tmp_path, accuracies, shown):
    gammas = ("0.01", "0.02", "0.04")
    changes = {
        "plain": {}, **{f"bits-gamma-{gamma}": {"model_packed_bytes": round(9000 / float(gamma))} for gamma in gammas}
    }  # fmt: skip
    of = {"plain": 0.92, **{f"bits-gamma-{gamma}": one for gamma, one in zip(gammas, accuracies, strict=True)}}
    found = write(tmp_path / "c", changes=changes, seeds=1, accuracy=lambda variant, seed: of[variant])
    assert f"with bits-gamma-{shown}" in render_comparison(found)


def test_energy_of_runs_beside_one_another_is_nobodys(tmp_path):
    CHANGES["all"]["energy_joules"] = 900.0
    try:
        assert "energy" in comparison_table(write(tmp_path / "c")).header
        assert "energy" not in comparison_table(write(tmp_path / "d", num_at_once=2)).header
    finally:
        del CHANGES["all"]["energy_joules"]


def test_files(tmp_path):
    found = write(tmp_path / "c")
    json_path, markdown_path, page_path = write_comparison(found)
    told = json.loads(json_path.read_text())
    assert told == json.loads(json.dumps(comparison_dict(found)))
    assert told["variants"][2]["sample_visits"]["mean"] == 600_000
    markdown = markdown_path.read_text()
    assert markdown == comparison_markdown(found)
    rows = [line for line in markdown.splitlines() if line.startswith("| **")]
    assert len({line.count("|") for line in rows}) == 1
    assert "1/27.5" in rows[2]
    assert "what samples is" in page_path.read_text()


def test_markup_in_a_plan_is_text_on_the_page(tmp_path):
    found = write(tmp_path / "c", recipe="<script>x</script>", command="<b>")
    page = render_comparison(found)
    assert "<script>x" not in page
    assert len(re.findall("<script>", page)) == 1


def test_small_ratios_are_fractions():
    assert [ratio_text(value) for value in (0.65, 1.2, 0.05, 0.2)] == ["0.65x", "1.20x", "1/20", "1/5"]


def test_what_is_no_comparison(tmp_path):
    with pytest.raises(DataNotFoundError, match="holds no comparison"):
        read_comparison(tmp_path)
    for content in ("nonsense", "[]", '{"seeds": 3}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(FormatError, match="is damaged"):
            read_comparison(tmp_path)


def test_a_run_that_has_only_begun_is_no_row(tmp_path):
    write(tmp_path / "c", missing=[("all", seed) for seed in range(3)])
    write_image_run(tmp_path / "c" / run_name("all", 0), is_finished=False)
    found = read_comparison(tmp_path / "c")
    assert [name for name, _ in comparison_table(found).rows] == ["plain", "samples"]
    assert read_run(tmp_path / "c" / run_name("all", 0)).summary is None
