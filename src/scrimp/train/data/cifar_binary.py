"""CIFAR-10 and CIFAR-100 in their authors' binary layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from scrimp.errors import DataError
from scrimp.train.data.holdout import HoldOut
from scrimp.train.data.images import Block, decode_split
from scrimp.train.data.labels import Labels, check_label_range
from scrimp.train.data.source import Arrays, Facts, Progress, fingerprint_files

_PIXELS = 3 * 32 * 32
_IMAGES_PER_BLOCK = 1024
_USUAL_FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")


@dataclass(frozen=True)
class CifarBinarySource:
    """Files of records; a record is its label bytes, the one that counts last, then red, green and blue planes."""

    root: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    names_file: Path | None
    num_label_bytes: int
    num_classes: int
    form = "CIFAR binary"

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    def fingerprint(self, progress: Progress) -> str:
        """A checksum of the files."""
        names = () if self.names_file is None else (self.names_file,)
        return fingerprint_files(self.form, self.root, (*self.train, *self.test, *names), progress)

    def decode(self, arrays: Arrays, hold_out: HoldOut, progress: Progress) -> Facts:
        """Decode all images, about a thousand at a time; the files are memory-mapped."""
        train, test = self._labels(self.train), self._labels(self.test) if self.test else None
        labels = Labels(train, test, self._names())
        return decode_split(labels, self._images(), self.location, arrays=arrays, hold_out=hold_out, progress=progress)

    def _records(self, file: Path) -> UInt8[np.ndarray, "records bytes"]:
        record_bytes = self.num_label_bytes + _PIXELS
        file_bytes = file.stat().st_size
        if file_bytes == 0 or file_bytes % record_bytes:
            raise DataError(
                f"{file} has {file_bytes} bytes, which is no whole number of records of {record_bytes} bytes; "
                "fetch it again"
            )
        return np.memmap(file, np.uint8, mode="r", shape=(file_bytes // record_bytes, record_bytes))

    def _labels(self, files: tuple[Path, ...]) -> np.ndarray:
        parts = []
        for file in files:
            parts.append(self._records(file)[:, self.num_label_bytes - 1].astype(np.int64))
            check_label_range(parts[-1], self.num_classes, str(file))
        return np.concatenate(parts)

    def _images(self) -> Iterator[Block]:
        for file in (*self.train, *self.test):
            records = self._records(file)
            for start in range(0, len(records), _IMAGES_PER_BLOCK):
                planes = records[start : start + _IMAGES_PER_BLOCK, self.num_label_bytes :]
                yield planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    def _names(self) -> tuple[str, ...]:
        if self.names_file is None:
            return tuple(str(label) for label in range(self.num_classes))
        names = tuple(self.names_file.read_text(encoding="utf-8").split())
        if len(names) != self.num_classes:
            raise DataError(f"{self.names_file} names {len(names)} classes; there are {self.num_classes}")
        return names


def find_cifar_binary(folder: Path) -> CifarBinarySource | None:
    """The binary files in a folder, or in its usual sub-folder; None if there are none.

    Raises DataError for the layout of the same name for Python, which is made of pickles.
    """
    for root in (folder, *(folder / name for name in _USUAL_FOLDERS)):
        if not root.is_dir():
            continue
        batches = tuple(sorted(root.glob("data_batch_*.bin")))
        if batches:
            return CifarBinarySource(
                root, batches, _existing(root, "test_batch.bin"), _names_file(root, "batches.meta.txt"), 1, 10
            )
        if _existing(root, "train.bin"):
            train, test = _existing(root, "train.bin"), _existing(root, "test.bin")
            return CifarBinarySource(root, train, test, _names_file(root, "fine_label_names.txt"), 2, 100)
    for root in (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python"):
        if _existing(root, "data_batch_1") or (_existing(root, "train") and _existing(root, "meta")):
            raise DataError(
                f"{root} holds CIFAR as Python pickles, and reading a pickle can run any code that is in it, so it is "
                "not read; use the binary version of the same data (*.bin), or its parquet files from the Hub"
            )
    return None


def _existing(root: Path, name: str) -> tuple[Path, ...]:
    return (root / name,) if (root / name).is_file() else ()


def _names_file(root: Path, name: str) -> Path | None:
    return root / name if (root / name).is_file() else None
