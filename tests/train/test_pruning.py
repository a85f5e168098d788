from pathlib import Path

import pytest
from tests.reference.runs import STEPS_PER_EPOCH, last_state, run_until, tiny

from scrimp._core.index_plan import ShufflePlan
from scrimp.errors import ConfigError
from scrimp.report.record import read_run
from scrimp.report.table import summary_text
from scrimp.samples import Budget, DynamicRandom, MeanThreshold, Quantiles, SamplePruner
from scrimp.testing import assert_same_state
from scrimp.train.job import Seams
from scrimp.train.pruning import rule_of, with_pruning
from scrimp.train.run import run


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, None),
        ({"sample_rule": "none"}, None),
        ({"prune_ratio": 0.3}, MeanThreshold(0.3)),
        ({"keep": 0.7}, Budget(0.7)),
        ({"sample_rule": "mean"}, MeanThreshold(0.5)),
        ({"sample_rule": "mean", "prune_ratio": 0.6}, MeanThreshold(0.6)),
        ({"sample_rule": "quantiles"}, Quantiles()),
        ({"sample_rule": "budget"}, Budget(0.6)),
        ({"sample_rule": "random", "keep": 0.4}, DynamicRandom(0.4)),
    ],
)
def test_settings_name_a_rule(settings, rule):
    assert rule_of(tiny(**settings)) == rule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_ratio": 0.3, "keep": 0.5}, "do not go together"),
        ({"sample_rule": "budget", "prune_ratio": 0.3}, "--prune-ratio is for --sample-rule mean"),
        ({"sample_rule": "quantiles", "keep": 0.3}, "--keep is for"),
        ({"sample_rule": "none", "keep": 0.5}, "none leaves nothing out"),
        ({"sample_rule": "none", "prune_ratio": 0.5}, "without pruning"),
        ({"prune_ratio": 1.0}, "prune_ratio is 1.0"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"prune_ratio": 0.5, "num_epochs": 2}, "nothing could be pruned"),
    ],
)
def test_settings_that_contradict_each_other(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(tiny(**{"num_epochs": 8, **settings}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_epoch_smaller_than_a_batch_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epoch 1 visits too few samples for one batch of"):
        run(tiny(keep=0.01, num_epochs=4), out=tmp_path / "run")


def test_a_sampler_of_ones_own_is_not_replaced():
    seams = Seams(sampler=ShufflePlan)
    assert with_pruning(tiny(), seams) is seams
    with pytest.raises(ConfigError, match="a sampler of its own"):
        with_pruning(tiny(num_epochs=8, keep=0.5), seams)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"prune_ratio": 0.5}, "sum"),
        ({"keep": 0.5}, "constant"),
        ({"prune_ratio": 0.5, "optimizer": "adamw"}, "constant"),
        ({"prune_ratio": 0.5, "clip_norm": 1.0}, "constant"),
    ],
)
def test_the_scale_suits_the_optimizer(settings, scale):
    seams = with_pruning(tiny(num_epochs=8, **settings), Seams())
    pruner = seams.sampler(100)
    assert isinstance(pruner, SamplePruner)
    assert pruner.scale == scale


@pytest.mark.parametrize(
    ("settings", "stored", "words"),
    [
        ({"sample_rule": "budget"}, ("budget", None, 0.6), "budget, keep 0.6"),
        ({"sample_rule": "mean"}, ("mean", 0.5, None), "mean, prune ratio 0.5"),
        ({"keep": 0.7}, ("budget", None, 0.7), "budget, keep 0.7"),
        ({}, ("none", None, None), None),
    ],
)
def test_what_was_chosen_by_default_is_on_record(tmp_path: Path, settings, stored, words) -> None:
    done = run(tiny(num_epochs=4, **settings), out=tmp_path / "run")
    record = read_run(done.run_dir)
    assert tuple(record.config[name] for name in ("sample_rule", "prune_ratio", "keep")) == stored
    assert done.summary.sample_rule == words
    for text in (summary_text(done.summary), (done.run_dir / "report.html").read_text()):
        assert words is None or f"rule: {words}" in " ".join(text.split())  # the terminal breaks lines
    assert "cannot be drawn" not in (done.run_dir / "report.html").read_text()
    again = run(tiny(num_epochs=4, **settings), out=tmp_path / "run", resume=True)
    assert again.was_finished


