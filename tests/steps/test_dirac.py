import pytest
import torch
from torch import nn

from scrimp._core.rng import generator
from scrimp.errors import NoEffectWarning
from scrimp.steps import dirac_init_
from scrimp.train.models.convnets import airbench


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (3, 5), (4, 2)])
def test_the_first_filters_pass_the_input_on(inputs, outputs, memory_format):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False).to(memory_format=memory_format)
    rest = conv.weight.detach()[inputs:].clone()
    assert dirac_init_(conv) == 1
    x = torch.randn(2, inputs, 6, 5, generator=generator(0))
    passed = min(inputs, outputs)
    assert torch.equal(conv(x)[:, :passed], x[:, :passed])
    assert torch.equal(conv.weight[inputs:], rest)
    before = conv.weight.detach().clone()
    dirac_init_(conv)
    assert torch.equal(conv.weight, before)


def test_a_stack_starts_as_the_identity():
    stack = nn.Sequential(*[nn.Conv2d(3, 3, size, padding="same", dilation=2, bias=False) for size in (3, 5, 3)])
    dirac_init_(stack)
    x = torch.randn(2, 3, 9, 9, generator=generator(0))
    assert torch.equal(stack(x), x)


def test_equals_the_library_s_own_network():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        expected = airbench(num_classes=10, in_channels=3, width=4)
        torch.random.default_generator.manual_seed(0)
        model = airbench(num_classes=10, in_channels=3, width=4, dirac=False)
    assert dirac_init_(model) == 6
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_only_the_chosen():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    untouched = model[0].weight.detach().clone()
    assert dirac_init_(model, lambda name, conv: name == "1") == 1
    assert torch.equal(model[0].weight, untouched)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False),
        nn.Conv2d(4, 4, 3, padding=(1, 0)),
        nn.Conv2d(4, 4, 3, padding="valid"),
        nn.Conv1d(4, 4, 3, padding=1),
    ],
)
def test_what_cannot_pass_its_input_on_stays_and_warns(conv):
    before = conv.weight.detach().clone()
    with pytest.warns(NoEffectWarning, match="could pass its input on"):
        assert dirac_init_(nn.Sequential(conv)) == 0
    assert torch.equal(conv.weight, before)
