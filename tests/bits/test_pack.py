"""Packed files: equal to the model, as large as reported, and refused when anything is wrong with them."""

import copy
import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import scrimp
from scrimp.bits import quantized_layers, rans, self_compress_
from scrimp.bits.code_streams import bound_of, decode_channels, encode_channels
from scrimp.errors import ConfigError, FormatError, StructureError


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net(bias=False):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2),
        nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 10), nn.LayerNorm(10),
    )  # fmt: skip


IMAGES = draw(1, 16, 3, 8, 8)


def trained(bias=False, **options):
    """A compressed model with statistics, unequal bits, and a dead channel."""
    model = net(bias)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / max(1, parameter[0].numel()) ** 0.5)
    self_compress_(model, IMAGES, **options)
    for name, layer in quantized_layers(model).items():
        bits, exponent = layer.quantizer.learned()
        spread = torch.rand(len(bits), generator=draws) * (5 if name != "0" else 9)
        layer.quantizer.set_(bits.detach() - spread, exponent.detach() + spread - 1)
    quantizer = quantized_layers(model)["0"].quantizer
    bits, exponent = (tensor.detach().clone() for tensor in quantizer.learned())
    bits[3] = 0.0
    quantizer.set_(bits, exponent)
    for _ in range(4):
        model.train()(IMAGES)
    return model.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fold_norms", [False, True])
def test_the_unpacked_model_computes_the_same(tmp_path, bias, fold_norms):
    model = trained(bias)
    report = scrimp.pack(model, tmp_path / "m.scrimp", fold_norms=fold_norms)
    plain = scrimp.unpack(tmp_path / "m.scrimp", net(bias))
    assert report.packed_bytes == (tmp_path / "m.scrimp").stat().st_size
    expected, logits = model(IMAGES), plain(IMAGES)
    assert not plain.training
    assert (logits - expected).abs().max() <= (1e-5 if fold_norms else 0)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    if not fold_norms:
        for name, layer in quantized_layers(model).items():
            assert torch.equal(plain.get_submodule(name).weight, layer.quantized_weight())


@pytest.mark.parametrize("options", [{}, {"half": True}, {"fold_norms": False}, {"metadata": {"a": [1, "x"]}}])
def test_the_report_is_the_size_of_the_file_to_the_byte(tmp_path, options):
    model = trained()
    report = scrimp.size_report(model, **options)
    scrimp.pack(model, tmp_path / "m.scrimp", **options)
    assert report.packed_bytes == (tmp_path / "m.scrimp").stat().st_size
    parts = report.code_bytes + report.scale_bytes + report.tensor_bytes + report.header_bytes
    assert parts == report.packed_bytes
    assert scrimp.bits.read_metadata(tmp_path / "m.scrimp") == options.get("metadata", {})


def test_the_report_counts():
    model = trained()
    report = scrimp.size_report(model)
    assert [layer.name for layer in report.layers] == ["0", "3", "6"]
    assert report.num_weights == report.original_weights == 216 + 288 + 2880
    assert report.weights_kept_fraction == 1.0
    assert report.float32_bytes == 4 * sum(t.numel() for t in net().state_dict().values() if t.is_floating_point())
    first = report.layers[0]
    dead = quantized_layers(model)["0"].codes().flatten(1).any(1).logical_not().sum().item()
    assert (first.num_channels, first.zero_channels) == (8, dead)
    assert dead >= 1
    assert sum(layer.code_bits for layer in report.layers) / 8 == pytest.approx(report.code_bytes, abs=16)


def test_the_estimate_is_near(tmp_path):
    model = trained()
    assert scrimp.bits.packed_bytes_estimate(model) == pytest.approx(scrimp.size_report(model).packed_bytes, rel=0.03)


