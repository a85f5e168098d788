"""What follows a removal, what it leaves alone, and what it refuses without changing anything."""

import copy
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.reference.zoo import kill_, make
from torch import Tensor, nn
from torch.nn import functional

import scrimp
from scrimp import steps
from scrimp.bits import channel_graph, channel_summary, quantized_layers, remove_dead_channels_, self_compress_
from scrimp.errors import ConfigError, NoEffectWarning, StructureError
from scrimp.testing import run_ranks
from scrimp.train.models import GPT, ViT, resnet9

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(width: int = 8) -> nn.Sequential:
    """Two convolutions and a head, drawn from a seed."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64 * width, 5),
        )  # fmt: skip


def dead_net() -> nn.Sequential:
    """``net`` with channels 1 and 5 of both convolutions dead."""
    model = net()
    with torch.no_grad():
        for conv in (model[0], model[2]):
            conv.weight[[1, 5]] = 0
            conv.bias[[1, 5]] = 0
    return model


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
    """All that a removal could change, as copies."""
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    slots = [value.clone() for own in state.values() for value in own.values() if isinstance(value, Tensor)]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*(tensor.detach().clone() for tensor in model.state_dict().values()), *slots, *gradients]


def assert_untouched(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor = IMAGES) -> Tensor:
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def muon(model: nn.Module) -> torch.optim.Optimizer:
    filters, rest = steps.split_filters(model, scrimp.param_groups(model, lr=0.01))
    return steps.Muon(filters, lr=0.01, auxiliary=torch.optim.SGD(rest, lr=0.01, momentum=0.9))


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), foreach=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), momentum=0.9, centered=True),
    "muon": muon,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_average_and_schedule_follow(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model)
    average = steps.WeightAverage(model, decay=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    plain = {key: value.clone() for key, value in average.named_tensors().items()}
    for _ in range(2):
        train(model, optimizer)
        average.update()
        schedule.step()
    with torch.no_grad():
        for conv in (model[0], model[2]):
            conv.weight[[1, 5]] = 0
            conv.bias[[1, 5]] = 0
    weight = model[2].weight
    slots = {slot: value.clone() for slot, value in optimizer.state[weight].items() if isinstance(value, Tensor)}
    loose = copy.deepcopy(dict(average.named_tensors()))
    report = remove_dead_channels_(model, optimizer, (average, loose), example_inputs=IMAGES)
    assert report.channels == {"0": (8, 6), "2": (8, 6)}
    assert model[2].weight is weight
    assert weight.shape == (6, 6, 3, 3)
    left = torch.tensor([0, 2, 3, 4, 6, 7])
    for slot, value in optimizer.state[weight].items():
        if slot in slots and slots[slot].dim():
            assert torch.equal(value, slots[slot][left][:, left])
    assert average.named_tensors()["2.weight"].shape == (6, 6, 3, 3)
    assert loose["5.weight"].shape == (5, 6 * 64)
    assert plain["2.weight"].shape == (8, 8, 3, 3)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    train(model, optimizer)
    average.update()
    schedule.step()
    with average.swap():
        model(IMAGES)


def test_dry_run_says_the_same_and_changes_nothing() -> None:
    model = dead_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    with torch.no_grad():
        for conv in (model[0], model[2]):
            conv.weight[[1, 5]] = 0
            conv.bias[[1, 5]] = 0
    before = everything(model, optimizer)
    random_state = torch.get_rng_state()
    dry = remove_dead_channels_(model, optimizer, example_inputs=IMAGES, dry_run=True)
    assert_untouched(before, everything(model, optimizer))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert dry == remove_dead_channels_(model, optimizer)
    assert (dry.num_channels, dry.num_weights_before) == (4, 216 + 576 + 2560)
    assert dry.num_weights_after == 162 + 324 + 1920


def test_keep_and_round_widths() -> None:
    assert remove_dead_channels_(dead_net(), example_inputs=IMAGES, keep=["0"]).channels == {"2": (8, 6)}
    model = dead_net()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0
    report = remove_dead_channels_(model, example_inputs=IMAGES, multiple_of=4)
    assert report.num_channels == 0
    assert report.ghosts == {"0": 3, "2": 2}
    assert report.waiting == {}
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = 0
    before = model(IMAGES).detach()
    assert remove_dead_channels_(model, multiple_of=4).channels == {"0": (8, 4)}
    torch.testing.assert_close(model(IMAGES).detach(), before)


def test_ghosts_are_in_no_file_and_no_count(tmp_path: Path) -> None:
    def without(multiple_of: int) -> nn.Module:
        model = net(16)
        self_compress_(model, IMAGES)
        with torch.no_grad():
            for name in ("0", "2"):
                quantized_layers(model)[name].quantizer.depth[[1, 5, 6, 7, 9]] = 0
                model.get_submodule(name).bias[[1, 5, 6, 7, 9]] = 0
        remove_dead_channels_(model, multiple_of=multiple_of)
        return model.eval()

    model, smallest = without(4), without(1)
    assert (model[0].out_channels, smallest[0].out_channels) == (12, 11)
    assert scrimp.size_report(model) == scrimp.size_report(smallest)
    assert [layer.zero_channels for layer in scrimp.size_report(model).layers] == [0, 0, 0]
    assert scrimp.pack(model, tmp_path / "m").packed_bytes == (tmp_path / "m").stat().st_size
    unpacked = scrimp.unpack(tmp_path / "m", net(16))
    assert unpacked[0].out_channels == 11
    assert (unpacked(IMAGES) - model(IMAGES)).abs().max() <= 1e-6
    scrimp.export(model, tmp_path / "m.safetensors", example_inputs=IMAGES)
    assert safetensors.torch.load_file(tmp_path / "m.safetensors")["0.weight"].shape[0] == 11
    assert model[0].out_channels == 12


def test_masks_name_the_dead() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias[2] = -1.0
        model[0].weight[2] = 0
        model[2].weight[:, 3] = 0
    report = remove_dead_channels_(model, example_inputs=IMAGES, masks={"0": torch.arange(8) == 7}, dry_run=True)
    # a mask takes the place of looking at the weights; its channel leaves a constant, its bias
    assert report.num_channels == int(model[0].bias[7] <= 0)
    with torch.no_grad():
        model[0].bias[7] = -0.01
    before = everything(model)
    with pytest.raises(StructureError, match="gives other outputs"):  # its weights are alive
        remove_dead_channels_(model, masks={"0": torch.arange(8) == 7})
    assert_untouched(before, everything(model))


def test_where_there_is_no_other_way_a_layer_keeps_its_best_channel_and_says_so() -> None:
    model = net()
    self_compress_(model, IMAGES)
    with torch.no_grad():
        quantizer = quantized_layers(model)["2"].quantizer
        quantizer.depth.zero_()
        model[2].parametrizations.weight.original[6] *= 3
        model[2].bias.zero_()
    best = model[2].parametrizations.weight.original[6].detach().clone()
    before = model(IMAGES).detach()
    with pytest.warns(NoEffectWarning, match="depend on its inputs no more"):
        report = remove_dead_channels_(model)
    # nothing reads the first convolution any more either
    assert report.channels == {"0": (8, 1), "2": (8, 1)}
    assert report.deleted == ()
    assert report.waiting == {"2": 1}
    left = model[2].parametrizations.weight.original[0, 0]
    assert any(torch.equal(left, one) for one in best)
    torch.testing.assert_close(model(IMAGES).detach(), before)


def test_added_channels_go_when_dead_in_all() -> None:
    model, batch = make("resnet", "relu", norm=True, padding=1)
    kill_(model, "relu")
    with torch.no_grad():
        model.stem[0].weight[1] = 1.0
    report = remove_dead_channels_(model, example_inputs=batch)
    assert report.channels["stem.0"] == report.channels["first.1.0"] == (8, 7)
    assert report.waiting == {"first.1.0": 1}


@pytest.mark.parametrize("change", [
    lambda m: steps.ghost_batch_norm_(m, 2),
    lambda m: steps.freeze_bn_scale_(m, 0.5),
    lambda m: steps.pool_early_(m, before_norm=True),
    lambda m: steps.replace_activation_(m, lambda _: nn.CELU(0.3)),
    lambda m: m.to(memory_format=torch.channels_last),
])  # fmt: skip
def test_models_changed_by_steps(change: Any) -> None:
    model = resnet9(num_classes=5, in_channels=3, width=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        change(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[1::4] = 0
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(generator=torch.Generator().manual_seed(0))
                module.bias[1::4] = 0
    before = copy.deepcopy(model)(IMAGES).detach()
    report = remove_dead_channels_(model, example_inputs=IMAGES)
    assert {name: after / width for name, (width, after) in report.channels.items()} == dict.fromkeys(
        report.channels, 0.75
    )
    assert len(report.channels) == 8
    assert (model(IMAGES).detach() - before).abs().max() <= 5e-6


def test_heads_go_whole_and_come_back_small(tmp_path: Any) -> None:
    batch = torch.randint(0, 7, (2, 8), generator=torch.Generator().manual_seed(0))

    def fresh() -> GPT:
        return GPT(vocab_size=7, context_length=8, depth=2, width=16, num_heads=4)

    model = fresh().double()
    with torch.no_grad():
        qkv = model.blocks[0].attention.qkv.weight.view(3, 4, 4, 16)
        qkv[2, 1] = 0  # the values of head 1: its queries and keys then do not matter
        qkv[2, 2, :2] = 0  # half of a head stays
        model.blocks[1].up.weight[::2] = 0
    before = model(batch).detach()
    report = remove_dead_channels_(model, example_inputs=batch)
    assert report.channels == {"blocks.0.attention.qkv": (48, 36), "blocks.1.up": (64, 32)}
    assert report.waiting == {"blocks.0.attention.qkv": 2}
    assert model.blocks[0].attention.num_heads == 3
    assert (model(batch).detach() - before).abs().max() <= 1e-12
    assert any("layer_norm" in barrier.reason for barrier in report.barriers)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, batch)
    structure = scrimp.read_structure(model).to_state()
    again = fresh().double()
    scrimp.apply_structure_(again, type(scrimp.read_structure(again)).from_state(structure))
    again.load_state_dict(model.state_dict())
    other = torch.optim.Adam(again.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert torch.equal(train(model, optimizer, batch), train(again, other, batch))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "grouped"])
def test_a_shrunk_model_resumes_bit_for_bit(name: str) -> None:
    model, batch = make(name, "relu", norm=True, padding=1)
    kill_(model, "relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, batch)
    kill_(model, "relu")
    assert remove_dead_channels_(model, optimizer, example_inputs=batch).num_channels > 0
    train(model, optimizer, batch)
    again, _ = make(name, "relu", norm=True, padding=1, seed=1)
    scrimp.apply_structure_(again, scrimp.read_structure(model))
    again.load_state_dict(model.state_dict())
    other = torch.optim.SGD(again.parameters(), lr=0.01, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert torch.equal(train(model, optimizer, batch), train(again, other, batch))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_vit_of_scrimp() -> None:
    model = ViT(num_classes=5, in_channels=3, image_size=12, depth=1, width=12, num_heads=3)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.view(3, 3, 4, 12)[:, 2] = 0
    before = model(IMAGES).detach()
    assert remove_dead_channels_(model, example_inputs=IMAGES).channels == {"blocks.0.attention.qkv": (36, 24)}
    torch.testing.assert_close(model(IMAGES).detach(), before)


def test_learned_bits_go_with_their_channels() -> None:
    model = resnet9(num_classes=5, in_channels=3, width=4)
    self_compress_(model, IMAGES)
    optimizer = torch.optim.Adam(scrimp.bits.param_groups(model, lr=1e-3))
    for _ in range(2):
        train(model, optimizer)
    with torch.no_grad():
        for name, layer in quantized_layers(model).items():
            if name != "head":
                bits, exponent = layer.quantizer.learned()
                layer.quantizer.set_(torch.where(torch.arange(len(bits)) % 4 == 1, 0.0, bits), exponent)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[1::4] = -0.1
    before = copy.deepcopy(model)(IMAGES).detach()
    report = remove_dead_channels_(model, optimizer)
    assert len(report.channels) == 8
    assert (model(IMAGES).detach() - before).abs().max() <= 5e-6
    for name, layer in quantized_layers(model).items():
        assert len(layer.bits) == layer.raw_weight.shape[0]
        assert name == "head" or not layer.dead.any()
    optimizer.zero_grad()
    (model(IMAGES).square().mean() + 0.01 * scrimp.size_penalty(model)).backward()
    optimizer.step()


@pytest.mark.parametrize("act", [nn.SiLU, nn.GELU])
def test_constants_are_folded_where_that_is_exact(act: type[nn.Module]) -> None:
    def model(padding: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), act(), nn.Conv2d(8, 8, 3, padding=padding), act(), nn.AvgPool2d(2), nn.Flatten(),
            nn.LazyLinear(8), act(), nn.Linear(8, 5),
        )  # fmt: skip

    for padding, widths in ((0, {"0": (8, 7), "2": (8, 7), "6": (8, 7)}), (1, {"2": (8, 7), "6": (8, 7)})):
        net = model(padding).double()
        net(IMAGES.double())
        with torch.no_grad():
            for layer in (net[0], net[2], net[6]):
                layer.weight[3] = 0
                layer.bias[3] = 0.7
        report = remove_dead_channels_(net, example_inputs=IMAGES.double())
        assert report.num_channels == 0
        assert report.waiting == report.waiting_for_constant == {"0": 1, "2": 1, "6": 1}
        before = net(IMAGES.double()).detach()
        with pytest.raises(ConfigError, match="without also="):
            remove_dead_channels_(net, also=[copy.deepcopy(net)], fold_constants=True)
        report = remove_dead_channels_(net, fold_constants=True)
        assert report.channels == widths
        assert (net(IMAGES.double()).detach() - before).abs().max() <= 1e-12


class Odd(nn.Module):
    """A convolution, ``middle``, another one."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.first, self.second, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), middle
        with torch.no_grad():
            self.first.weight[1::2] = 0
            assert self.first.bias is not None
            self.first.bias[1::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.middle(self.first(x))).mean(dim=(2, 3))


