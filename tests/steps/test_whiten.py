import pytest
import torch
from torch import nn

from scrimp.errors import ConfigError, DataError
from scrimp.steps import whiten_input_, whitening_filters


def images(num: int = 200, channels: int = 3, side: int = 12) -> torch.Tensor:
    """Correlated pixels: white noise, smoothed, with the channels mixed."""
    noise = torch.randn(num, channels, side + 4, side + 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1)[..., :side, :side]
    return smooth + 0.5 * smooth.flip(1)


@pytest.mark.parametrize("kernel_size", [(2, 2), (3, 3), (1, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_filters_make_the_second_moment_of_patches_the_identity(kernel_size: tuple[int, int], channels: int) -> None:
    x = images(channels=channels).double()
    filters = whitening_filters(x, kernel_size, epsilon=0.0).double()
    size = channels * kernel_size[0] * kernel_size[1]
    assert filters.shape == (size, channels, *kernel_size)
    out = nn.functional.conv2d(x, filters).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(size).double(), rtol=0, atol=1e-3)


def test_equals_the_slow_way() -> None:
    x = images(num=5, side=6)
    patches = [x[n, :, r : r + 2, c : c + 2].flatten() for n in range(5) for r in range(5) for c in range(5)]
    moment = sum(torch.outer(p.double(), p.double()) for p in patches) / len(patches)
    filters = whitening_filters(x, (2, 2), epsilon=0.01).double().flatten(1)
    # F M F^T is diagonal with entries v / (v + epsilon), largest first
    values = torch.linalg.eigvalsh(moment).flip(0)
    torch.testing.assert_close(filters @ moment @ filters.T, torch.diag(values / (values + 0.01)), rtol=1e-4, atol=1e-5)
    assert (filters.gather(1, filters.abs().argmax(1, keepdim=True)) > 0).all()


def test_sets_freezes_and_leaves_the_bias_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 2), nn.ReLU(), nn.Conv2d(24, 4, 3)).to(memory_format=torch.channels_last)
    assert model[0].bias is not None
    bias = model[0].bias.clone()
    conv = whiten_input_(model, images())
    assert conv is model[0]
    torch.testing.assert_close(conv.weight[:12], -conv.weight[12:], rtol=0, atol=0)
    assert not conv.weight.requires_grad
    assert conv.bias.requires_grad
    assert torch.equal(conv.bias, bias)
    assert model[2].weight.requires_grad
    plain = nn.Sequential(nn.Conv2d(3, 12, 2))
    assert torch.equal(whiten_input_(plain, images()).weight, conv.weight[:12])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("has_bias", [True, False])
def test_puts_a_convolution_in_front(has_bias: bool, stride: int) -> None:
    first = nn.Conv2d(3, 64, 3, stride, padding=1, bias=has_bias)
    model = nn.Sequential(nn.Sequential(first, nn.ReLU())).to(memory_format=torch.channels_last).eval()
    rng = torch.random.get_rng_state()
    conv = whiten_input_(model, images(), prepend=True)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert list(model.state_dict()) == ["0.0.whitening.weight", "0.0.mix.weight"] + ["0.0.mix.bias"] * has_bias
    whitening, mix = model[0][0]
    assert conv is whitening
    assert (whitening.out_channels, whitening.stride, whitening.padding) == (27, (stride, stride), (1, 1))
    assert torch.equal(whitening.weight, whitening_filters(images(), (3, 3)))
    assert not whitening.weight.requires_grad
    assert mix.weight.requires_grad
    assert mix.weight.is_contiguous(memory_format=torch.channels_last)
    assert 0.9 * 27**-0.5 < mix.weight.abs().max() <= 27**-0.5
    assert not mix.training
    assert model(images()).shape == (200, 64, 12 // stride, 12 // stride)
    before = mix.weight.clone()
    assert whiten_input_(model, images(), prepend=True) is whitening  # again: the same again
    assert torch.equal(mix.weight, before)
    assert len(model[0][0]) == 2


def test_does_not_put_one_in_front_of_one_that_fits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 2))
    assert whiten_input_(model, images(), prepend=True) is model[0]


@pytest.mark.parametrize(
    ("model", "x", "error", "word"),
    [
        (nn.Linear(3, 3), images(), ConfigError, "no Conv2d"),
        (nn.Conv2d(3, 16, 2), images(), ConfigError, "needs 12, or 24.*prepend=True"),
        (nn.Conv2d(4, 16, 2, groups=4), images(channels=4), ConfigError, "groups=4.*Put a plain one before it"),
        (nn.Conv2d(3, 12, 2, dilation=2), images(), ConfigError, r"dilation=\(2, 2\)"),
        (nn.Conv2d(1, 4, 2), images(), DataError, "3 channels"),
        (nn.Conv2d(3, 12, 2), images(side=1), DataError, "at least"),
        (nn.Conv2d(3, 12, 2), images() * torch.nan, DataError, "NaN"),
        (nn.Conv2d(3, 12, 2), images().byte(), DataError, "uint8.*Normalize"),
        (nn.Conv2d(3, 12, 2), images()[0], DataError, "shape"),
    ],
)
def test_refuses_and_changes_nothing(model: nn.Module, x: torch.Tensor, error: type[Exception], word: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=word):
        whiten_input_(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("epsilon", "x", "error", "word"),
    [
        (-1e-3, images(), ConfigError, "epsilon is -0.001"),
        (float("nan"), images(), ConfigError, "epsilon is nan"),
        (0.0, torch.zeros(4, 3, 8, 8), DataError, "no bound; give an epsilon above 0"),
    ],
)
def test_filters_without_bound_are_refused(epsilon: float, x: torch.Tensor, error: type[Exception], word: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 2))
    before = model[0].weight.detach().clone()
    with pytest.raises(error, match=word):
        whiten_input_(model, x, epsilon=epsilon)
    assert torch.equal(model[0].weight, before)


def test_a_lazy_convolution_has_to_run_first() -> None:
    with pytest.raises(ConfigError, match="lazy; run the model once"):
        whiten_input_(nn.Sequential(nn.LazyConv2d(12, 2)), images())


def test_a_stride_skips_patches_and_keeps_their_filters() -> None:
    x = images().double()
    model = nn.Sequential(nn.Conv2d(3, 12, 2, stride=2, bias=False)).double()
    conv = whiten_input_(model, x, epsilon=0.0)
    whole = nn.functional.conv2d(x, whitening_filters(x, (2, 2), epsilon=0.0).double())
    torch.testing.assert_close(conv(x), whole[..., ::2, ::2])


def test_a_bare_convolution_cannot_be_replaced() -> None:
    with pytest.raises(ConfigError, match="put it in a Sequential"):
        whiten_input_(nn.Conv2d(3, 16, 2), images(), prepend=True)
    with pytest.raises(DataError, match="3 channels"):
        whiten_input_(nn.Sequential(nn.Conv2d(1, 16, 2)), images(), prepend=True)