def test_codes_take_no_more_than_their_fixed_width_would():
    """The bound that bit packing by channel has; and range coding stays within a percent of the codes' entropy."""
    model = nn.Sequential(nn.Linear(600, 64))
    with torch.no_grad():
        model[0].weight.copy_(draw(0, 64, 600))
    self_compress_(model, draw(2, 1, 600), bits=4.0)
    report = scrimp.size_report(model)
    assert report.code_bytes * 8 <= 4 * model[0].weight.numel()
    _, counts = np.unique(quantized_layers(model)["0"].codes().numpy(), return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert report.code_bytes == pytest.approx(entropy, rel=0.01)


def test_half_precision_halves_scales_and_stays_near(tmp_path):
    model = trained()
    full, half = scrimp.size_report(model), scrimp.pack(model, tmp_path / "m.scrimp", half=True)
    assert half.code_bytes == full.code_bytes
    assert half.scale_bytes < 0.7 * full.scale_bytes
    plain = scrimp.unpack(tmp_path / "m.scrimp", net())
    assert (plain(IMAGES) - model(IMAGES)).abs().max() < 5e-3


def test_half_precision_bears_tiny_scales(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    self_compress_(model, torch.zeros(1, 4))
    scrimp.pack(model, tmp_path / "m.scrimp", half=True)
    plain = scrimp.unpack(tmp_path / "m.scrimp", nn.Sequential(nn.Linear(4, 3)))
    torch.testing.assert_close(plain[0].weight, model[0].weight, rtol=1e-3, atol=0)


def test_a_shrunk_model_is_made_again_from_a_fresh_one(tmp_path):
    model, kept = trained(), torch.tensor([0, 1, 4, 5])
    layer = quantized_layers(model)["0"]
    names = (layer.weight_name, *layer.parameter_names, "1.weight", "1.bias", "1.running_mean", "1.running_var")
    slices = dict.fromkeys(names, ((0, kept),))
    slices[quantized_layers(model)["3"].weight_name] = ((1, torch.tensor([0, 1])),)
    scrimp.apply_structure_change(scrimp.StructureChange(slices), model=model)
    report = scrimp.pack(model, tmp_path / "m.scrimp")
    assert report.weights_kept_fraction == pytest.approx((4 * 27 + 8 * 18 + 2880) / 3384)
    plain = scrimp.unpack(tmp_path / "m.scrimp", net())
    assert plain[0].out_channels == 4
    torch.testing.assert_close(plain(IMAGES), model(IMAGES), rtol=0, atol=1e-5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("count", torch.tensor([3, 4]))
        self.register_buffer("scratch", torch.zeros(2, 0), persistent=False)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def test_tied_weights_are_stored_once(tmp_path):
    model = Tied()
    self_compress_(model, draw(0, 2, 4))
    report = scrimp.pack(model, tmp_path / "m.scrimp")
    assert report.num_weights == 32
    plain = scrimp.unpack(tmp_path / "m.scrimp", Tied())
    assert plain.first.weight is plain.last.weight
    assert torch.equal(plain.count, torch.tensor([3, 4]))
    assert torch.equal(plain(draw(1, 2, 4)), model(draw(1, 2, 4)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool])
def test_other_tensors_keep_their_type_and_their_bits(tmp_path, dtype):
    def make():
        model = nn.Sequential(nn.Linear(3, 3))
        model.register_buffer("more", (draw(0, 2, 5) * 10).to(dtype))
        return model

    model = make()
    self_compress_(model, draw(0, 2, 3))
    scrimp.pack(model, tmp_path / "m.scrimp")
    fresh = make()
    fresh.more.zero_()
    plain = scrimp.unpack(tmp_path / "m.scrimp", fresh)
    assert plain.more.dtype == dtype
    assert torch.equal(plain.more, model.more)


def test_a_model_without_quantised_layers_is_stored_as_it_is(tmp_path):
    model = net().eval()
    scrimp.pack(model, tmp_path / "m.scrimp")
    assert torch.equal(scrimp.unpack(tmp_path / "m.scrimp", net())(IMAGES), model(IMAGES))


def test_transposed_convolutions(tmp_path):
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 3), nn.ReLU())
    self_compress_(model, IMAGES)
    scrimp.pack(model, tmp_path / "m.scrimp")
    plain = scrimp.unpack(tmp_path / "m.scrimp", nn.Sequential(nn.ConvTranspose2d(3, 5, 3), nn.ReLU()))
    assert torch.equal(plain(IMAGES), model(IMAGES))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_codes_come_back(data):
    reach = st.sampled_from([0, 1, 2, 7, 9, 127, 130, 1000, 32767])
    channels = []
    for bound in data.draw(st.lists(reach, max_size=6)):
        codes = data.draw(st.lists(st.integers(-bound - 1 if bound else 0, bound), min_size=1, max_size=40))
        channels.append(np.array(codes, dtype=np.int64))
    stream = encode_channels(channels)
    decoded = decode_channels(stream, [len(codes) for codes in channels])
    for one, other in zip(channels, decoded, strict=True):
        assert np.array_equal(one, other)


def test_long_streams_in_many_lanes_come_back():
    generator = np.random.default_rng(0)
    channels = [np.rint(generator.normal(size=9000) * scale).astype(np.int64) for scale in (0.3, 1, 3, 40, 9000)]
    assert rans.num_lanes(45_000) > 1
    stream = encode_channels(channels)
    decoded = decode_channels(stream, [9000] * 5)
    assert all(np.array_equal(one, other) for one, other in zip(channels, decoded, strict=True))
    entropies = []
    for codes in channels[:4]:
        _, counts = np.unique(codes, return_counts=True)
        entropies.append(-(counts * np.log2(counts / counts.sum())).sum())
    for bits, entropy in zip(stream.channel_bits[:4], entropies, strict=True):
        assert entropy <= bits <= entropy * 1.02 + 16


def entropy_bits(codes):
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def test_channels_of_like_entropy_share_a_table():
    generator = np.random.default_rng(0)
    shares = [0.1, 0.6] * 60
    channels = [generator.choice([-1, 0, 1], size=576, p=[share / 2, 1 - share, share / 2]) for share in shares]
    stream = encode_channels(channels)
    assert len(stream.tables) == 2
    assert stream.kinds in ((1, 2) * 60, (2, 1) * 60)
    apart = sum(entropy_bits(np.concatenate(channels[start::2])) for start in (0, 1))
    assert sum(stream.channel_bits) == pytest.approx(apart, rel=1e-3)
    assert sum(stream.channel_bits) < 0.9 * entropy_bits(np.concatenate(channels))
    assert (
        sum(stream.channel_bits) <= 8 * len(stream.data) <= sum(stream.channel_bits) + 8 * 8 * rans.num_lanes(120 * 576)
    )


def test_few_channels_share_what_costs_the_least():
    generator = np.random.default_rng(0)
    channels = [np.rint(generator.normal(size=27) * scale).astype(np.int64) for scale in (30, 33, 40, 45, 50, 60)]
    stream = encode_channels(channels)
    assert len({bound_of(codes) for codes in channels}) > 2
    assert len(stream.tables) == 1  # of at most 32 entries: a table for each would take more than its codes
    assert len(stream.tables[0].frequencies) <= 32
    assert all(map(np.array_equal, decode_channels(stream, [27] * 6), channels))


@pytest.mark.parametrize("change", [
    {"kinds": (3, 1)}, {"kinds": (-1, 1)}, {"bound": 0}, {"bound": 9}, {"frequencies": (1, 1)}, {"bound": 17},
    {"bound": 1 << 50}, {"bound": 1 << 34, "frequencies": (rans.TOTAL, *[0] * 31)}, {"num_tables": 9},
])  # fmt: skip
def test_streams_of_another_form_are_refused(change):
    stream = encode_channels([np.array([0, 1, -1, 0, 1]), np.array([0, 0, -1, 0, 1])])
    fields = {key: value for key, value in change.items() if key in ("bound", "frequencies")}
    tables = (dataclasses.replace(stream.tables[0], **fields), *stream.tables[1:]) * change.get("num_tables", 1)
    changed = dataclasses.replace(stream, kinds=change.get("kinds", stream.kinds), tables=tables)
    assert len(decode_channels(stream, [5, 5])) == 2
    with pytest.raises(ValueError, match="table"):
        decode_channels(changed, [5, 5])


def pooled(tied=False):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(1),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    if tied:
        model[6].weight = model[2].weight
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_norms_elsewhere_keep_weight_and_bias_alone(tmp_path, tied):
    model = pooled(tied)
    with torch.no_grad():
        model[2].weight.copy_(draw(2, 8))
    self_compress_(model, IMAGES)
    for _ in range(3):
        model.train()(IMAGES)
    model.eval()
    folded = scrimp.pack(model, tmp_path / "m.scrimp")
    plain = scrimp.unpack(tmp_path / "m.scrimp", pooled(tied))
    assert (plain(IMAGES) - model(IMAGES)).abs().max() <= 1e-5
    assert torch.equal(plain[2].running_mean, torch.zeros(8)) is not tied  # those that share a weight stay
    assert torch.equal(plain[2].running_var, model[2].running_var) is tied
    whole = scrimp.size_report(model, fold_norms=False)
    assert folded.packed_bytes < whole.packed_bytes or tied


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, 1 + self.weight, self.bias, self.training, self.momentum, self.eps
        )


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.silu(super().forward(x))


