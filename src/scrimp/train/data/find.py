"""From what the user wrote to a source: a path, a name, or an address on the Hub."""

import difflib
import os
from pathlib import Path

from scrimp.errors import DataError, DataNotFoundError
from scrimp.train.data import hub
from scrimp.train.data.cifar_binary import find_cifar_binary
from scrimp.train.data.class_folders import find_class_folders
from scrimp.train.data.digits import DigitsSource
from scrimp.train.data.idx import find_idx
from scrimp.train.data.parquet import find_parquet
from scrimp.train.data.source import Source
from scrimp.train.data.text import find_text

KNOWN_NAMES = ("digits", "fashion-mnist", "cifar10", "text")
"""Data sets that recipes know by name; all but ``digits`` are looked up in the folder that SCRIMP_DATA names."""

_ON_THE_HUB = {"fashion-mnist": "hf://zalando-datasets/fashion_mnist", "cifar10": "hf://uoft-cs/cifar10"}
_FORMS = (
    "parquet files with an image and a label column, IDX files, CIFAR's binary files, a folder per class with images, "
    "or a .txt file"
)


def find_source(data: str) -> tuple[str, Source]:
    """The name and the source of ``data``.

    ``hf://`` addresses go to the Hub; a path that exists wins over a name; a name is a folder in $SCRIMP_DATA.
    Raises DataNotFoundError with what to do when there is nothing, DataError when what is there is no data set.
    """
    if data.startswith(hub.PREFIX):
        return data.removeprefix(hub.PREFIX), source_at(hub.fetch(data))
    path = Path(data).expanduser()
    if data and path.exists():
        return path.resolve().name or data, source_at(path)
    if data == "digits":
        return data, DigitsSource()
    is_name = bool(data) and Path(data).name == data and not data.startswith(".")
    folder = os.environ.get("SCRIMP_DATA")
    if is_name and folder and (Path(folder) / data).exists():
        return data, source_at(Path(folder) / data)
    raise DataNotFoundError(_nothing_there(data, folder) if is_name else f"no data at {data!r}: there is no such path")


def source_at(path: Path) -> Source:
    """The source that a file or folder holds. Raises DataError when it holds none."""
    if path.is_file():
        source: Source | None = find_parquet(path) or find_text(path)
        if source is None:
            raise DataError(f"{path} is no data that scrimp reads; give {_FORMS}")
        return source
    try:
        entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        if not entries:
            raise DataError(f"the folder {path} is empty; give {_FORMS}")
        for find in (find_idx, find_cifar_binary, find_parquet, find_class_folders, find_text):
            source = find(path)
            if source is not None:
                return source
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    raise DataError(f"{path} holds no data that scrimp reads (found {shown}); give {_FORMS}")


def _nothing_there(name: str, folder: str | None) -> str:
    looked = "SCRIMP_DATA is not set" if not folder else f"SCRIMP_DATA is {folder!r}, which has no {name!r} in it"
    if name not in KNOWN_NAMES:
        close = difflib.get_close_matches(name, KNOWN_NAMES, n=1)
        hint = f"did you mean {close[0]!r}? Names are" if close else "names are"
        return f"no data called {name!r}: there is no such path, and {looked}; {hint} {', '.join(KNOWN_NAMES)}"
    from_hub = f", or with a network --data {_ON_THE_HUB[name]}" if name in _ON_THE_HUB else ""
    return (
        f"the data {name!r} was not found: {looked}; give its folder or file as --data PATH, or set SCRIMP_DATA to a "
        f"folder that holds it as {name}/{from_hub}"
    )
