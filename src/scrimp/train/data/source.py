"""What the kinds of sources have in common."""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from scrimp.errors import DataError, MissingDependencyError
from scrimp.train.data.holdout import HoldOut

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done), often enough for a progress bar."""


@runtime_checkable
class Arrays(Protocol):
    """Where decoded arrays go: they are announced with their full shape and filled from the front, block by block."""

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Announce an array."""

    def append(self, name: str, block: np.ndarray) -> None:
        """Add rows to an announced array."""


@dataclass(frozen=True)
class Facts:
    """What decoding finds out beside the arrays ``train_inputs``, ``train_targets``, ``test_inputs``, ``test_targets``.

    ``note`` says for people how the split came about, where the source has none of its own; otherwise it is empty.
    """

    kind: Literal["images", "text"]
    classes: tuple[str, ...]
    note: str


@runtime_checkable
class Source(Protocol):
    """Data in one of the forms that scrimp reads, found but not yet decoded."""

    @property
    def form(self) -> str:
        """The form in a word or two, for people."""

    @property
    def location(self) -> str:
        """Where it is, for people."""

    def fingerprint(self, progress: Progress) -> str:
        """A checksum of everything that the decoded arrays depend on."""

    def decode(self, arrays: Arrays, hold_out: HoldOut, progress: Progress) -> Facts:
        """Check and decode all of it into ``arrays``. Raises DataError that names the file and row at fault."""


def fingerprint_files(form: str, root: Path, files: Sequence[Path], progress: Progress) -> str:
    """blake2b of the form, and of each file's name below ``root``, size and content. About a second per GiB.

    Raises DataError when a file cannot be read.
    """
    digest = hashlib.blake2b(form.encode(), digest_size=16)
    try:
        sizes = [file.stat().st_size for file in files]
        done = 0
        for file, size in zip(files, sizes, strict=True):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "blake2b").hexdigest()
            name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
            digest.update(f"\n{len(name)} {name} {size} {content}".encode())
            done += size
            progress(done, sum(sizes), "checking source files")
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package. Raises MissingDependencyError that names the extra which brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f'{purpose} needs the package {name.partition(".")[0]!r}: pip install "scrimp[{extra}]"'
        ) from error
