import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp.errors import DataError
from scrimp.train.data import Dataset, Split, describe
from scrimp.train.data.moments import channel_moments


def images(num_train=6, num_test=2):
    inputs = torch.arange((num_train + num_test) * 24, dtype=torch.uint8).reshape(-1, 2, 3, 4)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(num_train + num_test) % 2
    return Dataset(
        name="made up",
        kind="images",
        train=Split(inputs[:num_train], targets[:num_train]),
        test=Split(inputs[num_train:], targets[num_train:]),
        classes=("cat", "dog"),
        source="a test",
        checksum="0",
    )


def text():
    tokens = torch.tensor([0, 1, 1, 0], dtype=torch.uint8)
    return Dataset("words", "text", Split(tokens, None), Split(tokens, None), ("a", "b"), "a test", "0")


def test_a_data_set_made_by_hand_knows_its_facts():
    dataset = images()
    assert dataset.num_classes == 2
    assert dataset.image_shape == (2, 3, 4)
    assert (len(dataset.train), len(dataset.test)) == (6, 2)
    scaled = dataset.train.inputs.to(torch.float64) / 255
    assert dataset.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), rel=1e-14)
    assert dataset.std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-12)
    assert describe(dataset) == "made up: 6 train + 2 test images of 2x3x4, 2 classes (a test)"


@pytest.mark.parametrize(
    "fact", [lambda d: d.vocab_size, lambda d: d.encode("a"), lambda d: d.decode(torch.tensor([0]))]
)
def test_images_have_no_vocabulary(fact):
    with pytest.raises(DataError, match="'made up' is of kind 'images' and has no vocabulary"):
        fact(images())


@pytest.mark.parametrize("fact", ["num_classes", "image_shape", "mean", "std"])
def test_a_text_has_no_image_facts(fact):
    with pytest.raises(DataError, match="'words' is of kind 'text' and has no"):
        getattr(text(), fact)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1300), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([1, 2, 256]))
def test_moments_equal_those_of_a_float_copy(num_images, channels, seed, high):
    pixels = np.random.default_rng(seed).integers(0, high, (num_images, 2, 3, channels), dtype=np.uint8)
    moments = channel_moments(pixels)
    scaled = pixels.astype(np.float64) / 255
    assert moments.mean == pytest.approx(scaled.mean(axis=(0, 1, 2)).tolist(), rel=1e-13)
    assert moments.std == pytest.approx(scaled.std(axis=(0, 1, 2)).tolist(), rel=1e-11, abs=1e-15)
    assert high != 1 or set(moments.std) == {0.0}
