"""Views with known answers, and training on both branches."""

import pytest
import torch
from torch import nn

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.steps import identity, mirror, predict_with_views, shift, shifted_views, two_branch


def images(height=5, width=4, dtype=torch.float32, memory_format=torch.contiguous_format):
    x = torch.randn(3, 2, height, width, generator=generator(0, "images"))
    return (x * 50).to(dtype).contiguous(memory_format=memory_format)


class Flat(nn.Module):
    """The pixels, so that an average of views can be read off; notes the mode that it is called in."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(2)
        self.modes = []

    def forward(self, x):
        self.modes.append((self.dropout.training, self.norm.training))
        return self.dropout(x.flatten(1))


def test_image_and_mirror_image_by_default():
    x = images()
    torch.testing.assert_close(predict_with_views(Flat(), x), (x + x.flip(3)).flatten(1) / 2)


def test_weights_are_shares():
    x = images()
    result = predict_with_views(Flat(), x, [identity, mirror], weights=[3, 1])
    torch.testing.assert_close(result, (0.75 * x + 0.25 * x.flip(3)).flatten(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (-1, 2), (0, -1), (3, 0), (0, 0)])
def test_shift_equals_the_slow_way(rows, columns, dtype, memory_format):
    x = images(dtype=dtype, memory_format=memory_format)
    height, width = x.shape[2:]
    moved = shift(rows, columns)(x)

    def inside(place, size):
        return size - 1 - abs(size - 1 - abs(place))  # reflected at the border pixels

    for y in range(height):
        for z in range(width):
            assert torch.equal(moved[:, :, y, z], x[:, :, inside(y - rows, height), inside(z - columns, width)])
    assert moved.is_contiguous(memory_format=memory_format)


def test_six_views():
    views, weights = shifted_views(1)
    x = images()
    assert sum(weights) == 1
    up, down = shift(-1, -1), shift(1, 1)
    straight, mirrored = (x + x.flip(3)) / 4, (up(x) + down(x) + up(x.flip(3)) + down(x.flip(3))) / 8
    # mirroring after a shift is the shift the other way after mirroring; both diagonals are not the same set
    expected = straight + (up(x) + down(x) + up(x).flip(3) + down(x).flip(3)) / 8
    torch.testing.assert_close(predict_with_views(Flat(), x, views, weights), expected.flatten(1))
    assert not torch.allclose(expected, straight + mirrored)


def test_every_module_is_in_its_own_mode_afterwards():
    model = Flat().train()
    model.norm.eval()
    predict_with_views(model, images())
    assert model.modes == [(False, False)] * 2
    assert model.training
    assert model.dropout.training
    assert not model.norm.training

    class Fails(Flat):
        def forward(self, x):
            raise RuntimeError("no")

    failing = Fails()
    with pytest.raises(RuntimeError, match="no"):
        predict_with_views(failing, images())
    assert failing.training


def test_no_gradients_and_float32_at_least():
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).bfloat16()
    result = predict_with_views(model, images(dtype=torch.bfloat16))
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert predict_with_views(model.double(), images().double()).dtype == torch.float64


def test_other_dtypes_of_images_and_works_in_autocast():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predict_with_views(model, images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("views", "weights"), [([], None), ([mirror], [1, 2]), ([mirror], [-1]), ([mirror, identity], [0, 0])]
)
def test_bad_weights_are_refused(views, weights):
    with pytest.raises(ConfigError, match="one non-negative weight per view"):
        predict_with_views(Flat(), images(), views, weights)


def test_bad_views_are_refused():
    with pytest.raises(DataError, match=r"5 x 4 pixels into 4 x 5; on images that are not square use views that keep"):
        predict_with_views(Flat(), images(), [lambda x: x.rot90(1, (2, 3))])
    assert predict_with_views(Flat(), images(4, 4), [lambda x: x.rot90(1, (2, 3))]).shape == (3, 32)
    with pytest.raises(DataError, match="same number of images"):
        predict_with_views(Flat(), images(), [lambda x: x[:2]])
    with pytest.raises(DataError, match="returned a list, not a tensor"):
        predict_with_views(Flat(), images(), [lambda x: [x]])
    with pytest.raises(DataError, match=r"mirror works on images .*; got \(2, 5, 4\)"):
        predict_with_views(Flat(), images()[0])
    with pytest.raises(DataError, match="the model returns a tuple"):
        predict_with_views(Two(), images())
    with pytest.raises(ConfigError, match="positive number"):
        shifted_views(0)
    with pytest.raises(DataError, match="cannot be reflected"):
        shift(4, 0)(images())


class Two(nn.Module):
    def forward(self, x):
        return x, x


def net():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_two_branches_in_evaluation_are_the_two_views():
    model = net().eval()
    torch.testing.assert_close(two_branch(model, images()), predict_with_views(model, images()))


def test_two_branches_train_on_both():
    x = images().double()
    model = net().double()
    out = two_branch(model, x)
    out.square().sum().backward()
    gradient, statistics = model[0].weight.grad.clone(), model[1].running_mean.clone()
    twin = net().double()
    twin.load_state_dict({**model.state_dict(), "1.running_mean": torch.zeros(4), "1.running_var": torch.ones(4)})
    both = twin(torch.stack([x, x.flip(3)], 1).flatten(0, 1)).view(3, 2, 4).mean(1)
    both.square().sum().backward()
    torch.testing.assert_close(out, both)
    torch.testing.assert_close(gradient, twin[0].weight.grad)
    torch.testing.assert_close(statistics, twin[1].running_mean)
    mirrored = two_branch(model.eval(), x.flip(3))
    torch.testing.assert_close(mirrored, two_branch(model, x))  # mirroring the input changes nothing


def test_two_branches_of_what_is_no_image():
    with pytest.raises(DataError, match="works on images"):
        two_branch(net(), torch.zeros(2, 3))
    with pytest.raises(DataError, match="two_branch: the model returns a tuple"):
        two_branch(Two(), images())
