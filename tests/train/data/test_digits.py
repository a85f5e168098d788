import subprocess
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits

from scrimp.train.data import describe


def test_all_digits_are_there_once_and_scaled(load):
    dataset = load("digits")
    assert describe(dataset).startswith("digits: 1,438 train + 359 test images of 1x8x8, 10 classes (scikit-learn, ")
    digits = load_digits()
    twin = sorted(
        (label, *[round(value * 255 / 16) for value in image.ravel()])
        for image, label in zip(digits.images, digits.target.tolist(), strict=True)
    )
    loaded = sorted(
        (label, *image)
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.inputs.reshape(-1, 64).tolist(), split.targets.tolist(), strict=True)
    )
    assert loaded == twin


def test_the_split_is_stratified_and_always_the_same(load):
    dataset = load("digits")
    counts = np.bincount(load_digits().target)
    assert dataset.test.targets.bincount().tolist() == [round(count * 0.2) for count in counts]
    # Known answer: the split must not move with a version of this library or another.
    assert dataset.test.targets[:12].tolist() == [7, 4, 5, 0, 7, 8, 9, 0, 1, 3, 5, 4]
    assert int(dataset.test.inputs.to(torch.int64).sum()) == 1802062


def test_digits_from_the_cache_do_not_import_scikit_learn(load, tmp_path):
    load("digits")
    script = (
        "import sys; from pathlib import Path; from scrimp.train.data import load_dataset;"
        f"load_dataset('digits', cache_dir=Path({str(tmp_path / 'cache')!r})); sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
