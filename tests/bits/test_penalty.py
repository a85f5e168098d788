"""The size as a loss term: against a slow twin, its gradient, its objectives, its push."""

import copy

import pytest
import torch
from tests.reference.size import size_slow
from torch import nn

import scrimp
from scrimp.bits import Constant, Objective, StepRange, Wiring, quantized_layers, self_compress_, set_wiring_
from scrimp.bits.wiring import trace_modules
from scrimp.errors import ConfigError, StructureError


def chain(activation=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 6, 3), activation(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 10),
    )  # fmt: skip


IMAGES = torch.zeros(2, 3, 8, 8)


def compressed(model=None, **options):
    model = model or chain()
    self_compress_(model, IMAGES, **options)
    return model


def set_bits(model, name, values):
    quantizer = quantized_layers(model)[name].quantizer
    bits, exponent = quantizer.learned()
    quantizer.set_(torch.as_tensor(values, dtype=bits.dtype).expand_as(bits), exponent.detach())


def chain_feeds():
    return {
        "0": [None] * 3,
        "3": [[("0", channel)] for channel in range(8)],
        "7": [[("3", channel)] for channel in range(6) for _ in range(9)],
    }


@pytest.mark.parametrize("dead", [(), (2,), (0, 1, 5)])
def test_agrees_with_the_slow_twin(dead):
    model = compressed(least_output_bits=0.0)
    bits = {"0": [3.0] * 8, "3": [2.5, 4, 0, 1.5, 6, 7], "7": [5.0] * 10}
    for channel in dead:
        bits["0"][channel] = 0.0
    for name, values in bits.items():
        set_bits(model, name, torch.tensor(values))
    expected = size_slow(
        {"0": (bits["0"], 9, 3), "3": (bits["3"], 9, 8), "7": (bits["7"], 1, 54)}, chain_feeds(), 216 + 432 + 540
    )
    assert scrimp.size_penalty(model, push=0).item() == pytest.approx(expected, rel=1e-6)


def test_at_the_start_it_is_the_bits_of_every_weight_twice_but_for_the_images():
    model = compressed(least_output_bits=0.0)
    assert scrimp.size_penalty(model).item() == pytest.approx(8 * (2 - 216 / 1188), rel=1e-6)


def test_its_gradient_is_the_price_of_a_bit():
    model = compressed(least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([1.5, 0, 2, 3, 4, 5, 6, 7]))
    scrimp.size_penalty(model, push=0).backward()
    grads = {name: layer.quantizer.depth.grad * 1188 for name, layer in quantized_layers(model).items()}
    paid = 9 * 3 + 9 * 6  # by its own weights, and by those that read it
    assert grads["0"].tolist() == pytest.approx([paid, 0, *[paid] * 6])
    assert grads["3"].tolist() == pytest.approx([9 * 7 + 9 * 10] * 6)
    assert grads["7"].tolist() == pytest.approx([54.0] * 10)


def test_what_is_nothing_costs_nothing():
    """One bit, of symmetric codes, is the code zero alone: no channel pays for it, and none that reads it."""
    model, twin = compressed(least_output_bits=0.0), compressed(least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([1.0, 0.7, 2, 3, 4, 5, 6, 7]))
    set_bits(twin, "0", torch.tensor([0.0, 0.0, 2, 3, 4, 5, 6, 7]))
    penalties = [scrimp.size_penalty(one, push=0) for one in (model, twin)]
    assert penalties[0].item() == penalties[1].item()
    penalties[0].backward()
    assert quantized_layers(model)["0"].quantizer.depth.grad[:2].tolist() == [0.0, 0.0]


def test_nothing_else_gets_a_gradient():
    model = compressed()
    scrimp.size_penalty(model).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {f"{name}.parametrizations.weight.0.depth" for name in ("0", "3", "7")}


@pytest.mark.parametrize(("activation", "expected"), [(nn.ReLU, 0.5), (nn.GELU, 0.5 + 0.25)])
def test_the_push_on_constants_of_zero_bit_channels(activation, expected):
    """One-sided before a ReLU, L1 before what has no flat side; only of channels without bits."""
    model = compressed(chain(activation), least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([0.0, 0, 3, 3, 3, 3, 3, 3]))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, -0.25, 7, 7, 7, 7, 7, 7]))
        model[3].bias.fill_(9.0)
    without = scrimp.size_penalty(model, push=0)
    penalty = scrimp.size_penalty(model)
    assert (penalty - without).item() == pytest.approx(expected, rel=1e-5)
    assert (scrimp.size_penalty(model, push=2.0) - without).item() == pytest.approx(2 * expected, rel=1e-5)
    penalty.backward()
    side = 0.0 if activation is nn.ReLU else -1.0
    assert model[1].bias.grad.tolist() == [1.0, side, *[0.0] * 6]
    assert not model[3].bias.grad.any()


