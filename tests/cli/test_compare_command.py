"""`scrimp compare` as a user meets it: its runs, its table, going on after Ctrl-C, and what bad input gets."""

import json
import re
import signal
import subprocess
import time

import pytest
from tests.reference.command import SCRIMP, SMALL, environment

from scrimp.cli import main
from scrimp.cli.compare import _parser, _variants
from scrimp.cli.flags import given_flags, parse
from scrimp.report.comparison import read_comparison
from scrimp.train.comparison import default_variants, draw_gammas, plan_variants, runs_of
from scrimp.train.config import TrainConfig

QUICK = ["compare", "digits", *SMALL, "--num-epochs", "3"]


def test_a_comparison_is_interrupted_goes_on_and_ends_with_its_table(tmp_path, monkeypatch, capsys):
    words = [*QUICK, "--variants", "plain", "all", "--seeds", "1", "--jobs", "1", "--out", "c"]
    process = subprocess.Popen(
        [*SCRIMP, *words], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "c" / "plain-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: what is going on saves" in out
    assert "go on with: scrimp compare --out c" in out
    assert not (tmp_path / "c" / "all-seed0").exists()

    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--out", "c"]) == 0
    printed = capsys.readouterr().out
    found = read_comparison(tmp_path / "c")
    assert found.is_complete
    assert [variant.name for variant in found.finished()] == ["plain", "all"]
    assert "all is" in printed or "all reached" in printed
    names = {path.name for path in (tmp_path / "c").iterdir()}
    files = {"comparison.json", "comparison.md", "report.html", "plan.json"}
    assert names == {"plain-seed0", "all-seed0", *files}, "and no log of runs that went well"
    told = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert told["variants"][1]["sample_visits"]["ratio"] < 1

    before = (tmp_path / "c" / "all-seed0" / "summary.json").stat().st_mtime_ns
    assert main(["compare", "--out", "c"]) == 0
    assert "2 runs, 2 of them there already" in capsys.readouterr().out
    assert (tmp_path / "c" / "all-seed0" / "summary.json").stat().st_mtime_ns == before
    assert main(["report", "c"]) == 0
    assert capsys.readouterr().out.endswith("report.html\n")


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--variants", "plain", "steps", "--seeds", "1", "--jobs", "2", "--learning-rate", "1e38"]
    assert main([*words, "--out", "c"]) == 1
    done = capsys.readouterr()
    for name in ("plain-seed0", "steps-seed0"):
        assert f"{name} failed: " in done.err
        assert (tmp_path / "c" / "logs" / f"{name}.log").exists()
    assert "Traceback" not in done.err
    assert "no run has finished" in done.out


def test_what_all_runs_fail_with_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--variants", "plain", "steps", "--seeds", "1", "--model", "nope", "--out", "c"]) == 1
    told = capsys.readouterr().err
    assert re.search(r"^\w+-seed0, \w+-seed0 failed: no model is called 'nope'", told)
    assert told.count("no model is called") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "mnist"], "no recipe is called 'mnist'"),
        (["compare", "digits", "--variants", "plane"], "no variant is called 'plane'; did you mean 'plain'"),
        (["compare", "imagenet", "--variants", "steps"], "does not say what its savings are"),
        (["compare", "imagenet"], "does not say what its savings are"),
        (["compare", "--seeds", "0"], "0 is not at least 1"),
        (["compare", "--gammas", "0.1"], "--gammas is for --sweep gamma"),
        (["compare", "--prune-ratio", "0.5"], "leave the variant shortened out"),
        (["compare", "--num-epochs", "1"], "nothing could be pruned"),
        (["compare", "--out", "full"], "exists and holds no comparison"),
        (["compare", "--savings", "all"], "no flag is called '--savings'"),
        (["compare", "--resume"], "goes on, without --resume: scrimp compare --out DIR"),
        (["compare", "--out", "other", "text"], "compares 'digits', not 'text'"),
        (["compare", "--out", "other", "--num-epochs", "5"], "was begun with other settings"),
        (["compare", "--out", "damaged"], "is damaged"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_trace(tmp_path, monkeypatch, capsys, words, message):
    for name, content in (("full/x", "x"), ("damaged/plan.json", "{")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    (tmp_path / "other").mkdir()
    plan = {"recipe": "digits", "given": {}, "variants": [], "seeds": [0], "command": "scrimp compare"}
    (tmp_path / "other" / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_the_plan_of_a_comparison(tmp_path):
    variants = plan_variants("digits", default_variants("digits"), lambda config: config.replace(num_epochs=12))
    assert [one.name for one in variants] == ["plain", "shortened", "samples", "steps", "bits", "checkpoints", "all"]
    by_name = {one.name: one.config for one in variants}
    # epochs 0 and 10, 11 of 12 are full, nine visit 0.6
    assert by_name["shortened"].num_epochs == pytest.approx(3 + 9 * 0.6)
    assert by_name["plain"].num_epochs == by_name["all"].num_epochs == 12
    runs = runs_of(variants, [0, 1], tmp_path)
    assert [run.config.seed for run in runs] == [0] * 7 + [1] * 7
    assert [run.variant for run in runs[:7]] == [run.variant for run in runs[7:]]
    assert len({run.run_dir for run in runs}) == 14


def test_flags_of_a_saving_go_to_the_variants_that_have_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, "--variants", "plain", "bits", "--seeds", "1", "--gamma", "0.5", "--out", "c"]
    assert main([*words, "--keep", "0.5"]) == 2
    assert "--keep is for samples, which no variant has" in capsys.readouterr().err
    assert main([*words, "--no-compress"]) == 2
    assert "--no-compress takes the bits out" in capsys.readouterr().err
    assert main([*words, "--sweep", "gamma"]) == 2
    assert "--gamma and --sweep gamma do not go together" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main(words) == 0
    plan = json.loads((tmp_path / "c" / "plan.json").read_text())
    assert plan["variants"][1]["meaning"] == "compress on, gamma 0.5"
    configs = [json.loads((tmp_path / "c" / f"{one}-seed0" / "config.json").read_text()) for one in ("plain", "bits")]
    assert [(one["compress"], one["gamma"]) for one in configs] == [(False, 0.02), (True, 0.5)]

    (tmp_path / "c" / "bits-seed0" / "config.json").write_text(json.dumps({**configs[1], "gamma": 0.25}))
    capsys.readouterr()
    assert main(["compare", "--out", "c", "--seeds", "2"]) == 2
    assert "was begun with other settings (gamma: 0.25 != 0.5)" in capsys.readouterr().err


def test_the_shortened_control_has_the_visits_of_the_flags():
    words = ["--keep", "0.5", "--num-epochs", "12"]
    namespace = parse(_parser(TrainConfig()), ["digits", "--variants", "plain", "shortened", *words])
    plain, shortened = _variants(namespace, "digits", given_flags(namespace), {})
    assert plain.config.keep is shortened.config.keep is None
    assert shortened.config.num_epochs == pytest.approx(3 + 9 * 0.5)


def test_the_meaning_of_bits_says_what_decides_the_size():
    def meaning(**changes):
        change = lambda config: config.replace(**changes) if config.compress else config  # noqa: E731
        return plan_variants("digits", ["bits"], change)[0].meaning

    assert meaning(gamma=0.02) == "compress on, gamma 0.02"
    assert meaning(target_bytes=9000) == "compress on, target bytes 9000"


def test_a_sweep_has_one_variant_per_gamma():
    variants = plan_variants("digits", ["plain", "bits"], gammas=(0.01, 0.2))
    assert [(one.name, one.config.gamma) for one in variants[1:]] == [
        ("bits-gamma-0.01", 0.01),
        ("bits-gamma-0.2", 0.2),
    ]
    drawn = draw_gammas(6)
    assert drawn == draw_gammas(6)
    assert list(drawn) == sorted(drawn)
    assert 0.003 <= drawn[0] < drawn[-1] <= 1.0
