"""self_compress_: which layers, with which start, and what of torch keeps working."""

import copy
import math

import pytest
import torch
from torch import nn

import scrimp
from scrimp.bits import BitsExponent, BitsRange, StepRange, quantized_layers, self_compress_
from scrimp.bits.compress import starting_values
from scrimp.errors import ConfigError, NoEffectWarning


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model, seed=0):
    """``model`` with weights that do not depend on torch's global generator."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / max(1, parameter[0].numel()) ** 0.5)
    return model


def net():
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10),
        )
    )  # fmt: skip


IMAGES = draw(1, 4, 3, 8, 8)


def test_names_and_facts():
    model = net()
    report = self_compress_(model, IMAGES)
    assert report.layers == ("0", "3", "6")
    assert report.left_alone == {}
    assert report.num_weights == 8 * 27 + 6 * 36 + 2160
    assert report.num_parameters == sum(p.numel() for p in net().parameters())
    layers = quantized_layers(model)
    assert list(layers) == ["0", "3", "6"]
    facts = [layer.quantizer.facts for layer in layers.values()]
    assert [f.num_positions for f in facts] == [64, 36, 1]
    assert [f.num_weights for f in facts] == [216, 216, 2160]
    assert {f.num_all_weights for f in facts} == {2592}
    assert [f.order for f in facts] == [0, 1, 2]
    assert layers["3"].weight_name in dict(model.named_parameters())
    assert [dict(model.named_parameters())[name].shape for name in layers["3"].parameter_names] == [(6,), (6,)]


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
@pytest.mark.parametrize("bits", [2.0, 4.0, 8.0])
def test_the_start_clips_nothing_and_is_near(quantizer, bits):
    model, before = net(), net()
    self_compress_(model, IMAGES, bits=bits, quantizer=quantizer)
    for (_, layer), weight in zip(
        quantized_layers(model).items(), (m.weight for m in before if hasattr(m, "weight") and m.weight.dim() > 1),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(layer.raw_weight, weight)
        assert torch.allclose(layer.bits, torch.full_like(layer.bits, bits), atol=1e-5)
        assert not layer.dead.any()
        step = layer.scales().view(-1, *[1] * (weight.dim() - 1))
        assert ((layer.quantized_weight() - weight).abs() <= 0.501 * step + 1e-7).all()
        greatest_code, rows = 2 ** (bits - 1) - 1, weight.flatten(1)
        room = min(4, 0.9 * greatest_code) * rows.square().mean(1).sqrt()
        torch.testing.assert_close(
            layer.scales(), torch.maximum(rows.abs().amax(1), room) / greatest_code, rtol=1e-5, atol=0
        )


def test_parameters_stay_the_same_objects():
    model = net()
    before = [p for p in model.parameters()]  # noqa: C416 - a list of objects
    self_compress_(model, IMAGES)
    assert {id(p) for p in before} <= {id(p) for p in model.parameters()}


def test_the_output_layer_keeps_two_bits_and_passes_its_gradient():
    model = net()
    self_compress_(model, IMAGES)
    layers = quantized_layers(model)
    with torch.no_grad():
        for layer in layers.values():
            layer.quantizer.depth.fill_(-1.0)
            layer.quantizer.log_span.sub_(3.0)  # so that some weights are clipped, which is what bits learn from here
    assert layers["0"].dead.all()
    assert layers["6"].bits.tolist() == [2.0] * 10
    assert not layers["6"].dead.any()
    layers["6"].quantized_weight().sum().backward()
    assert layers["6"].quantizer.depth.grad.any()


def test_protection_by_name_and_by_function():
    assert self_compress_(net(), IMAGES, protect=["0"]).left_alone == {"0": "protected"}
    report = self_compress_(net(), IMAGES, protect=lambda _name, module: isinstance(module, nn.Linear))
    assert report.layers == ("0", "3")
    nested = nn.Sequential(net(), nn.Linear(10, 2))
    assert self_compress_(filled(nested), IMAGES, protect="0").layers == ("1",)


def test_frozen_weights_are_left_alone():
    model = net()
    model[0].weight.requires_grad_(False)
    assert self_compress_(model, IMAGES).left_alone == {"0": "its weight is frozen"}


class Tied(nn.Module):
    def __init__(self, *, output_too=False):
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.output = nn.Linear(4, 5, bias=False)
        self.second.weight = self.first.weight
        if output_too:
            self.output.weight = self.table.weight
        filled(self)

    def forward(self, tokens):
        return self.output(self.second(self.first(self.table(tokens))))


TOKENS = torch.tensor([[0, 1, 2], [3, 4, 0]])


def test_tied_layers_share_their_bits():
    model = Tied()
    report = self_compress_(model, TOKENS)
    assert report.layers == ("first", "second", "output")
    assert report.num_weights == 16 + 20
    layers = quantized_layers(model)
    assert layers["first"].quantizer is layers["second"].quantizer
    assert layers["first"].raw_weight is layers["second"].raw_weight
    assert torch.equal(model.first.weight, model.second.weight)


def test_a_weight_tied_to_an_embedding_is_left_alone():
    report = self_compress_(Tied(output_too=True), TOKENS)
    assert report.left_alone == {"output": "its weight is shared with a layer of another kind"}


def test_a_layer_tied_to_a_protected_one_is_left_alone():
    report = self_compress_(Tied(), TOKENS, protect=["first"])
    assert report.left_alone == {"first": "protected", "second": "its weight is shared with a layer that is left alone"}


def test_embeddings_on_demand():
    model = Tied()
    assert self_compress_(model, TOKENS, embeddings=True).layers == ("table", "first", "second", "output")
    table = quantized_layers(model)["table"]
    assert (table.channel_dim, table.bits.shape) == (1, (4,))
    assert torch.equal(model.table(TOKENS), table.quantized_weight()[TOKENS])


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (lambda: nn.Conv1d(3, 4, 3), draw(0, 2, 3, 8)),
        (lambda: nn.Conv2d(4, 4, 3, groups=4), draw(0, 2, 4, 8, 8)),
        (lambda: nn.Conv3d(2, 4, 2), draw(0, 2, 2, 4, 4, 4)),
        (lambda: nn.ConvTranspose1d(3, 4, 3), draw(0, 2, 3, 8)),
        (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), draw(0, 2, 3, 8, 8)),
        (lambda: nn.ConvTranspose3d(2, 4, 2), draw(0, 2, 2, 4, 4, 4)),
        (lambda: nn.Linear(3, 4), draw(0, 2, 7, 3)),
    ],
)
@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
def test_every_kind_of_layer_has_one_depth_per_output_channel(make, example, quantizer):
    """A channel of zero bits gives its bias, and nothing else changes."""
    layer = filled(make())
    model = nn.Sequential(layer)
    plain = model(example)
    self_compress_(model, example, least_output_bits=0.0, bits=16.0, quantizer=quantizer)
    (quantized,) = quantized_layers(model).values()
    assert quantized.bits.shape == (4,)
    bits, exponent = (tensor.detach().clone() for tensor in quantized.quantizer.learned())
    bits[2] = 0.0
    quantized.quantizer.set_(bits, exponent)
    channels = model(example).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    assert torch.equal(channels[2], layer.bias[2].expand_as(channels[2]))
    plain = plain.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    for channel in (0, 1, 3):
        torch.testing.assert_close(channels[channel], plain[channel], atol=1e-3, rtol=1e-3)


def test_a_transposed_convolution_with_groups_is_left_alone():
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    report = self_compress_(model, draw(0, 1, 4, 4, 4))
    assert report.left_alone == {"0": "a transposed convolution with groups"}


@pytest.mark.parametrize(
    "options", [{"bits": 1.0, "least_output_bits": 0.0}, {"least_output_bits": 0.5}, {"least_output_bits": 1.0}]
)
def test_bits_that_are_nothing_are_refused_where_they_are_asked_for(options):
    model = net()
    with pytest.raises(ConfigError, match="bits is"):
        self_compress_(model, IMAGES, **options)
    self_compress_(model, IMAGES, **options, quantizer=BitsExponent)


class PaperCodes(BitsRange):
    """Ours, with the codes of the others."""

    symmetric = False


def test_the_kinds_are_one_function_in_other_coordinates():
    grads = []
    for quantizer in (BitsExponent, StepRange, PaperCodes):
        model = net()
        self_compress_(model, IMAGES, bits=3.0, quantizer=quantizer)
        one = quantized_layers(model)["0"].quantizer
        bits, exponent = (tensor.detach() for tensor in one.learned())
        one.set_(bits - 0.5, exponent)
        model(IMAGES).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in one.named_parameters()})
    torch.testing.assert_close(grads[1]["log_range"], grads[0]["depth"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        grads[1]["log_step"], grads[0]["exponent"] - grads[0]["depth"], rtol=1e-4, atol=1e-3
    )  # fmt: skip
    torch.testing.assert_close(grads[2]["log_span"], grads[0]["exponent"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(grads[2]["depth"], grads[0]["depth"] - grads[0]["exponent"], rtol=1e-4, atol=1e-3)


def test_fewer_bits_leave_the_range_as_it_was():
    """With the paper's parameters half of the range goes with each bit, and what lies beyond stops learning."""
    reached = {}
    for quantizer in (BitsRange, BitsExponent):
        model = net()
        self_compress_(model, IMAGES, quantizer=quantizer)
        layer = quantized_layers(model)["0"]
        with torch.no_grad():
            layer.quantizer.depth.sub_(4.0)  # to coarser codes, or to a range of a quarter of the rms
        layer.quantized_weight().sum().backward()
        passes = layer.raw_weight.grad != 0
        reached[quantizer] = (
            layer.quantized_weight().abs().amax() / layer.raw_weight.abs().amax(),
            passes.float().mean(),
        )
    assert reached[BitsRange][0] > 0.85
    assert reached[BitsRange][1] > 0.85
    assert reached[BitsExponent][0] < 0.15
    assert reached[BitsExponent][1] < 0.25


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
def test_what_is_set_is_learned_to_the_last_digit_of_the_exponent(quantizer):
    """Scales stay what they were when bits settle."""
    model = net()
    self_compress_(model, IMAGES, quantizer=quantizer)
    one = quantized_layers(model)["3"].quantizer
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        bits = 10 * torch.rand(6, generator=draws)
        bits[3] = 0.0
        exponent = -bits - 4 * torch.rand(6, generator=draws)
        one.set_(bits, exponent)
        assert torch.equal(one.learned()[1], exponent)
        told = torch.where(bits > one.bits_of_nothing, bits, 0.0)
        torch.testing.assert_close(one.bits(), told, rtol=0, atol=2e-6)
        assert torch.equal(one.dead(), told == 0)


