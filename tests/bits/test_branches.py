"""Dead branches are deleted, and added channels need not die together: exact in value and in what is learned."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tests.reference.zoo import ACTS, make, mask_
from torch import Tensor, nn
from torch.nn import functional

import scrimp
from scrimp._core.stand_ins import ConstantOutput, Scatter
from scrimp._core.structure import Structure, StructureChange
from scrimp.bits import quantized_layers, remove_dead_channels_, self_compress_
from scrimp.errors import ConfigError, FormatError, NoEffectWarning, StructureError
from scrimp.steps import WeightAverage

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=2e-3),
}
# by network: the layer at the end of a branch, and what goes with it
BRANCHES = {
    "resnet": ("first.1.0", ("first.0.0", "first.0.1", "first.1.0", "first.1.1")),
    "mobilenet": (
        "project.0", ("depthwise.0", "depthwise.1", "expand.0", "expand.1", "project.0", "project.1"),
    ),
    "vit": ("out", ("key", "out", "query", "value")),
    "gpt": ("down", ("down", "up")),
}  # fmt: skip
SHORTCUT = ("shortcut.0", ("shortcut.0", "shortcut.1"))
CASES = [*BRANCHES.items(), ("resnet", SHORTCUT)]


def silence_(model: nn.Module, name: str, channels: slice = slice(None), *, bias: float | None = None) -> None:
    """Zero weights for channels of a layer; with ``bias`` also that of the layer or of the norm behind it."""
    layer = model.get_submodule(name)
    parent, _, last = name.rpartition(".")
    norm = model.get_submodule(f"{parent}.1") if last == "0" else nn.Identity()
    with torch.no_grad():
        layer.weight[channels] = 0
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean[channels] = 0
        for one in (layer, norm):
            if bias is not None and getattr(one, "bias", None) is not None:
                one.bias[channels] = bias


def outputs(model: nn.Module, batch: Tensor, *, training: bool) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).train(training)(batch)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    out = model(batch).flatten(0, -2)
    loss = functional.cross_entropy(out, torch.arange(len(out)) % 5)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("name", "branch"), CASES)
def test_a_dead_branch_is_deleted(name: str, branch: tuple[str, tuple[str, ...]], act: str, norm: bool) -> None:
    for dtype, evaluated, trained in ((torch.float32, 1e-6, 5e-6), (torch.float64, 1e-12, 1e-12)):
        for padding in (0, 1) if name in ("resnet", "mobilenet") else (0,):
            model, batch = make(name, act, norm=norm, padding=padding)
            model = model.to(dtype)
            batch = batch.to(dtype) if batch.is_floating_point() else batch
            silence_(model, branch[0])  # its bias is whatever it is
            before = [outputs(model, batch, training=training) for training in (False, True)]
            report = remove_dead_channels_(model, example_inputs=batch)
            after = [outputs(model, batch, training=training) for training in (False, True)]
            assert (before[0] - after[0]).abs().max() <= evaluated
            assert (before[1] - after[1]).abs().max() <= trained
            assert set(report.deleted) == {
                one for one in branch[1] if isinstance(model.get_submodule(one), ConstantOutput)
            }
            assert set(branch[1]) - set(report.deleted) <= {one for one in branch[1] if one.endswith(".1") and not norm}
            assert report.num_weights_after == sum(p.numel() for p in model.parameters() if p.dim() > 1)
            assert remove_dead_channels_(model).change.is_empty


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "branch"), CASES)
def test_training_without_the_branch_goes_on_as_if_masked(
    name: str, branch: tuple[str, tuple[str, ...]], optimizer: str
) -> None:
    model, batch = make(name, "silu", norm=True, padding=1)
    model = model.double()
    batch = batch.double() if batch.is_floating_point() else batch
    own = OPTIMIZERS[optimizer](model.parameters())
    average = WeightAverage(model, decay=0.9)
    for _ in range(2):
        step(model, own, batch)
    silence_(model, branch[0])
    average.update()
    masked = copy.deepcopy(model)
    masked_own = OPTIMIZERS[optimizer](masked.parameters())
    masked_own.load_state_dict(copy.deepcopy(own.state_dict()))
    before = {key: value.detach().clone() for key, value in masked.named_parameters()}
    report = remove_dead_channels_(model, own, (average,), example_inputs=batch)
    assert report.deleted
    left = set(model.parameters())
    assert all(parameter in left for group in own.param_groups for parameter in group["params"])
    assert own.state.keys() <= left
    kept = {key: {dim: index.tolist() for dim, index in slices} for key, slices in report.change.kept.items()}
    gone = {key: {0: []} for key in before if report.change.is_gone(key)}
    for _ in range(100):
        one, other = step(model, own, batch), step(masked, masked_own, batch)
        mask_(masked, before, {**kept, **gone})
        assert abs(one - other) <= 1e-12
    average.update()
    with average.swap():
        model(batch)


def test_a_shrunk_model_with_its_branches_deleted_resumes_bit_for_bit() -> None:
    def fresh() -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
        model, batch = make("resnet", "relu", norm=True, padding=1)
        self_compress_(model, batch, bits=4)
        return model, batch, torch.optim.Adam(scrimp.bits.param_groups(model, lr=1e-3))

    def train(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(batch).square().mean() + 0.01 * scrimp.size_penalty(model)
        loss.backward()
        optimizer.step()
        return loss.detach()

    for residual in ("group", "branch"):
        model, batch, optimizer = fresh()
        train(model, batch, optimizer)
        with torch.no_grad():
            quantized_layers(model)["shortcut.0"].quantizer.depth.fill_(-0.1)
            quantized_layers(model)["first.1.0"].quantizer.depth[2:5] = -0.1
            model.first[1][1].bias[2:5] = 0
        report = remove_dead_channels_(model, optimizer, residual=residual)
        assert report.deleted == ("shortcut.0", "shortcut.1")
        assert report.scattered == (("first.1.1",) if residual == "branch" else ())
        train(model, batch, optimizer)
        structure = Structure.from_state(json.loads(json.dumps(scrimp.read_structure(model).to_state())))
        again, _, other = fresh()
        scrimp.apply_structure_(again, structure, other)
        assert scrimp.read_structure(again) == scrimp.read_structure(model)
        again.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        scrimp.bits.set_wiring_(again, scrimp.bits.graph_wiring(again, batch))
        for _ in range(3):
            assert torch.equal(train(model, batch, optimizer), train(again, batch, other))
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def without_branches() -> tuple[nn.Module, Tensor]:
    """Learned bits; one branch deleted, another one scattered into its trunk."""
    model, batch = make("resnet", "relu", norm=True, padding=1)
    self_compress_(model, batch, bits=4)
    with torch.no_grad():
        quantized_layers(model)["shortcut.0"].quantizer.depth.fill_(-0.1)
        quantized_layers(model)["first.1.0"].quantizer.depth[2:5] = -0.1
        model.first[1][1].bias[2:5] = 0
    original = scrimp.size_report(model)
    report = remove_dead_channels_(model, residual="branch")
    assert (report.deleted, report.scattered) == (("shortcut.0", "shortcut.1"), ("first.1.1",))
    left = scrimp.size_report(model)
    assert left.original_weights == original.original_weights
    assert left.num_weights == original.original_weights - 16 * 8 - 3 * 12 * 9
    assert left.original_bytes - left.float32_bytes == 4 * (left.original_weights - left.num_weights)
    return model.eval(), batch


@pytest.mark.parametrize("fold_norms", [True, False])
def test_it_is_packed_and_unpacked(tmp_path: Path, fold_norms: bool) -> None:
    model, batch = without_branches()
    report = scrimp.pack(model, tmp_path / "m.scrimp", fold_norms=fold_norms)
    assert report.packed_bytes == (tmp_path / "m.scrimp").stat().st_size
    fresh, _ = make("resnet", "relu", norm=True, padding=1, seed=1)
    unpacked = scrimp.unpack(tmp_path / "m.scrimp", fresh)
    assert (unpacked(batch) - model(batch)).abs().max() <= 1e-5
    other, _ = make("chain", "relu", norm=True, padding=1)
    with pytest.raises(StructureError, match="the file is of another model"):
        scrimp.unpack(tmp_path / "m.scrimp", other)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_it_is_exported(tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model, batch = without_branches()
    scrimp.export(model, tmp_path / f"m.{kind}", format=kind, example_inputs=batch)


def test_checkpoints_go_on_from_before_the_deletion(tmp_path: Path) -> None:
    model, batch = make("resnet", "relu", norm=True, padding=1)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, batch)
    store = scrimp.CheckpointStore(tmp_path / "store", exact_tail=1)
    store.save(1, model=model, optimizer=optimizer)
    silence_(model, "shortcut.0")
    silence_(model, "first.1.0", slice(0, 3), bias=0.0)
    report = remove_dead_channels_(model, optimizer, example_inputs=batch, residual="branch")
    step(model, optimizer, batch)
    store.save(2, model=model, optimizer=optimizer, change=report.change)
    structure = scrimp.read_structure(model)
    store.save(3, model=model, optimizer=optimizer)
    again, _ = make("resnet", "relu", norm=True, padding=1)
    other = torch.optim.Adam(again.parameters())
    scrimp.apply_structure_(again, structure, other)
    store.restore(3, model=again, optimizer=other)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert step(model, optimizer, batch) == step(again, other, batch)
    store.verify()
    assert store.load(2)["model"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("name", "producers"),
    [
        ("resnet", {"first.1.0": 8, "second.1.0": 16}), ("mobilenet", {"project.0": 8}),
        ("vit", {"out": 16, "down": 16}), ("gpt", {"down": 16}),
    ],
)  # fmt: skip
def test_branch_mode_takes_dead_channels_from_one_side(
    name: str, producers: dict[str, int], act: str, norm: bool
) -> None:
    for dtype, evaluated, trained in ((torch.float32, 1e-6, 5e-6), (torch.float64, 1e-12, 1e-12)):
        model, batch = make(name, act, norm=norm, padding=1)
        model = model.to(dtype)
        batch = batch.to(dtype) if batch.is_floating_point() else batch
        for producer in producers:
            silence_(model, producer, slice(1, None, 4), bias=0.0)
        before = [outputs(model, batch, training=training) for training in (False, True)]
        assert remove_dead_channels_(copy.deepcopy(model), example_inputs=batch).num_channels == 0
        report = remove_dead_channels_(model, example_inputs=batch, residual="branch")
        after = [outputs(model, batch, training=training) for training in (False, True)]
        assert report.channels == {one: (width, width * 3 // 4) for one, width in producers.items()}
        assert (before[0] - after[0]).abs().max() <= evaluated
        assert (before[1] - after[1]).abs().max() <= trained
        for residual in ("branch", "group"):
            assert remove_dead_channels_(model, residual=residual).change.is_empty


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_branch_mode_trains_as_if_masked_and_goes_on_shrinking(optimizer: str) -> None:
    model, batch = make("resnet", "silu", norm=True, padding=1)
    model, batch = model.double(), batch.double()
    own = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(2):
        step(model, own, batch)
    masked = copy.deepcopy(model)
    masked_own = OPTIMIZERS[optimizer](masked.parameters())
    masked_own.load_state_dict(copy.deepcopy(own.state_dict()))
    change = StructureChange({})
    rounds = [
        ({"first.1.0": slice(1, 3)}, {"first.1.0": (8, 6)}),
        ({"second.1.0": slice(0, 8), "first.1.0": slice(4, 5)}, {"second.1.0": (16, 8), "first.1.0": (6, 5)}),
        # what is left of the stem dies where the branch has died already, and a channel that lives on in the branch
        ({"stem.0": slice(1, 4)}, {"stem.0": (8, 6)}),
    ]  # fmt: skip
    for number, (deaths, expected) in enumerate(rounds):
        for one in (model, masked):
            for name, channels in deaths.items():
                present = channels
                if one is model and number and name == "first.1.0":
                    present = slice(2, 3)  # where the fifth of eight is by now
                silence_(one, name, present, bias=0.0)
        before = {key: value.detach().clone() for key, value in masked.named_parameters()}
        report = remove_dead_channels_(model, own, example_inputs=batch, residual="branch")
        assert report.channels == expected
        change = change.then(report.change)
        kept = {key: {dim: index.tolist() for dim, index in slices} for key, slices in change.kept.items()}
        for _ in range(100 if number == 2 else 10):
            one, other = step(model, own, batch), step(masked, masked_own, batch)
            mask_(masked, before, kept)
            assert abs(one - other) <= 1e-12
    assert StructureChange.from_state(change.to_state()) == change
    again, _ = make("resnet", "silu", norm=True, padding=1)
    scrimp.apply_structure_change(change, model=again)
    assert scrimp.read_structure(again) == scrimp.read_structure(model)


def test_what_cannot_be_put_back() -> None:
    class Twice(nn.Module):
        """The convolution's result is added, and read by another convolution as well."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.head(y + self.second(y))

    model = Twice()
    silence_(model, "first", slice(0, 2), bias=0.0)
    batch = torch.randn(2, 3, 4, 4)
    assert remove_dead_channels_(model, example_inputs=batch, residual="branch").num_channels == 0
    silence_(model, "second", slice(0, 4), bias=0.0)
    report = remove_dead_channels_(model, residual="branch")
    assert report.channels == {"first": (8, 6), "second": (8, 4)}
    with pytest.raises(ConfigError, match="residual is 'trunk'"):
        remove_dead_channels_(model, residual="trunk")


