"""Every transform against its slow twin, and what holds for all of them."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import loader as twin

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.steps import (
    AlternatingFlip,
    BatchTransform,
    Cutout,
    Normalize,
    Padding,
    RandomCrop,
    RandomFlip,
    RandomWindow,
)

MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.uint8, torch.float32, torch.bfloat16]
ON_IMAGES = [RandomCrop(2), RandomCrop(2, "constant", fill=7.0), RandomFlip(), AlternatingFlip(), Cutout(3, fill=9.0)]


def images(batch=9, channels=3, height=6, width=5, dtype=torch.uint8, memory_format=torch.contiguous_format):
    pixels = torch.randint(
        0, 256, (batch, channels, height, width), generator=generator(0, "images"), dtype=torch.uint8
    )
    return pixels.to(dtype).contiguous(memory_format=memory_format)


def draw(transform, num_visits=9, epoch=0, seed=0):
    return transform.draw(torch.arange(num_visits), epoch, generator(seed, "draws", epoch))


def by_the_twin(transform, inputs, drawn):
    match transform:
        case RandomCrop(mode=Padding.REFLECT):
            return twin.crop(inputs, drawn, transform.padding)
        case RandomCrop():
            return twin.crop(inputs, drawn, transform.padding, fill=transform.fill)
        case Cutout():
            return twin.cutout(inputs, drawn, transform.size, transform.fill)
        case _:
            return twin.flip(inputs, drawn)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("transform", ON_IMAGES, ids=repr)
def test_equals_the_twin_and_keeps_dtype_layout_and_input(transform, channels, dtype, memory_format):
    inputs = images(channels=channels, dtype=dtype, memory_format=memory_format)
    before, drawn = inputs.clone(), draw(transform)
    result = transform.apply(inputs, drawn)
    assert result.dtype == dtype
    assert torch.equal(result, by_the_twin(transform, inputs, drawn))
    assert torch.equal(inputs, before)
    assert result.is_contiguous(memory_format=memory_format)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(MEMORY_FORMATS))
def test_crops_of_any_shape(data, memory_format):
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    padding = data.draw(st.integers(1, 8))
    inputs = images(3, 2, height, width, memory_format=memory_format)
    constant = RandomCrop(padding, Padding.CONSTANT, fill=1.0)
    drawn = draw(constant, 3, seed=data.draw(st.integers(0, 99)))
    assert torch.equal(constant.apply(inputs, drawn), twin.crop(inputs, drawn, padding, fill=1.0))
    reflecting = RandomCrop(padding)
    if padding < min(height, width):
        assert torch.equal(reflecting.apply(inputs, drawn), twin.crop(inputs, drawn, padding))
    else:
        with pytest.raises(DataError, match="cannot be reflected"):
            reflecting.apply(inputs, drawn)


@pytest.mark.parametrize("transform", [*ON_IMAGES, RandomWindow(4), Normalize((0.5,) * 3, (0.2,) * 3)], ids=repr)
def test_a_part_of_a_batch_is_that_part_of_the_result(transform):
    assert isinstance(transform, BatchTransform)
    inputs = images() if not isinstance(transform, RandomWindow) else images()[:, 0, :, 0]
    drawn = draw(transform)
    whole = transform.apply(inputs, drawn)
    parts = [transform.apply(inputs[r], None if drawn is None else drawn[r]) for r in (slice(4), slice(4, 9), slice(0))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("transform", [RandomCrop(2), RandomFlip(), Cutout(3), RandomWindow(4)], ids=repr)
def test_draws_come_from_the_generator_alone(transform):
    assert torch.equal(draw(transform), draw(transform))
    assert not torch.equal(draw(transform, 50), draw(transform, 50, epoch=1))
    assert not torch.equal(draw(transform, 50), draw(transform, 50, seed=1))


def assert_uniform(values, num_values, num_draws):
    """Chi-square with five standard deviations of room."""
    counts = torch.bincount(values.reshape(-1), minlength=num_values).double()
    assert len(counts) == num_values
    expected = num_draws / num_values
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < num_values - 1 + 5 * math.sqrt(2 * (num_values - 1))


def test_crops_are_uniform_over_all_shifts():
    drawn = draw(RandomCrop(2), 20_000)
    assert_uniform(drawn[:, 0] * 5 + drawn[:, 1], 25, 20_000)


def test_squares_and_windows_are_uniform_over_all_places():
    white = torch.full((20_000, 1, 6, 5), 255, dtype=torch.uint8)
    cut = Cutout(3).apply(white, draw(Cutout(3), 20_000))
    assert ((cut == 0).sum((1, 2, 3)) == 9).all()
    assert_uniform(
        (cut == 0).flatten(1).int().argmax(1) // 5 * 3 + (cut == 0).flatten(1).int().argmax(1) % 5, 12, 20_000
    )
    rows = torch.arange(10).expand(20_000, 10)
    assert_uniform(RandomWindow(4).apply(rows, draw(RandomWindow(4), 20_000))[:, 0], 7, 20_000)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flips_have_their_probability(p):
    mean = draw(RandomFlip(p), 20_000).double().mean()
    assert abs(mean - p) <= 5 * math.sqrt(p * (1 - p) / 20_000)


def test_a_choice_stays_in_range_at_both_ends():
    rows = torch.arange(5).expand(2, 5)
    drawn = torch.tensor([0, 2**31 - 1])
    assert RandomWindow(3).apply(rows, drawn).tolist() == [[0, 1, 2], [2, 3, 4]]
    assert RandomWindow(5).apply(rows, drawn).tolist() == [[0, 1, 2, 3, 4]] * 2


# Alternating flips.


def test_flips_alternate_whatever_the_order_of_visits():
    transform, order = AlternatingFlip(seed=3), torch.randperm(500, generator=generator(0))
    unused = torch.Generator()
    masks = [transform.draw(torch.arange(500), epoch, unused) for epoch in range(4)]
    assert torch.equal(masks[0], ~masks[1])
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert torch.equal(transform.draw(order, 1, unused), masks[1][order])
    assert masks[0].tolist() == [twin.flip_coin(3, sample, 0) for sample in range(500)]


def test_alternating_flips_start_with_fair_and_independent_coins():
    unused = torch.Generator()
    coins = torch.stack([AlternatingFlip(seed).draw(torch.arange(10_000), 0, unused) for seed in range(6)]).double()
    assert (coins.mean(1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(10_000)
    assert (torch.corrcoef(coins) - torch.eye(6)).abs().max() < 0.05
    assert abs(torch.corrcoef(torch.stack([coins[0, 1:], coins[0, :-1]]))[0, 1]) < 0.05


# Normalize.


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("is_byte", [True, False])
def test_normalize_is_the_formula(channels_last, memory_format, dtype, is_byte):
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.25)
    inputs = images(memory_format=memory_format)
    mean_column, std_column = torch.tensor([mean, std], dtype=torch.float64).view(2, 3, 1, 1)
    exact = (inputs.double() / 255 - mean_column) / std_column
    result = Normalize(mean, std, dtype, channels_last).apply(inputs if is_byte else inputs.float() / 255)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    rounding = exact.abs() * (2**-8 if dtype == torch.bfloat16 else 0)
    assert ((result.double() - exact).abs() <= rounding + 2e-6).all()


def test_normalized_data_have_mean_0_and_deviation_1():
    inputs = images(200)
    scaled = inputs.double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3), correction=0)
    result = Normalize(mean.tolist(), std.tolist()).apply(inputs).double()
    assert result.mean((0, 2, 3)).abs().max() < 1e-6
    assert (result.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_normalize_has_nothing_to_draw_and_leaves_its_input():
    transform, inputs = Normalize((0.5,) * 3, (0.5,) * 3, channels_last=False), images(dtype=torch.float32)
    before = inputs.clone()
    assert draw(transform) is None
    transform.apply(inputs)
    assert torch.equal(inputs, before)


def test_normalize_under_inference_mode_first_does_not_spoil_training():
    transform, inputs = Normalize((0.123,), (0.456,)), images(channels=1)
    with torch.inference_mode():
        transform.apply(inputs)
    weight = torch.ones((), requires_grad=True)
    (transform.apply(inputs) * weight).sum().backward()
    assert weight.grad is not None


# Windows.


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_windows_equal_the_twin(dtype):
    rows = torch.randint(0, 100, (12, 9), generator=generator(1)).to(dtype)
    drawn = draw(RandomWindow(4), 12)
    result = RandomWindow(4).apply(rows, drawn)
    assert result.dtype == torch.int64
    assert torch.equal(result, twin.windows(rows, drawn, 4))


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "padding is 0"),
        (lambda: RandomCrop(1.5), "padding is 1.5"),
        (lambda: RandomCrop(True), "padding is True"),
        (lambda: RandomCrop(1, "wrap"), "mode is 'wrap'; it has to be one of 'reflect', 'constant'"),
        (lambda: RandomFlip(1.1), "p is 1.1"),
        (lambda: RandomFlip(float("nan")), "p is nan"),
        (lambda: AlternatingFlip("a"), "seed is 'a'"),
        (lambda: Cutout(0), "size is 0"),
        (lambda: RandomWindow(0), "length is 0"),
        (lambda: Normalize((0.5,), (0.5, 0.5)), "1 means and 2 stds"),
        (lambda: Normalize((), ()), "0 means"),
        (lambda: Normalize((0.5,), (0.0,)), "above 0"),
        (lambda: Normalize((0.5,), (float("nan"),)), "above 0"),
        (lambda: Normalize((0.5,), (0.5,), torch.uint8), "has to be a floating type"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "inputs", "message"),
    [
        (RandomCrop(1), torch.zeros(2, 8), r"\(2, 8\)"),
        (RandomFlip(), torch.zeros(2, 8), r"\(2, 8\)"),
        (AlternatingFlip(), torch.zeros(2, 8, 8), r"\(2, 8, 8\)"),
        (Cutout(4), torch.zeros(2, 3, 8, 3), r"at least 4 pixels each way; got \(2, 3, 8, 3\)"),
        (Normalize((0.5,), (0.5,)), torch.zeros(2, 3, 4, 4), r"1 means .* got \(2, 3, 4, 4\)"),
        (Normalize((0.5,), (0.5,)), torch.zeros(2, 1, 4, 4, dtype=torch.int64), "got torch.int64"),
        (RandomWindow(5), torch.zeros(2, 4, dtype=torch.int64), r"at least 5 integer tokens; got \(2, 4\)"),
        (RandomWindow(2), torch.zeros(2, 4), "torch.float32"),
    ],
)
def test_inputs_that_do_not_fit(transform, inputs, message):
    with pytest.raises(DataError, match=message):
        transform.apply(inputs, draw(transform, 2))


def test_transforms_are_frozen_values():
    for transform in [*ON_IMAGES, RandomWindow(4), Normalize([0.5], [0.5])]:
        assert transform == dataclasses.replace(transform)
        hash(transform)
        with pytest.raises(dataclasses.FrozenInstanceError):
            transform.seed = 1