@pytest.mark.parametrize("quantizer", [BitsRange, BitsExponent, StepRange])
def test_integer_exponents_are_powers_of_two(quantizer):
    model = net()
    self_compress_(model, IMAGES, integer_exponent=True, quantizer=quantizer)
    layer = quantized_layers(model)["0"]
    assert torch.equal(layer.scales().log2(), layer.scales().log2().round())
    rows = layer.raw_weight.flatten(1)
    assert (layer.quantized_weight().flatten(1) - rows).abs().amax() <= layer.scales().amax() / 2  # nothing is clipped
    bits, exponent = layer.quantizer.learned()
    layer.quantizer.set_(bits.detach() - 2, exponent.detach())
    layer.quantized_weight().square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.quantizer.parameters())


def test_zero_weights_get_a_usable_start():
    weight = torch.zeros(3, 16)
    weight[0, 0] = 2.0
    bits, exponent = starting_values(weight, 0, 8.0)
    assert bits.tolist() == [8.0] * 3
    assert exponent.tolist() == pytest.approx([math.log2(2 / 127)] * 3)
    _, exponent = starting_values(torch.zeros(3, 16), 0, 8.0)
    assert exponent.tolist() == pytest.approx([math.log2(0.25 / 127)] * 3)


def test_it_trains_and_copies_and_loads():
    model = net()
    self_compress_(model, IMAGES)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IMAGES), model(IMAGES))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(5):
        model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(twin(IMAGES), model(IMAGES))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(IMAGES), model.eval()(IMAGES))