class Twice(nn.Module):
    """A norm behind two layers (``kind`` ``"norm"``), or a layer called twice, once with a norm behind."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.norm, self.kind = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), kind

    def forward(self, x):
        if self.kind == "norm":
            return self.norm(self.b(torch.relu(self.norm(self.a(x)))))
        return self.a(torch.relu(self.norm(self.a(x))))


class OtherAxis(nn.Module):
    """Five channels for the layer, and five places for the norm."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.layer(x.flatten(2)[:, :1, :40].reshape(-1, 5, 8)))


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.b.bias = self.a.bias

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


class SharedWeight(TiedBias):
    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(3).double(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(self.norm(x.double()).float())


def with_norm(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), norm, nn.Conv2d(8, 6, 1), type(norm)(6))


def without_counter():
    model = with_norm(nn.BatchNorm2d(8))
    for norm in (model[2], model[4]):
        norm.num_batches_tracked = None
        norm.momentum = 0.1
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_norm(OwnForward(8)), lambda: with_norm(Activated(8)), lambda: with_norm(nn.SyncBatchNorm(8)),
        lambda: with_norm(scrimp.steps.GhostBatchNorm2d(8)), lambda: with_norm(nn.BatchNorm2d(8, momentum=None)),
        lambda: with_norm(nn.BatchNorm2d(8, eps=3.0)), lambda: with_norm(nn.BatchNorm2d(8, affine=False)),
        lambda: with_norm(nn.BatchNorm2d(8, track_running_stats=False)), without_counter, OtherAxis, TiedBias,
        SharedWeight, Mixed, lambda: Twice("norm"), lambda: Twice("layer"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("graph", [False, True])
def test_no_norm_is_folded_wrongly(tmp_path, make, graph):
    model = with_statistics(make())
    scrimp.pack(model, tmp_path / "m.scrimp", graph=graph)
    plain = scrimp.unpack(tmp_path / "m.scrimp", *([] if graph else [make()]))
    assert (plain(IMAGES) - model(IMAGES)).abs().max() <= 2e-5


def with_statistics(model):
    self_compress_(model, IMAGES)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, tensor in module.state_dict(keep_vars=True).items():
                    if tensor.is_floating_point():
                        least = 0.5 if name in ("weight", "running_var") else 0.0
                        tensor.copy_(torch.rand(tensor.shape, generator=draws) + least)
    return model.eval()


def test_a_norm_of_another_forward_is_folded_if_it_computes_the_same():
    whole, folded = (scrimp.size_report(with_statistics(with_norm(kind(8)))) for kind in (OwnForward, Activated))
    assert folded.tensor_bytes < whole.tensor_bytes


def test_no_norm_is_folded_where_nothing_is_quantised(tmp_path):
    model = pooled()
    model.train()(IMAGES)
    scrimp.pack(model.eval(), tmp_path / "m.scrimp")
    assert torch.equal(scrimp.unpack(tmp_path / "m.scrimp", pooled())[2].running_var, model[2].running_var)


@pytest.mark.parametrize(("codes", "bound"), [([0, 0], 0), ([0, 1], 2), ([-1, 0], 1), ([-9, 3], 10), ([128], 160)])
def test_bounds_of_channels(codes, bound):
    assert bound_of(np.array(codes)) == bound


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=256))
def test_frequencies_add_up(counts):
    counts = np.array(counts)
    frequencies = rans.quantized_frequencies(counts)
    if counts.any():
        assert frequencies.sum() == rans.TOTAL
    assert ((frequencies > 0) == (counts > 0)).all() or not counts.any()