def test_an_unknown_operation_is_a_barrier_said_loudly() -> None:
    model = Odd(lambda x: x.cumsum(dim=1))
    with pytest.warns(NoEffectWarning, match=r"'cumsum' is an operation that is not known.*'first'"):
        report = remove_dead_channels_(model, example_inputs=IMAGES)
    assert report.num_channels == 0
    assert [(barrier.layers, barrier.num_channels, barrier.is_unknown) for barrier in report.barriers] == [
        (("first",), 8, True)
    ]


@pytest.mark.parametrize(("middle", "reason"), [
    (nn.GroupNorm(2, 8), "group_norm"),
    (lambda x: x / x.mean(dim=1, keepdim=True), "'mean' over channels"),
    (lambda x: x.softmax(dim=1), "softmax"),
    (lambda x: x * torch.ones(8, 1, 1), "no channels"),
    (lambda x: x[:, [0, 2, 1, 3, 4, 5, 6, 7]], "an index"),
    (lambda x: x.view(4 if len(x) == 4 else 2, 8, 10, 10), "written as a number"),
    (lambda x: x / x.shape[1] ** 0.5, "a width that numbers"),
    (lambda x: torch.cat([x[:, :4], x[:, 4:]], 1), "an index"),
    (lambda x: x.sum(dim=1, keepdim=True).expand(-1, 8, -1, -1), None),
])  # fmt: skip
def test_known_barriers(middle: Any, reason: str | None) -> None:
    report = remove_dead_channels_(Odd(middle), example_inputs=IMAGES)
    if reason is None:
        assert report.channels == {"first": (8, 4)}
    else:
        assert report.num_channels == 0
        assert [reason in barrier.reason for barrier in report.barriers] == [True]
        assert report.waiting == {"first": 4}