def test_a_structure_change_slices_it():
    """What the removal of channels needs: weight, bits and exponent are sliced by name, and can be made anew."""
    model, optimizer, kept = net(), None, torch.tensor([0, 2, 3, 5])
    self_compress_(model, IMAGES)
    optimizer = torch.optim.Adam(model.parameters())
    model(IMAGES).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    layer = quantized_layers(model)["0"]
    bits = layer.bits[kept]
    names = (layer.weight_name, *layer.parameter_names, "1.weight", "1.bias", "1.running_mean", "1.running_var")
    following = quantized_layers(model)["3"]
    change = scrimp.StructureChange(
        {**dict.fromkeys(names, ((0, kept),)), following.weight_name: ((1, torch.tensor([0, 1])),)}
    )
    scrimp.apply_structure_change(change, model=model, optimizer=optimizer)
    assert torch.equal(layer.bits, bits)
    assert model[0].out_channels == 4
    model(IMAGES).sum().backward()
    optimizer.step()
    fresh = net()
    self_compress_(fresh, IMAGES)
    scrimp.apply_structure_(fresh, scrimp.read_structure(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))


def test_slicing_the_weight_without_its_bits_is_refused():
    model = net()
    self_compress_(model, IMAGES)
    layer = quantized_layers(model)["0"]
    with pytest.raises(scrimp.errors.StructureError, match="parametrization"):
        scrimp.apply_structure_change(
            scrimp.StructureChange({layer.weight_name: ((0, torch.tensor([0, 1, 2])),)}), model=model
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: nn.utils.parametrizations.weight_norm(model[0]), "computes its weight from others"),
        (lambda model: model.append(nn.LazyLinear(3)), "lazy layers"),
        (lambda model: self_compress_(model, IMAGES), "learns its bits already"),
        (lambda model: setattr(model[6], "weight", nn.Parameter(model[6].weight.detach().to_sparse())), "only dense"),
    ],
)
def test_models_that_are_refused(change, message):
    model = net()
    change(model)
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConfigError, match=message):
        self_compress_(model, IMAGES)
    assert [name for name, _ in model.named_parameters()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0.5}, "1 to 16"), ({"bits": 17}, "1 to 16"), ({"least_output_bits": 9.0}, "least_output_bits"),
        ({"protect": ["head"]}, "'head'"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(arguments, message):
    model = net()
    with pytest.raises(ConfigError, match=message):
        self_compress_(model, IMAGES, **arguments)
    assert not quantized_layers(model)


def test_inputs_that_do_not_fit_leave_the_model_as_it_was():
    model = net().train()
    with pytest.raises(ConfigError, match="does not take example_inputs"):
        self_compress_(model, draw(0, 2, 5, 8, 8))
    assert not quantized_layers(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_example_leaves_no_trace():
    model, before = net().train(), net().state_dict()
    self_compress_(model, (IMAGES,))
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(module.training for module in model.modules())


def test_nothing_to_quantise_warns():
    with pytest.warns(NoEffectWarning):
        self_compress_(nn.Sequential(nn.ReLU()), IMAGES)


def test_attention_is_quantised_where_it_does_not_call_its_layers():
    """MultiheadAttention reads out_proj.weight and never calls it; the parametrization is there all the same."""
    model = filled(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    example = draw(2, 3, 5, 8)
    plain = model(example, example, example)[0]
    assert self_compress_(model, (example, example, example), least_output_bits=0.0).layers == ("out_proj",)
    quantizer = quantized_layers(model)["out_proj"].quantizer
    assert not torch.equal(model(example, example, example)[0], plain)
    quantizer.set_(torch.zeros(8), torch.zeros(8))
    output = model(example, example, example)[0]
    assert torch.equal(output, model.out_proj.bias.expand_as(output))
