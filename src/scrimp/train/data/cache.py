"""Decoded data on disk: one folder per source and split, memory-mapped when it is used again.

A folder holds the arrays as .npy and ``content.json`` with their shapes, types and checksums. It is filled under
another name and appears by one rename, so that nobody sees it half-written, and every use checks the checksums, so that
a damaged one is made again. Processes that race make it twice and keep the first.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scrimp.train.data.moments import Moments, channel_moments
from scrimp.train.data.source import Arrays, Facts

FORMAT_VERSION = 1
_ABANDONED_AFTER_SECONDS = 24 * 3600

logger = logging.getLogger(__name__)

Build = Callable[[Arrays], Facts]


@dataclass(frozen=True, eq=False)
class Content:
    """Decoded data: facts, arrays by name, moments of the train images, and a checksum over all arrays."""

    facts: Facts
    arrays: Mapping[str, np.ndarray]
    moments: Moments | None
    checksum: str


class CacheDamagedError(Exception):
    """What is in the cache is not what was put there."""


class CacheUnusableError(Exception):
    """The cache cannot be written."""


def cached(cache_dir: Path | None, key: str, build: Build) -> Content:
    """The content for ``key`` from the cache, or built and put there; built in memory where the cache is not writable.

    ``cache_dir`` None means $SCRIMP_CACHE, else $XDG_CACHE_HOME/scrimp, else ~/.cache/scrimp.
    Cost: reads every byte once to check it (about a second per GiB).
    """
    try:
        root = (default_cache_dir() if cache_dir is None else cache_dir) / "data"
        return _from_disk(root / key) or _build_on_disk(root, key, build)
    except CacheUnusableError as error:
        logger.warning("%s; data is decoded in memory, for this run only (another place: SCRIMP_CACHE)", error)
    arrays = _InMemory()
    facts = build(arrays)
    return _content(facts, arrays.arrays, None)


def default_cache_dir() -> Path:
    """Where decoded data is kept unless the caller says otherwise."""
    if os.environ.get("SCRIMP_CACHE"):
        return Path(os.environ["SCRIMP_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "scrimp"
    try:
        return Path.home() / ".cache" / "scrimp"
    except RuntimeError as error:
        raise CacheUnusableError(f"there is no home directory for the cache ({error})") from error


class _InMemory:
    """Arrays in memory."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._filled: dict[str, int] = {}

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.arrays[name] = np.empty(shape, dtype)
        self._filled[name] = 0

    def append(self, name: str, block: np.ndarray) -> None:
        start = self._filled[name]
        self.arrays[name][start : start + len(block)] = block
        self._filled[name] = start + len(block)


class _OnDisk:
    """Arrays as .npy files, written from the front: a full disk is an error here, where a memory map would crash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        header = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        with _writing(self._folder):
            self._files[name] = (self._folder / f"{name}.npy").open("wb")
            np.lib.format.write_array_header_1_0(self._files[name], header)

    def append(self, name: str, block: np.ndarray) -> None:
        with _writing(self._folder):
            self._files[name].write(np.ascontiguousarray(block).data)

    def close(self) -> None:
        with _writing(self._folder), contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)


def _build_on_disk(root: Path, key: str, build: Build) -> Content:
    folder = root / f".{key}-{uuid.uuid4().hex}"
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder.mkdir()
    try:
        with contextlib.closing(_OnDisk(folder)) as arrays:
            facts = build(arrays)
        content = _content(facts, {file.stem: _mapped(file) for file in folder.glob("*.npy")}, None)
        with _writing(root):
            (folder / "content.json").write_text(json.dumps(_record(content), indent=1), encoding="utf-8")
        return _publish(folder, root / key, content)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, final: Path, content: Content) -> Content:
    """Give the folder its final name; another process that was first wins, unless what it left is damaged."""
    for _ in range(10):
        with contextlib.suppress(OSError):
            folder.rename(final)
            return content
        found = _from_disk(final)
        if found is not None:
            return found
        damaged = folder.with_name(f"{folder.name}-damaged")
        with contextlib.suppress(OSError):
            final.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    raise CacheUnusableError(f"{final} cannot be put in place in the cache")


def _from_disk(folder: Path) -> Content | None:
    """The checked content of a folder, or None if it is not there or damaged (which is logged)."""
    try:
        record = json.loads((folder / "content.json").read_text(encoding="utf-8"))
        if record["format_version"] != FORMAT_VERSION:
            raise CacheDamagedError(f"it has format version {record['format_version']}")
        arrays = {name: _mapped(folder / f"{name}.npy") for name in record["arrays"]}
        facts = Facts(record["kind"], tuple(record["classes"]), record["note"])
        moments = Moments(tuple(record["mean"]), tuple(record["std"])) if record["mean"] else None
        content = _content(facts, arrays, moments)
        if _record(content) != record:
            raise CacheDamagedError("a shape, a type or a checksum differs")
    except FileNotFoundError:
        if folder.exists():
            logger.warning("cached data in %s is incomplete and is made again", folder)
        return None
    except (CacheDamagedError, OSError, ValueError, KeyError, TypeError, EOFError) as error:
        logger.warning("cached data in %s is damaged and is made again: %s", folder, error)
        return None
    return content


def _mapped(file: Path) -> np.ndarray:
    """The array in a .npy file. Copy-on-write: torch wants memory that may be written. No pickle is ever read."""
    return np.lib.format.open_memmap(file, mode="c")


def _content(facts: Facts, arrays: Mapping[str, np.ndarray], moments: Moments | None) -> Content:
    if moments is None and facts.kind == "images":
        moments = channel_moments(arrays["train_inputs"])
    digest = hashlib.blake2b(json.dumps([facts.kind, facts.classes]).encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.shape} {array.dtype.str} ".encode())
        digest.update(array.data)
    return Content(facts, arrays, moments, digest.hexdigest())


def _record(content: Content) -> dict[str, object]:
    """What ``content.json`` says."""
    shapes = {name: [array.dtype.str, *array.shape] for name, array in sorted(content.arrays.items())}
    moments = content.moments or Moments((), ())
    record: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        **{name: _as_json(value) for name, value in dataclasses.asdict(content.facts).items()},
        "mean": list(moments.mean),
        "std": list(moments.std),
        "arrays": shapes,
        "checksum": content.checksum,
    }
    return {**record, "checksum_of_this_file": hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()}


def _as_json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheUnusableError(f"the cache cannot be written in {place} ({error.strerror or error})") from error


def _remove_abandoned(root: Path) -> None:
    """Remove what killed processes left half-written long ago."""
    for folder in root.glob(".*-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