def test_every_altered_byte_is_found(tmp_path):
    model = nn.Sequential(nn.Linear(6, 4))
    self_compress_(model, draw(0, 1, 6))
    path = tmp_path / "m.scrimp"
    scrimp.pack(model, path)
    good = path.read_bytes()
    fresh = nn.Sequential(nn.Linear(6, 4))
    before = copy.deepcopy(fresh.state_dict())
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            scrimp.unpack(path, fresh)
    for length in (0, 5, 20, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            scrimp.unpack(path, fresh)
    path.write_bytes(good + b"x")
    with pytest.raises(FormatError, match="added"):
        scrimp.unpack(path, fresh)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


def sealed(header, sections=b""):
    """A file with a right checksum around anything."""
    import hashlib

    packed = zlib.compress(json.dumps(header).encode())
    total = 24 + len(packed) + len(sections) + 16
    body = struct.pack("<8sIIQ", b"SCRIMPBT", 1, len(packed), total) + packed + sections
    return body + hashlib.blake2b(body, digest_size=16).digest()


@pytest.mark.parametrize(
    "header",
    [
        {}, [], {"sections": [0, 0, 0]}, {"sections": [-1, 0, 1]}, {"sections": [5, 5, 5]},
        {
            "sections": [0, 0, 0], "structure": {"shapes": {"0.weight": [2, 3]}, "groups": {}}, "norms": [],
            "layers": [["0.weight", 0, [1, 1], "float32", 0]], "tables": [], "tensors": [], "tied": {},
            "metadata": {},
        },
    ],
)  # fmt: skip
def test_a_right_checksum_around_nonsense_is_refused(tmp_path, header):
    (tmp_path / "m.scrimp").write_bytes(sealed(header))
    with pytest.raises(FormatError):
        scrimp.unpack(tmp_path / "m.scrimp", net())


def rewritten(data, change):
    """The packed file ``data`` with its header as ``change`` leaves it."""
    start, length = 24, struct.unpack_from("<I", data, 12)[0]
    header = json.loads(zlib.decompress(data[start : start + length]))
    change(header)
    return sealed(header, data[start + length : -16])


def nested(*keys, value):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        nested("layers", 0, 2, 0, value=1.0), nested("layers", 0, 2, 0, value="1"), nested("layers", 0, 1, value=-1),
        nested("tables", 0, 1, 0, value="7"), nested("tables", 0, 0, value=2.0), nested("sections", 0, value="9"),
        nested("sections", 0, value=float("inf")), nested("sections", value=[]), nested("metadata", value=None),
        lambda header: header.pop("metadata"), lambda header: header["tables"].extend([[1, [8192, 8192]]] * 100_000),
        nested("norms", value=[["nobody", 1e-5, None]]), nested("tied", value={"x": "nobody"}),
        nested("structure", "shapes", "6.weight", value=[0, 5]),
    ],
)  # fmt: skip
def test_headers_that_say_something_else_are_refused(tmp_path, change):
    scrimp.pack(trained(), tmp_path / "m.scrimp")
    data = (tmp_path / "m.scrimp").read_bytes()
    path = tmp_path / "changed.scrimp"
    path.write_bytes(rewritten(data, lambda header: None))
    assert scrimp.bits.inspect_packed(path).num_weights
    path.write_bytes(rewritten(data, change))
    for read in (scrimp.bits.inspect_packed, lambda file: scrimp.unpack(file, net()), scrimp.bits.read_packed):
        with pytest.raises(FormatError):
            read(path)


