"""The real data sets, where they are: counts, labels, moments and pixels that are known."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from scrimp.train.data import load_dataset


def folder(name):
    root = os.environ.get("SCRIMP_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"SCRIMP_DATA names no folder with {name!r}")
    return Path(root) / name


def digest(tensor):
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def test_fashion_mnist(tmp_path):
    folder("fashion-mnist")
    dataset = load_dataset("fashion-mnist", cache_dir=tmp_path)
    assert dataset.train.inputs.shape == (60_000, 1, 28, 28)
    assert dataset.test.inputs.shape == (10_000, 1, 28, 28)
    assert dataset.train.targets.bincount().tolist() == [6_000] * 10
    assert dataset.test.targets.bincount().tolist() == [1_000] * 10
    assert dataset.train.targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert dataset.mean == pytest.approx([0.2860], abs=5e-5)
    assert dataset.std == pytest.approx([0.3530], abs=5e-5)
    assert dataset.train.inputs.is_contiguous(memory_format=torch.channels_last)


def check_cifar10_test_images(split):
    assert split.inputs.shape == (10_000, 3, 32, 32)
    assert split.targets.bincount().tolist() == [1_000] * 10
    assert split.targets[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert split.inputs[0, :, 0, 0].tolist() == [158, 112, 49]  # the first pixel of the well-known cat


def test_cifar10_test_images(tmp_path):
    (tmp_path / "set").mkdir()
    (file,) = folder("cifar10").glob("test-*.parquet")
    for name in ("train", "test"):  # the test images in both places, to be quick
        (tmp_path / "set" / f"{name}-0.parquet").symlink_to(file)
    dataset = load_dataset(tmp_path / "set", cache_dir=tmp_path / "cache")
    check_cifar10_test_images(dataset.test)
    check_cifar10_test_images(dataset.train)
    assert digest(dataset.test.inputs[:16]) == digest(dataset.train.inputs[:16]) == "3ae38143731e43ac"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert dataset.classes == tuple(names)


@pytest.mark.slow
def test_cifar10(tmp_path):
    folder("cifar10")
    dataset = load_dataset("cifar10", cache_dir=tmp_path)
    check_cifar10_test_images(dataset.test)
    assert dataset.train.targets.bincount().tolist() == [5_000] * 10
    assert dataset.train.targets[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert dataset.train.inputs[0, :, 0, 0].tolist() == [59, 62, 63]
    assert dataset.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert dataset.std == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)


def test_tiny_shakespeare(tmp_path):
    folder("text")
    dataset = load_dataset("text", cache_dir=tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.vocab_size) == (1_003_854, 111_540, 65)
    assert dataset.decode(dataset.train.inputs[:14]) == "First Citizen:"
