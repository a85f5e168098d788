"""IDX files, plain or gzipped, as MNIST and Fashion-MNIST are published."""

import contextlib
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from scrimp.errors import DataError
from scrimp.train.data.holdout import HoldOut
from scrimp.train.data.images import Block, decode_split
from scrimp.train.data.labels import Labels, check_label_range
from scrimp.train.data.source import Arrays, Facts, Progress, fingerprint_files

_NAME = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")  # in small letters
_UBYTE = 0x08
_IMAGES_PER_BLOCK = 1024


@dataclass(frozen=True)
class _Pair:
    images: Path
    labels: Path


@dataclass(frozen=True)
class IdxSource:
    """A pair of image and label files for train, and perhaps one for test."""

    root: Path
    train: _Pair
    test: _Pair | None
    form = "IDX"

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def _pairs(self) -> tuple[_Pair, ...]:
        return (self.train,) if self.test is None else (self.train, self.test)

    def fingerprint(self, progress: Progress) -> str:
        """A checksum of the files."""
        files = [file for pair in self._pairs for file in (pair.images, pair.labels)]
        return fingerprint_files(self.form, self.root, files, progress)

    def decode(self, arrays: Arrays, hold_out: HoldOut, progress: Progress) -> Facts:
        """Decode all images, about a thousand at a time."""
        sizes = {pair.images: _image_size(pair.images) for pair in self._pairs}
        for file, size in sizes.items():
            if size != sizes[self.train.images]:
                raise DataError(
                    f"images in {file} are {size} (high, wide), but in {self.train.images} they are "
                    f"{sizes[self.train.images]}; train and test must agree"
                )
        labels = [_labels(pair) for pair in self._pairs]
        blocks = (block for pair in self._pairs for block in _images(pair.images))
        checked = Labels(labels[0], labels[1] if self.test else None, None)
        return decode_split(checked, blocks, self.location, arrays=arrays, hold_out=hold_out, progress=progress)


def find_idx(folder: Path) -> IdxSource | None:
    """The IDX files in a folder, or None. Raises DataError when images lack their labels or the other way round."""
    found: dict[tuple[str, str], Path] = {}
    for name, file in sorted(((file.name.lower(), file) for file in folder.iterdir()), reverse=True):
        match = _NAME.fullmatch(name)  # the order makes a plain file win over its .gz
        if match:
            split = "train" if match[1] == "train" else "test"
            found[split, match[2]] = file
    if not found:
        return None
    train, test = (_pair(folder, found, split) for split in ("train", "test"))
    if train is None:
        raise DataError(
            f"{folder} has IDX files of a test split only; train-images-idx3-ubyte and its labels are missing"
        )
    return IdxSource(folder, train, test)


def _pair(folder: Path, found: dict[tuple[str, str], Path], split: str) -> _Pair | None:
    images, labels = found.get((split, "images")), found.get((split, "labels"))
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = "images" if images is None else "labels"
        raise DataError(f"{folder}: {(images or labels)} is there, but the {split} {missing} file beside it is missing")
    return _Pair(images, labels)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.GzipFile(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch it again") from error


def _header(stream: BufferedIOBase, file: Path, num_dimensions: int) -> tuple[int, ...]:
    """The sizes of all axes; the layout is 0, 0, type, number of axes, then each size as a big-endian uint32."""
    head = stream.read(4)
    if head != bytes([0, 0, _UBYTE, num_dimensions]):
        raise DataError(f"{file} is not an IDX file of bytes with {num_dimensions} axes: it starts with {head.hex()!r}")
    sizes = np.frombuffer(_exactly(stream, file, 4 * num_dimensions), dtype=">u4")
    return tuple(int(size) for size in sizes)


def _exactly(stream: BufferedIOBase, file: Path, num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) != num_bytes:
        raise DataError(f"{file} is truncated: {num_bytes} bytes expected, {len(content)} there; fetch it again")
    return content


def _image_size(file: Path) -> tuple[int, ...]:
    with _opened(file) as stream:
        size = _header(stream, file, 3)[1:]
    if 0 in size:
        raise DataError(f"images in {file} are {size} (high, wide): there is nothing in them")
    return size


def _labels(pair: _Pair) -> Int64[np.ndarray, " rows"]:
    with _opened(pair.labels) as stream:
        (count,) = _header(stream, pair.labels, 1)
        labels = np.frombuffer(_exactly(stream, pair.labels, count), np.uint8).astype(np.int64)
        _at_end(stream, pair.labels)
    with _opened(pair.images) as stream:
        num_images = _header(stream, pair.images, 3)[0]
    if num_images != count:
        raise DataError(f"{pair.images} has {num_images} images, but {pair.labels} has {count} labels")
    check_label_range(labels, None, str(pair.labels))
    return labels


def _images(file: Path) -> Iterator[Block]:
    with _opened(file) as stream:
        count, height, width = _header(stream, file, 3)
        for start in range(0, count, _IMAGES_PER_BLOCK):
            shape = (min(_IMAGES_PER_BLOCK, count - start), height, width, 1)
            yield np.frombuffer(_exactly(stream, file, math.prod(shape)), np.uint8).reshape(shape)
        _at_end(stream, file)


def _at_end(stream: BufferedIOBase, file: Path) -> None:
    if stream.read(1):
        raise DataError(f"{file} goes on after the last row that its header announces; fetch it again")