def test_damaged_sections_are_refused(tmp_path):
    scrimp.pack(trained(), tmp_path / "m.scrimp")
    data = (tmp_path / "m.scrimp").read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(zlib.decompress(data[24 : 24 + length]))
    for section in range(3):
        body = bytearray(data[24 + length : -16])
        start = sum(header["sections"][:section])
        body[start : start + 4] = b"\xff\x00\xff\x00"
        (tmp_path / "m.scrimp").write_bytes(sealed(header, bytes(body)))
        with pytest.raises(FormatError):
            scrimp.unpack(tmp_path / "m.scrimp", net())


def test_another_version_is_named(tmp_path):
    (tmp_path / "m.scrimp").write_bytes(struct.pack("<8sIIQ", b"SCRIMPBT", 7, 0, 24))
    with pytest.raises(FormatError, match="version 7"):
        scrimp.unpack(tmp_path / "m.scrimp", net())


def test_other_models_are_refused_and_stay_as_they_are(tmp_path):
    scrimp.pack(trained(), tmp_path / "m.scrimp")
    smaller = net()
    smaller[0] = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    for model, message in ((net(bias=True), "only in the model"), (smaller, "cannot shrink")):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(StructureError, match=message):
            scrimp.unpack(tmp_path / "m.scrimp", model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="fresh instance"):
        scrimp.unpack(tmp_path / "m.scrimp", trained())
    with pytest.raises(ConfigError, match="fresh instance"):
        scrimp.unpack(tmp_path / "m.scrimp")


def test_metadata_has_to_be_json(tmp_path):
    with pytest.raises(ConfigError, match="JSON"):
        scrimp.pack(trained(), tmp_path / "m.scrimp", metadata={"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_packing_changes_nothing(tmp_path):
    model = trained().train()
    before = copy.deepcopy(model.state_dict())
    scrimp.pack(model, tmp_path / "m.scrimp")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inspection_tells_what_packing_told(tmp_path):
    report = scrimp.pack(trained(), tmp_path / "m.scrimp")
    info = scrimp.bits.inspect_packed(tmp_path / "m.scrimp")
    assert info.packed_bytes == report.packed_bytes
    parts = (info.code_bytes, info.scale_bytes, info.tensor_bytes, info.header_bytes)
    assert parts == (report.code_bytes, report.scale_bytes, report.tensor_bytes, report.header_bytes)
    assert sum(parts) == info.packed_bytes
    assert info.num_weights == report.num_weights
    for told, layer in zip(info.layers, report.layers, strict=True):
        assert told.name.removesuffix(".weight") == layer.name
        assert told.zero_channels == layer.zero_channels
        assert told.code_bits == layer.code_bits > 0
        assert told.bits_per_weight == pytest.approx(layer.code_bits / layer.num_weights)
