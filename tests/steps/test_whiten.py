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


@pytest.mark.parametrize(
    ("model", "x", "error", "word"),
    [
        (nn.Linear(3, 3), images(), ConfigError, "no Conv2d"),
        (nn.Conv2d(3, 16, 2), images(), ConfigError, "needs 12, or 24"),
        (nn.Conv2d(4, 16, 2, groups=4), images(channels=4), ConfigError, "groups"),
        (nn.Conv2d(1, 4, 2), images(), DataError, "3 channels"),
        (nn.Conv2d(3, 12, 2), images(side=1), DataError, "at least"),
        (nn.Conv2d(3, 12, 2), images() * torch.nan, DataError, "NaN"),
    ],
)
def test_refuses_and_changes_nothing(model: nn.Module, x: torch.Tensor, error: type[Exception], word: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=word):
        whiten_input_(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