def test_stand_ins_are_checked() -> None:
    for spec in ({"kind": "other"}, {"kind": "scatter", "axis": 1}, {}):
        with pytest.raises(FormatError, match="no stand-in"):
            StructureChange({}, {"0": spec})
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1))
    spec = {"kind": "constant", "channels": 8, "axis": 1, "geometry": [], "bias": True}
    for name in ("0", "7"):
        with pytest.raises(StructureError, match=r"has no bias|has no module '7'"):
            scrimp.apply_structure_change(StructureChange({}, {name: spec}), model=model)
    structure = scrimp.read_structure(model)
    scrimp.apply_structure_change(StructureChange({}, {"0": {**spec, "bias": False}}), model=model)
    with pytest.raises(StructureError, match="start from a fresh one"):
        scrimp.apply_structure_(model, structure)


@pytest.mark.parametrize("conv", [
    nn.Conv1d(4, 6, 5, stride=2, padding=1, dilation=2), nn.Conv2d(4, 6, (3, 1), padding="same"),
    nn.Conv3d(4, 6, 2, padding="valid"), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.Linear(4, 6), nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"),
])  # fmt: skip
def test_a_constant_has_the_shape_that_the_layer_had(conv: nn.Module) -> None:
    from scrimp._core.stand_ins import constant_spec, installation

    dims = len(getattr(conv, "kernel_size", ()))
    batch = torch.randn(2, 4, *range(9, 9 + dims)) if dims else torch.randn(2, 3, 4)
    nn.init.zeros_(conv.weight)
    model = nn.Sequential(conv)
    wanted = model(batch)
    installation(model, "0", constant_spec(conv, 6, with_bias=True))()
    assert torch.equal(model(batch), wanted)
    assert model[0].bias is conv.bias


def test_scatter_keeps_the_memory_format() -> None:
    scatter = Scatter(1, 5, [0, 3])
    batch = torch.randn(2, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    out = scatter(batch)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out[:, [0, 3]], batch)
    assert not out[:, [1, 2, 4]].any()


def test_a_network_that_is_one_constant_is_left_with_a_channel() -> None:
    model, batch = make("resnet", "relu", norm=True, padding=1)
    for name in ("first.1.0", "stem.0"):
        silence_(model, name, bias=0.0)
    with pytest.warns(NoEffectWarning, match="depend on its inputs no more"):
        report = remove_dead_channels_(model, example_inputs=batch)
    assert report.deleted == ()
    assert model.stem[0].out_channels == 1