class Unseen(nn.Module):
    """Looks like nothing from outside: the trace is told that it acts on single elements."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(1, 2, x.shape[1]).view(1, -1, 1, 1)


def test_a_wrong_declaration_is_found_out() -> None:
    model = Odd(Unseen())
    channel_graph(model, IMAGES, pointwise=[Unseen])
    before = everything(model)
    with pytest.raises(StructureError, match="gives other outputs without its dead channels"):
        remove_dead_channels_(model)
    assert_untouched(before, everything(model))


class Swish(nn.Module):
    """An activation that no one knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.special.expit(x)


def test_a_declaration_helps() -> None:
    model = Odd(Swish())
    with pytest.warns(NoEffectWarning, match="cannot be followed"):
        assert remove_dead_channels_(model, example_inputs=IMAGES).num_channels == 0
    channel_graph(model, IMAGES, pointwise=[Swish])
    assert remove_dead_channels_(model).channels == {"first": (8, 4)}


def test_shared_and_tied_modules() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.again(self.first(x)).relu()).mean((2, 3)))

    model = Twice()
    with torch.no_grad():
        for conv in (model.first, model.again):
            conv.weight[[2, 3]] = 0
            conv.bias[[2, 3]] = 0
    before = model(IMAGES).detach()
    assert remove_dead_channels_(model, example_inputs=IMAGES).channels == {"first": (8, 6), "again": (8, 6)}
    torch.testing.assert_close(model(IMAGES).detach(), before)


