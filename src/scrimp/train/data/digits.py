"""The handwritten digits that come with scikit-learn."""

import hashlib
import importlib.metadata
from dataclasses import dataclass

import numpy as np

from scrimp.errors import MissingDependencyError
from scrimp.train.data.holdout import HoldOut
from scrimp.train.data.images import decode_split
from scrimp.train.data.labels import Labels
from scrimp.train.data.source import Arrays, Facts, Progress, optional_module

_LARGEST_VALUE = 16


@dataclass(frozen=True)
class DigitsSource:
    """1,797 gray images of 8x8 pixels with values 0 to 16, scaled so that 16 becomes 255 (rounded)."""

    form = "scikit-learn"
    location = "sklearn.datasets.load_digits"

    def fingerprint(self, progress: Progress) -> str:  # noqa: ARG002
        """A checksum of scikit-learn's version, so that digits from the cache need no (slow) import of it."""
        try:
            version = importlib.metadata.version("scikit-learn")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingDependencyError(
                'the digits come with the package scikit-learn: pip install "scrimp[train]"'
            ) from error
        return hashlib.blake2b(f"scikit-learn {version} digits".encode(), digest_size=16).hexdigest()

    def decode(self, arrays: Arrays, hold_out: HoldOut, progress: Progress) -> Facts:
        """Scale all images."""
        digits = optional_module("sklearn.datasets", "train", "reading the digits").load_digits()
        images = np.rint(digits.images * (255 / _LARGEST_VALUE)).astype(np.uint8)[..., None]
        labels = Labels(digits.target.astype(np.int64), None, tuple(str(name) for name in digits.target_names))
        return decode_split(labels, [images], self.location, arrays=arrays, hold_out=hold_out, progress=progress)
