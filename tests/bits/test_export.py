"""Exports: each runs in a process without scrimp and is what it was made of; a wrong one is not written."""

import copy
import json
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import scrimp
from scrimp.bits import export as export_function
from scrimp.bits import plain_copy, quantized_layers, self_compress_
from scrimp.bits.compress import starting_values
from scrimp.errors import ConfigError, ExportError


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = draw(1, 16, 3, 8, 8)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2),
        nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 10),
    )  # fmt: skip


def compressed(bits=5.0):
    model = net()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(number, *parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    self_compress_(model, IMAGES, bits=bits)
    for _ in range(3):
        model.train()(IMAGES)
    return model


def shrunk():
    model = compressed()
    with torch.no_grad():
        quantized_layers(model)["0"].quantizer.depth[::4] = 0.0
        model[1].bias[::4] = -1.0
    assert scrimp.remove_dead_channels_(model, example_inputs=IMAGES).num_channels > 0
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pt2", "onnx", "onnx-int"])
def test_every_format_is_checked_and_written(tmp_path, kind):
    if kind.startswith("onnx"):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = shrunk()
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "model.out"
    report = scrimp.export(model, path, format=kind, example_inputs=IMAGES)
    assert report.file_bytes == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if kind == "safetensors":
        assert report.max_difference is None
        plain = scrimp.bits.plain_copy(model).state_dict()
        stored = safetensors.torch.load_file(path)
        assert stored.keys() == plain.keys() == net().state_dict().keys()
        with safetensors.safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["structure"])["shapes"]["0.weight"] == list(plain["0.weight"].shape)
    else:
        assert report.max_difference <= 1e-5
    if kind == "pt2":  # any batch size
        program = torch.export.load(path).module()
        torch.testing.assert_close(program(IMAGES[:5]), model.eval()(IMAGES[:5]), rtol=0, atol=1e-5)
    if kind == "onnx-int":
        assert sum(report.coded.values()) >= 2


def test_codes_take_four_bits_where_all_of_a_tensor_fit(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 7),
            nn.Linear(7, 3), nn.Linear(3, 3),
        )  # fmt: skip
    scrimp.self_compress_(model, IMAGES)
    layers = quantized_layers(model)
    for name, bits, sign in (("0", 4.0, None), ("2", 5.0, 1.0), ("5", 6.0, None), ("6", 10.0, None), ("7", 3.0, None)):
        layer = layers[name]
        with torch.no_grad():
            if sign:
                layer.raw_weight.abs_()
        values, exponents = starting_values(layer.raw_weight, 0, bits)
        layer.quantizer.set_(values, exponents)
    report = scrimp.export(model, tmp_path / "m.onnx", format="onnx-int", example_inputs=IMAGES)
    assert report.coded == {"int4": 2, "uint4": 1, "int8": 1, "int16": 1}
    graph = onnx.load(tmp_path / "m.onnx").graph
    stored = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name.endswith("_codes")]
    wanted = [layers[name].codes().numpy() for name in layers]
    for codes in stored:
        assert any(sorted(codes.astype(int).flat) == sorted(own.flat) for own in wanted)
    raw = {len(one.raw_data) for one in graph.initializer if one.name.endswith("_codes")}
    assert -(-5 * 27 // 2) in raw  # an odd number of codes


def test_other_codes_are_noticed(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = sys.modules["scrimp.bits.export"]
    store = module.store_codes

    def damaged(path, layers):
        return {name: (kind, codes + 1) for name, (kind, codes) in store(path, layers).items()}

    monkeypatch.setattr(module, "store_codes", damaged)
    with pytest.raises(ExportError, match="other codes in"):
        scrimp.export(compressed(), tmp_path / "m.onnx", format="onnx-int", example_inputs=IMAGES)


def test_a_plain_copy_computes_the_same_and_the_original_goes_on():
    model = compressed().eval()
    plain = plain_copy(model)
    assert type(plain[0]) is nn.Conv2d
    assert list(plain.state_dict()) == list(net().state_dict())
    assert torch.equal(plain(IMAGES), model(IMAGES))
    model.train()(IMAGES).sum().backward()
    assert quantized_layers(model)["0"].quantizer.depth.grad is not None
    assert torch.equal(plain_copy(model).eval()(IMAGES[:1]).isfinite(), torch.ones(1, 10, dtype=torch.bool))


def test_an_export_that_computes_something_else_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    module = sys.modules["scrimp.bits.export"]
    monkeypatch.setattr(module, "plain_copy", lambda model: net())
    path = tmp_path / "m.pt2"
    path.write_bytes(b"the old file")
    with pytest.raises(ExportError, match="outputs differ"):
        export_function(compressed(), path, format="pt2", example_inputs=IMAGES)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_weights_are_noticed(tmp_path, monkeypatch):
    module = sys.modules["scrimp.bits.export"]
    saved = safetensors.torch.save_file

    def damage(tensors, path, *rest):
        saved({name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}, path, *rest)

    monkeypatch.setattr(module.safetensors.torch, "save_file", damage)
    with pytest.raises(ExportError, match="differs"):
        scrimp.export(compressed(), tmp_path / "m.safetensors", example_inputs=IMAGES)
    assert not list(tmp_path.iterdir())


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else x


def test_what_torch_cannot_follow_is_said(tmp_path, capfd):
    model = Untraceable()
    self_compress_(model, torch.ones(2, 4))
    with pytest.raises(ExportError, match=r"torch\.export cannot follow Untraceable"):
        scrimp.export(model, tmp_path / "m.pt2", format="pt2", example_inputs=torch.ones(2, 4))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == "", "torch prints the graph that it could not finish"


def test_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match="format is 'h5'"):
        scrimp.export(compressed(), tmp_path / "m", format="h5")
    with pytest.raises(ConfigError, match="example_inputs"):
        scrimp.export(net(), tmp_path / "m")


def test_a_packed_model_needs_no_scrimp_to_train_on(tmp_path):
    """The safetensors of a shrunk model load in a process that only has torch, into layers of the stored shapes."""
    model = shrunk()
    scrimp.export(model, tmp_path / "m.safetensors", example_inputs=IMAGES)
    script = (
        "import sys, safetensors.torch, torch\n"
        "state = safetensors.torch.load_file(sys.argv[1])\n"
        "w = state['0.weight']\n"
        "conv = torch.nn.Conv2d(w.shape[1], w.shape[0], 3, bias=False)\n"
        "conv.load_state_dict({'weight': w})\n"
        "assert 'scrimp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script, tmp_path / "m.safetensors"], check=True)