def test_the_bias_of_a_layer_without_norm_is_its_constant():
    model = compressed(least_output_bits=0.0)
    set_bits(model, "3", torch.tensor([0.0, 2, 2, 2, 2, 2]))
    with torch.no_grad():
        model[3].bias.fill_(2.0)
    assert (scrimp.size_penalty(model) - scrimp.size_penalty(model, push=0)).item() == pytest.approx(2.0, rel=1e-5)


def test_operations_and_activations():
    model = compressed(least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([0.0, *[4.0] * 7]))
    operations = scrimp.size_penalty(model, objective=Objective.OPERATIONS, push=0)
    # weights times 64, 36 and 1 positions
    total = 216 * 64 + 432 * 36 + 540
    own = 64 * 9 * 3 * 7 * 4 + 36 * 9 * 7 * 6 * 8 + 540 * 8
    reading = 36 * 9 * 6 * 7 * 4 + 540 * 8
    assert operations.item() == pytest.approx((own + reading) / total, rel=1e-6)
    activations = scrimp.size_penalty(model, objective=Objective.ACTIVATIONS, push=0)
    assert activations.item() == pytest.approx((64 * 28 + 36 * 48 + 80) / (64 * 8 + 36 * 6 + 10), rel=1e-6)


class Residual(nn.Module):
    """first -> (second) + first -> head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.second(x))


def test_layers_that_are_added_share_what_reads_the_sum():
    """With a wiring from the channel graph: a class per channel of the sum, with two producers."""
    model = compressed(Residual(), least_output_bits=0.0)
    trunk = torch.arange(4)
    wiring = Wiring(
        inputs={"first": torch.arange(4, 7), "second": trunk, "head": trunk},
        outputs={"first": trunk, "second": trunk, "head": torch.arange(7, 12)},
        is_external=torch.tensor([False] * 4 + [True] * 3 + [False] * 5),
    )
    set_wiring_(model, wiring)
    bits = {"first": [0.0, 2, 3, 4], "second": [0.0, 0, 2, 2], "head": [8.0] * 5}
    for name, values in bits.items():
        set_bits(model, name, torch.tensor(values))
    both = [[("first", channel), ("second", channel)] for channel in range(4)]
    expected = size_slow(
        {"first": (bits["first"], 9, 3), "second": (bits["second"], 9, 4), "head": (bits["head"], 1, 4)},
        {"first": [None] * 3, "second": both, "head": both}, 108 + 144 + 20,
    )  # fmt: skip
    assert scrimp.size_penalty(model).item() == pytest.approx(expected, rel=1e-6)


def test_grouped_convolutions_count_their_own_group():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 6, 3, groups=2, bias=False))
    compressed(model, least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([0.0, 2, 2, 2]))
    scrimp.size_penalty(model, push=0).backward()
    grads = {name: layer.quantizer.depth.grad * (12 + 6 * 2 * 9) for name, layer in quantized_layers(model).items()}
    assert grads["1"].tolist() == pytest.approx([9.0] * 3 + [18.0] * 3)
    assert grads["0"].tolist() == pytest.approx([0.0, *[3.0 + 27.0] * 3])


def test_the_module_trace_finds_chains_and_norms():
    model = compressed()
    wiring = quantized_layers(model)["0"].quantizer.wiring
    assert wiring.inputs["3"].tolist() == wiring.outputs["0"].tolist()
    assert wiring.inputs["7"].tolist() == wiring.outputs["3"].repeat_interleave(9).tolist()
    assert wiring.is_external[wiring.inputs["0"]].all()
    assert not wiring.is_external[wiring.outputs["3"]].any()
    assert dict(wiring.norms) == {"0": model[1]}
    assert {(c.layer, c.is_free_below_zero) for c in wiring.constants} == {("0", True), ("3", True)}
    assert {id(c.parameter) for c in wiring.constants} == {id(model[1].bias), id(model[3].bias)}


def test_the_module_trace_leaves_open_what_it_cannot_see():
    model = compressed(Residual())
    wiring = trace_modules(model, IMAGES)
    assert wiring.is_external[wiring.inputs["head"]].all()
    assert wiring.inputs["second"].tolist() == wiring.outputs["first"].tolist()
    assert wiring.norms == {}


class NormAndMore(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


def test_a_norm_beside_another_reader_is_not_the_only_one():
    assert quantized_layers(compressed(NormAndMore()))["conv"].quantizer.wiring.norms == {}


def test_a_norm_behind_a_pool_is_not_directly_behind_the_layer():
    model = compressed(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()))
    wiring = quantized_layers(model)["0"].quantizer.wiring
    assert wiring.norms == {}
    assert [constant.parameter for constant in wiring.constants] == [model[2].bias]


def test_a_layer_that_is_called_twice_is_fed_from_outside():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), shared, shared, nn.Linear(4, 2))
    self_compress_(model, torch.zeros(2, 3))
    wiring = trace_modules(model, torch.zeros(2, 3))
    assert wiring.is_external[wiring.outputs["1"]].all()
    assert wiring.is_external[wiring.outputs["0"]].all()


def test_a_copy_is_independent_and_a_wrapper_is_seen_through():
    model = compressed()
    twin = copy.deepcopy(model)
    set_bits(twin, "0", 2.0)
    with torch.no_grad():
        twin[1].bias.fill_(100.0)
        twin[0].parametrizations.weight[0].depth[0] = 0.0
    assert scrimp.size_penalty(model).item() == pytest.approx(scrimp.size_penalty(compressed()).item())
    assert scrimp.size_penalty(nn.Sequential(twin)).item() == pytest.approx(scrimp.size_penalty(twin).item())
    assert scrimp.size_penalty(twin).item() > 100


def test_slicing_needs_a_new_wiring_and_then_counts_what_is_left():
    """Before and after a removal of a channel of zero bits, the size is the same."""
    model = compressed(least_output_bits=0.0)
    set_bits(model, "0", torch.tensor([0.0, *[4.0] * 7]))
    before = scrimp.size_penalty(model, push=0).item()
    kept, wiring = torch.arange(1, 8), quantized_layers(model)["0"].quantizer.wiring
    names = (quantized_layers(model)["0"].weight_name, *quantized_layers(model)["0"].parameter_names)
    slices = dict.fromkeys((*names, "1.weight", "1.bias", "1.running_mean", "1.running_var"), ((0, kept),))
    slices[quantized_layers(model)["3"].weight_name] = ((1, kept),)
    scrimp.apply_structure_change(scrimp.StructureChange(slices), model=model)
    set_wiring_(
        model,
        Wiring(
            {**wiring.inputs, "3": wiring.inputs["3"][kept]}, {**wiring.outputs, "0": wiring.outputs["0"][kept]},
            wiring.is_external, (Constant("0", model[1].bias, is_free_below_zero=True),),
        ),
    )  # fmt: skip
    assert scrimp.size_penalty(model, push=0).item() == pytest.approx(before, rel=1e-6)


def test_bits_of_the_output_layer_cost_nothing_below_the_least():
    model = compressed()
    set_bits(model, "7", 1.0)
    scrimp.size_penalty(model).backward()
    assert not quantized_layers(model)["7"].quantizer.depth.grad.any()


def test_step_range_pulls_both_ends():
    model = compressed(quantizer=StepRange)
    scrimp.size_penalty(model).backward()
    quantizer = quantized_layers(model)["0"].quantizer
    assert torch.equal(quantizer.log_range.grad, -quantizer.log_step.grad)


def test_without_quantised_layers_it_refuses():
    with pytest.raises(ConfigError, match="self_compress_"):
        scrimp.size_penalty(chain())


def test_a_model_that_was_given_another_structure_needs_its_wiring():
    model = compressed()
    set_bits(model, "3", [0, 0, 0, 8, 8, 8])
    with torch.no_grad():
        model[3].bias[:3] = 0
    assert scrimp.remove_dead_channels_(model).num_channels == 3
    again = compressed()
    scrimp.apply_structure_(again, scrimp.read_structure(model))
    again.load_state_dict(model.state_dict())
    with pytest.raises(
        StructureError, match=r"3 takes 8 channels and gives 3, its wiring 8 and 6: .* bits\.set_wiring_"
    ):
        scrimp.size_penalty(again)
    set_wiring_(again, scrimp.bits.graph_wiring(again, IMAGES))
    assert scrimp.size_penalty(again) == scrimp.size_penalty(model)