def bad_models() -> dict[str, tuple[nn.Module, str]]:
    lazy = nn.Sequential(nn.LazyConv2d(8, 3))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)))
        script = nn.Sequential(torch.jit.script(nn.Conv2d(3, 8, 3)))
    sparse = net()
    sparse.register_buffer("table", torch.eye(3).to_sparse())
    return {
        "lazy": (lazy, "'0.weight' is lazy"),
        "parametrised": (normed, r"0 \(ParametrizedConv2d\) is parametrised"),
        "weight-normed": (old, r"0 \(Conv2d\) is weight-normed"),
        "scripted": (script, "TorchScript"),
        "sparse": (sparse, "'table' is a torch.sparse_coo tensor"),
        "wrong input": (net(16).append(nn.Linear(3, 3)), "does not run on the example inputs"),
    }


@pytest.mark.parametrize("name", ["lazy", "parametrised", "weight-normed", "scripted", "sparse", "wrong input"])
def test_models_that_cannot_be_followed(name: str) -> None:
    model, message = bad_models()[name]
    before = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    kinds = [type(module) for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if name not in ("lazy",) else None
    with pytest.raises(StructureError, match=message):
        remove_dead_channels_(model, optimizer, example_inputs=IMAGES)
    assert {key: id(value) for key, value in model.state_dict(keep_vars=True).items()} == before
    assert [type(module) for module in model.modules()] == kinds


def test_bad_arguments() -> None:
    model = dead_net()
    with pytest.raises(ConfigError, match="needs example_inputs once"):
        remove_dead_channels_(model)
    with pytest.raises(ConfigError, match="without a tensor"):
        remove_dead_channels_(model, example_inputs=3)
    for arguments, message in (
        ({"masks": {"7": torch.zeros(8, dtype=torch.bool)}}, "masks names '7'"),
        ({"masks": {"0": torch.zeros(3, dtype=torch.bool)}}, "the mask of '0' has shape"),
        ({"keep": ["1"]}, "keep names '1', which is no layer"),
        ({"multiple_of": 0}, "multiple_of is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            remove_dead_channels_(model, example_inputs=IMAGES, **arguments)
    with pytest.raises(StructureError, match=r"wrapped in DataParallel"):
        remove_dead_channels_(nn.DataParallel(model), example_inputs=IMAGES)


def test_refusals_change_nothing() -> None:
    model = dead_net()
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0
    before = everything(model, optimizer)
    with pytest.raises(StructureError, match="Adafactor state 'row_var'"):
        remove_dead_channels_(model, optimizer, example_inputs=IMAGES)
    assert_untouched(before, everything(model, optimizer))
    stranger = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(StructureError, match="holds no parameter of the model"):
        remove_dead_channels_(model, stranger)
    with pytest.raises(StructureError, match="no module, no dict"):
        remove_dead_channels_(model, also=[3])  # type: ignore[list-item]
    assert_untouched(before, everything(model, optimizer))

    alone = dead_net()
    alone.handle = threading.Lock()
    before = everything(alone)
    with pytest.raises(StructureError, match="cannot be copied to try a removal on"):
        remove_dead_channels_(alone, example_inputs=IMAGES)
    assert_untouched(before, everything(alone))

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dead_net()

        def forward(self, x: Tensor) -> Tensor:
            if self.inner[0].weight.shape[0] != 8:
                raise ValueError("eight are needed")
            return self.inner(x)

    picky = Picky()
    before = everything(picky)
    with pytest.raises(StructureError, match=r"does not run any more without its dead channels.*eight are needed"):
        remove_dead_channels_(picky, example_inputs=IMAGES)
    assert_untouched(before, everything(picky))


def _remove_on_a_rank(rank: int, differs: bool) -> str:
    model = dead_net()
    if differs and rank:
        with torch.no_grad():
            model[0].weight[1] = 1.0
    try:
        remove_dead_channels_(model, example_inputs=IMAGES)
    except ConfigError as error:
        return str(error)
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(IMAGES).sum().backward()
    return scrimp.read_structure(model).digest()


def test_two_ranks_agree_or_refuse() -> None:
    same = run_ranks(_remove_on_a_rank, False)
    assert same[0] == same[1]
    assert len(same[0]) == 32
    refused = run_ranks(_remove_on_a_rank, True)
    assert all("what remove_dead_channels_ would remove is not the same on all ranks" in text for text in refused)


def test_summary_shows_what_feeds_what() -> None:
    model, batch = make("resnet", "relu", norm=True, padding=1)
    kill_(model, "relu")
    with torch.no_grad():
        model.stem[0].weight[1] = 1.0
    layers = {layer.name: layer for layer in channel_summary(model, batch)}
    assert list(layers) == [
        "stem.0", "first.0.0", "first.1.0", "second.0.0", "second.1.0", "shortcut.0", "head",
    ]  # fmt: skip
    assert layers["second.0.0"].inputs_from == ("stem.0", "first.1.0")
    assert layers["stem.0"].added_to == ("first.1.0",)
    assert layers["second.1.0"].added_to == ("shortcut.0",)
    assert (layers["first.1.0"].num_dead, layers["first.1.0"].num_waiting) == (2, 1)
    assert layers["first.1.0"].mean_bits is None
    assert layers["head"].inputs_from == ("second.1.0", "shortcut.0")
    assert (layers["stem.0"].kind, layers["stem.0"].num_inputs, layers["stem.0"].num_weights) == ("Conv2d", 3, 216)
    assert layers["stem.0"].inputs_from == ()
    self_compress_(model, batch, bits=5)
    assert all(layer.mean_bits == 5 for layer in channel_summary(model))


def test_accumulation_goes_on_as_if_masked() -> None:
    gradients = []
    for at in (None, 0, 1):
        model = dead_net().double()
        for number, part in enumerate(IMAGES.double().split(2)):
            if number == at:
                remove_dead_channels_(model, example_inputs=IMAGES.double())
            model(part).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    whole, *others = gradients
    left = torch.tensor([0, 2, 3, 4, 6, 7])
    wanted = whole[2][left][:, left]
    for own in others:
        assert (own[2] - wanted).abs().max() <= 1e-14
        assert (own[5] - whole[5]).abs().max() <= 1e-14


def test_a_loss_that_waits_for_its_backward_pass_is_refused() -> None:
    def refused(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        before = everything(model, optimizer)
        try:
            remove_dead_channels_(model, optimizer, example_inputs=IMAGES)
        except StructureError as error:
            assert_untouched(before, everything(model, optimizer))
            return "still waits for its backward pass" in str(error)
        return False

    model = dead_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    loss = model(IMAGES).square().mean()
    assert refused(model, optimizer)
    loss.backward(retain_graph=True)
    assert refused(model, optimizer)
    loss.backward()
    optimizer.step()
    assert not refused(model, optimizer)  # the spent loss is still there
    assert model[0].out_channels == 6
    for drop in ("detach", "delete", "no_grad"):
        model = dead_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        if drop == "no_grad":
            with torch.no_grad():
                loss = model(IMAGES)
        else:
            loss = model(IMAGES)
            loss = loss.detach() if drop == "detach" else None
        assert not refused(model, optimizer)
        assert loss is None or loss.shape == (4, 5)


def test_a_sparse_gradient_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 8, sparse=True), nn.Linear(8, 3))
    tokens = torch.arange(4).view(2, 2)
    with torch.no_grad():
        model[0].weight[:, 2] = 0
    model(tokens).sum().backward()
    before = everything(model)
    with pytest.raises(StructureError, match=r"has a torch.sparse_coo gradient"):
        remove_dead_channels_(model, example_inputs=tokens)
    assert_untouched([one.to_dense() for one in before], [one.to_dense() for one in everything(model)])
    model.zero_grad()
    assert remove_dead_channels_(model).channels == {"0": (8, 7)}


def test_functional_losses_stay_possible() -> None:
    """The last step's loss may still be alive; its successor trains the smaller model."""
    model = dead_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = functional.mse_loss(model(IMAGES), torch.zeros(4, 5))
    loss.backward()
    remove_dead_channels_(model, optimizer, example_inputs=IMAGES)
    again = functional.mse_loss(model(IMAGES), torch.zeros(4, 5))
    again.backward()
    optimizer.step()
    torch.testing.assert_close(again.detach(), loss.detach())
