"""``scrimp pack``, ``unpack``, ``export`` and ``inspect`` on runs."""

import json
import shutil

import pytest
import torch
from tests.reference.runs import tiny
from torch.nn.utils.parametrize import is_parametrized

from scrimp.cli import main
from scrimp.train.load import load_run
from scrimp.train.run import run

FINISHED, WRONG = 0, 2


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "run"
    run(tiny(compress=True, gamma=0.2, ema=0.9, num_epochs=3, model_args={"width": 8}), out=out)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    run(tiny(num_epochs=1), out=out)
    return out


def said(capsys):
    written = capsys.readouterr()
    return written.out + written.err


def test_whole_numbers_of_a_run_reach_onnx(learned, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(learned), "--format", "onnx", "--out", str(tmp_path / "float.onnx")]) == FINISHED
    assert main(["export", str(learned), "--format", "onnx-int", "--out", str(tmp_path / "int.onnx")]) == FINISHED
    assert "weights as int" in said(capsys)
    nodes = [node.op_type for node in onnx.load(tmp_path / "int.onnx").graph.node]
    assert nodes.count("DequantizeLinear") == 5
    assert (tmp_path / "int.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size


def test_whole_numbers_of_a_transformer_reach_onnx(tmp_path, capsys):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    small = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4}
    run(tiny(compress=True, model="vit", num_epochs=0.3).replace(model_args=small), out=tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--format", "onnx-int"]) == FINISHED
    assert "weights as int4" in said(capsys)


def test_whole_numbers_of_a_plain_run_are_refused(plain, tmp_path, capsys):
    assert main(["export", str(plain), "--format", "onnx-int", "--out", str(tmp_path / "int.onnx")]) == WRONG
    assert "has learned no bits" in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_model_with_its_bits_computes_what_the_plain_one_does(learned):
    plain, quantized = load_run(learned).model, load_run(learned, quantized=True).model
    assert not is_parametrized(plain.conv2.conv)
    assert is_parametrized(quantized.conv2.conv)
    x = torch.rand(8, 1, 8, 8)
    assert torch.equal(plain(x), quantized(x))


def test_the_bits_of_a_run_are_its_own(learned, tmp_path, capsys):
    copy = tmp_path / "copy.scrimp"
    assert main(["pack", str(learned), "--bits", "3", "--out", str(copy)]) == WRONG
    assert "has learned its bits" in said(capsys)
    assert not copy.exists()
    assert main(["pack", str(learned), "--out", str(copy)]) == FINISHED
    assert copy.read_bytes() == (learned / "model.scrimp").read_bytes()


def test_a_plain_run_is_packed_with_the_bits_that_are_asked_for(plain, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(plain, out)
    sizes = []
    for words in ([], ["--bits", "3"]):
        assert main(["pack", str(out), *words]) == FINISHED
        sizes.append((out / "model.scrimp").stat().st_size)
    assert sizes[1] < sizes[0]
    assert main(["pack", str(out), "--bits", "99"]) == WRONG
    assert "99" in said(capsys)


def test_a_damaged_packed_model_is_not_copied(learned, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(learned, out)
    (out / "model.scrimp").write_bytes((out / "model.scrimp").read_bytes()[:-9])
    assert main(["pack", str(out), "--out", str(tmp_path / "copy")]) == WRONG
    assert not (tmp_path / "copy").exists()


def test_unpacking_never_overwrites_the_packed_model(learned, capsys):
    before = (learned / "model.scrimp").read_bytes()
    assert main(["unpack", str(learned), "--out", str(learned / "model.scrimp")]) == WRONG
    assert "is the packed model itself" in said(capsys)
    assert (learned / "model.scrimp").read_bytes() == before


@pytest.mark.parametrize("command", ["inspect", "unpack"])
def test_a_run_without_a_packed_model_is_told_so(plain, command, capsys):
    assert main([command, str(plain)]) == WRONG
    assert "has no model.scrimp" in said(capsys)


def test_a_run_says_where_its_packed_model_is_and_that_a_size_was_missed(tmp_path, capsys):
    words = ["--model-args", "width=4", "--num-epochs", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "digits", "--savings", "bits", "--target-bytes", "100", *words]) == FINISHED
    told = said(capsys)
    size = json.loads((tmp_path / "run" / "summary.json").read_text())["model_packed_bytes"]
    assert f"packed: {tmp_path / 'run' / 'model.scrimp'}" in told
    assert f"it has {size:,} bytes where --target-bytes asked for 100" in told


@pytest.mark.parametrize(("gamma", "is_empty"), [("6", True), ("0.01", False)])
def test_a_run_says_that_nothing_is_left(tmp_path, capsys, gamma, is_empty):
    words = ["--model-args", "width=4", "--num-epochs", "2", "--gamma", gamma, "--out", str(tmp_path / "run")]
    assert main(["train", "digits", "--savings", "bits", *words]) == FINISHED
    told = said(capsys)
    assert ("nothing is left of conv1.conv.weight and " in told) is is_empty
    assert ("a smaller --gamma leaves more" in told) is is_empty