@pytest.mark.parametrize("settings", [{"keep": 0.5}, {"sample_rule": "random", "keep": 0.5}])
def test_a_budget_and_its_control_make_the_steps_they_should(tmp_path: Path, settings) -> None:
    done = run(tiny(num_epochs=4, **settings), out=tmp_path / "run")
    # 1437 samples in batches of 64: 22 steps in the first and the last epoch, 11 (of 718 visits) in the two between
    assert done.step == 2 * STEPS_PER_EPOCH + 2 * 11
    summary = done.summary
    assert summary.sample_visits == 64 * done.step
    assert summary.sample_visits_full == 64 * 4 * STEPS_PER_EPOCH
    epochs = read_run(done.run_dir).events("epoch")
    assert [line["sample_visits"] for line in epochs] == [64 * 22, 64 * 11, 64 * 11, 64 * 22]


@pytest.mark.parametrize("settings", [{"prune_ratio": 0.5}, {"keep": 0.5}, {"prune_ratio": 0.6, "accumulation": 3}])
@pytest.mark.parametrize("stop", [7, 22, 30])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, settings, stop) -> None:
    config = tiny(num_epochs=4, **settings)
    whole = run(config, out=tmp_path / "whole")
    run_until(config, tmp_path / "parts", stop)
    parts = run(config, out=tmp_path / "parts", resume=True)
    assert parts.step == whole.step
    assert_same_state(last_state(parts.run_dir), last_state(whole.run_dir))
    assert parts.summary.sample_visits == whole.summary.sample_visits < whole.summary.sample_visits_full


def test_what_pruning_did_is_on_record(tmp_path: Path) -> None:
    done = run(tiny(num_epochs=4, prune_ratio=0.5), out=tmp_path / "run")
    record = read_run(done.run_dir)
    epochs = record.events("epoch")
    assert [line["num_samples"] for line in epochs] == [1438] * 4
    assert epochs[0]["pruned_fraction"] == epochs[3]["pruned_fraction"] == 0
    assert epochs[0]["score_quantile_50"] is None
    assert epochs[0]["class_keep_rates"] == [1.0] * 10
    for line in epochs[1:3]:
        assert 0.2 < line["pruned_fraction"] < 0.5
        assert line["max_weight"] == 2
        num_visits = round(1438 * (1 - line["pruned_fraction"]))
        assert 0.8 * num_visits < line["effective_sample_size"] < num_visits
        quantiles = [line[f"score_quantile_{level}"] for level in (0, 5, 25, 50, 75, 95, 100)]
        assert quantiles == sorted(quantiles)
        assert 0 < min(line["class_keep_rates"]) < max(line["class_keep_rates"]) < 1
    assert [line["score_age_max_epochs"] for line in epochs] == [0, 1, 2, 3]
    assert done.summary.pruning == {
        "pruned_fraction": pytest.approx(sum(line["pruned_fraction"] for line in epochs) / 4),
        "pruning_seconds": pytest.approx(sum(line["pruning_seconds"] for line in epochs)),
        "num_nonfinite_scores": 0,
    }
    assert 0 < done.summary.pruning["pruning_seconds"] < done.summary.train_seconds
    assert list(done.summary.class_keep_rates) == [str(digit) for digit in range(10)]
    assert 0.6 < min(done.summary.class_keep_rates.values()) < max(done.summary.class_keep_rates.values()) < 1
    page = (done.run_dir / "report.html").read_text()
    for heading in ("Samples visited per epoch", "Scores (last losses), by quantile", "Age of the scores"):
        assert heading in page


def test_without_pruning_nothing_is_said_of_it(tmp_path: Path) -> None:
    done = run(tiny(), out=tmp_path / "run")
    assert done.summary.pruning == done.summary.class_keep_rates == {}
    assert not any("pruned_fraction" in line for line in read_run(done.run_dir).events("epoch"))
    assert "Age of the scores" not in (done.run_dir / "report.html").read_text()


def test_a_resumed_run_has_the_same_record(tmp_path: Path) -> None:
    config = tiny(num_epochs=4, keep=0.5)
    whole = run(config, out=tmp_path / "whole")
    run_until(config, tmp_path / "parts", 30)
    parts = run(config, out=tmp_path / "parts", resume=True)

    def lines(run_dir):
        epochs = read_run(run_dir).events("epoch")
        return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in epochs]

    assert lines(parts.run_dir) == lines(whole.run_dir)
