"""Runs that compress their model."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.reference.runs import STEPS_PER_EPOCH, last_state, run_until, tiny

import scrimp
from scrimp.checkpoints import CheckpointStore
from scrimp.cli import main
from scrimp.errors import ConfigError
from scrimp.report.record import RunStatus, read_run
from scrimp.testing import assert_same_state
from scrimp.train.config import parse_bytes
from scrimp.train.load import load_run, unpack_run
from scrimp.train.run import run


def compressing(**changes):
    return tiny(**{"compress": True, "gamma": 0.5, "num_epochs": 4, "model_args": {"width": 8}, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return run(compressing(), out=out)


def test_a_run_shrinks_its_model_and_says_by_how_much(finished):
    summary, record = finished.summary, read_run(finished.run_dir)
    assert summary.model_packed_bytes == (finished.run_dir / "model.scrimp").stat().st_size
    assert summary.model_float32_bytes == 4 * summary.num_parameters
    assert summary.model_packed_bytes < summary.model_float32_bytes / 8
    assert summary.weights_kept_fraction < 1
    sizes = [point.value for point in record.series("step", "packed_bytes")]
    assert sizes[-1] < sizes[0]
    gammas = [point.value for point in record.series("step", "gamma")]
    assert (gammas[0], gammas[-1]) == (0.5, 0.0)
    (line,) = record.events("compression")
    assert line["packed_bytes"] == summary.model_packed_bytes
    assert len(line["layers"]) == 5
    assert "Compression" in (finished.run_dir / "report.html").read_text()


def test_the_saved_and_the_packed_model_are_the_one_that_was_judged(finished):
    """Both are built again from the run directory alone, and have its accuracy on the test images."""
    from scrimp.train.data import load_dataset

    test = load_dataset("digits").test
    loaded, unpacked = load_run(finished.run_dir), unpack_run(finished.run_dir / "model.scrimp")
    logits = [one.model(one.prepare(test.inputs)) for one in (loaded, unpacked)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    assert torch.equal(logits[0].argmax(1), logits[1].argmax(1))
    accuracy = (logits[0].argmax(1) == test.targets).double().mean().item()
    assert accuracy == pytest.approx(finished.summary.test_accuracy, abs=0.003)


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH * 3, STEPS_PER_EPOCH * 4 - 3])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "learning_rate": 0.01}, {"target_bytes": 2500}])
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, settings, step):
    """Also when channels are gone by then, and when bits are frozen already."""
    config = compressing(**settings)
    run(config, out=tmp_path / "whole")
    run_until(config, tmp_path / "parts", step)
    done = run(config, out=tmp_path / "parts", resume=True)
    assert done.status is RunStatus.FINISHED
    assert_same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    packed = [(tmp_path / name / "model.scrimp").read_bytes() for name in ("whole", "parts")]
    assert packed[0] == packed[1]


def test_the_resumed_run_of_the_test_above_had_lost_channels(finished):
    kept = read_run(finished.run_dir).series("step", "weights_kept_fraction")
    assert [point.value for point in kept if point.step <= STEPS_PER_EPOCH * 4 - 3][-1] < 1


def test_samples_may_be_pruned_as_well(tmp_path):
    done = run(compressing(num_epochs=8, prune_ratio=0.5), out=tmp_path / "run")
    assert done.summary.sample_visits < done.summary.sample_visits_full
    assert done.summary.model_packed_bytes < done.summary.model_float32_bytes / 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graphs": True}, "--compress and --graphs"),
        ({"compress": False}, "--gamma is for --compress"),
        ({"compress": False, "gamma": 0.02, "target_bytes": 500}, "--target-bytes is for --compress"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(compressing(**settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "number"), [("600k", 600_000), ("1.5M", 1_500_000), ("2500", 2500)])
def test_bytes_have_units(text, number):
    assert parse_bytes(text) == number


def test_the_commands_unpack_and_inspect(finished, tmp_path, capsys):
    packed = finished.run_dir / "model.scrimp"
    assert main(["unpack", str(packed), "--out", str(tmp_path / "m.safetensors")]) == 0
    weights = safetensors.torch.load_file(tmp_path / "m.safetensors")
    unpacked = unpack_run(packed).model.state_dict()
    assert weights.keys() == unpacked.keys()
    assert all(torch.equal(value, unpacked[name]) for name, value in weights.items())
    assert main(["inspect", str(packed)]) == 0
    told = capsys.readouterr().out
    assert f"{packed.stat().st_size:,} bytes" in told
    rows = [line.split() for line in told.splitlines() if ".weight" in line]
    assert all(0 <= float(bits) < 32 for *_, bits, _ in rows)
    assert 0 < sum(int(row[-1].replace(",", "")) for row in rows) < packed.stat().st_size
    assert len(rows) == len(scrimp.bits.inspect_packed(packed).layers)
    before = (finished.run_dir / "model.safetensors").read_bytes()
    assert main(["unpack", str(finished.run_dir)]) == main(["inspect", str(finished.run_dir)]) == 0
    assert (finished.run_dir / "model.safetensors").read_bytes() == before
    assert safetensors.torch.load_file(finished.run_dir / "model.unpacked.safetensors").keys() == weights.keys()
    assert main(["pack", str(finished.run_dir), "--out", str(tmp_path / "copy.scrimp")]) == 0
    assert (tmp_path / "copy.scrimp").read_bytes() == packed.read_bytes()


def test_the_export_command_writes_what_was_trained(finished, tmp_path, capsys):
    assert main(["export", str(finished.run_dir), "--format", "pt2", "--out", str(tmp_path / "m.pt2")]) == 0
    assert "checked" in capsys.readouterr().out
    program, loaded = torch.export.load(tmp_path / "m.pt2").module(), load_run(finished.run_dir)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program(images), loaded.model(images), rtol=0, atol=1e-5)


def test_a_plain_run_is_packed_at_eight_bits(tmp_path, capsys):
    done = run(tiny(), out=tmp_path / "run")
    assert main(["pack", str(done.run_dir)]) == 0
    assert "bits per weight" in capsys.readouterr().out
    plain, unpacked = load_run(done.run_dir), unpack_run(done.run_dir / "model.scrimp")
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unpacked.model(images), plain.model(images), rtol=0.1, atol=0.1)


def test_files_of_another_kind_are_refused_with_a_sentence(tmp_path, capsys):
    (tmp_path / "x.scrimp").write_bytes(b"something else")
    for command in ("unpack", "inspect"):
        assert main([command, str(tmp_path / "x.scrimp")]) == 2
        assert "not a packed model" in capsys.readouterr().err
    scrimp.pack(torch.nn.Linear(2, 2), tmp_path / "bare.scrimp", metadata={"config": 3})
    with pytest.raises(scrimp.errors.FormatError, match="does not say how"):
        unpack_run(tmp_path / "bare.scrimp")


def test_weights_in_the_place_of_a_runs_model_are_told(tmp_path):
    done = run(tiny(), out=tmp_path / "run")
    path = done.run_dir / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    with pytest.raises(scrimp.errors.FormatError, match="not the file that the run wrote"):
        load_run(done.run_dir)


def test_the_summary_is_json(finished):
    summary = json.loads((finished.run_dir / "summary.json").read_text())
    assert summary["weights_kept_fraction"] == finished.summary.weights_kept_fraction
    assert Path(finished.run_dir / "model.safetensors").exists()


def test_the_weights_of_a_checkpoint_are_those_that_the_run_computed_with(finished, tmp_path, capsys):
    """Of any step, under the names of the plain model; the tensors of quantisers are there for who asks."""
    store = CheckpointStore(finished.run_dir / "checkpoints")
    step = store.steps()[-2]
    stored = store.load(step)["model"]
    raw = {name.split(".parametrizations")[0]: name for name in stored if name.endswith("weight.original")}
    assert len(raw) == 5

    words = ["checkpoints", "export", str(finished.run_dir), str(tmp_path / "w.safetensors"), "--step", str(step)]
    assert main(words) == 0
    plain = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert plain.keys() == safetensors.torch.load_file(finished.run_dir / "model.safetensors").keys()
    for name, raw_name in raw.items():
        depth, log_span = (stored[raw_name.replace("original", f"0.{kind}")] for kind in ("depth", "log_span"))
        bits = depth.clamp(min=2.0) if name == list(raw)[-1] else depth  # an output keeps two
        expected = scrimp.bits.quantize(stored[raw_name], bits, log_span - bits.clamp(0, 16), 0, symmetric=True)
        assert torch.equal(plain[f"{name}.weight"], expected)
        assert not torch.equal(expected, stored[raw_name])

    assert main([*words, "--as-stored"]) == 0
    assert_same_state(safetensors.torch.load_file(tmp_path / "w.safetensors"), dict(stored))
    shutil.copytree(store.path, tmp_path / "alone")
    words[2] = str(tmp_path / "alone")
    capsys.readouterr()
    assert main(words) == 0
    assert "plain weights take the directory of the run" in capsys.readouterr().err
    assert_same_state(safetensors.torch.load_file(tmp_path / "w.safetensors"), dict(stored))
