"""From what the user wrote to a source: a name, a path, or an address on the Hub.

A known name always means the known data set, so that a recipe works in any directory; a folder of that name is given as
a path: ``./digits`` or ``digits/``. Of any other string, a path that exists wins over a folder in $SCRIMP_DATA.
"""

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


def find_source(data: str | Path) -> tuple[str, Source]:
    """The name and the source of ``data``; a ``Path`` is never taken for a name.

    ``hf://`` addresses go to the Hub. ``digits`` is scikit-learn's; the other known names, and any name that is no path
    here, are folders in $SCRIMP_DATA.
    Raises DataNotFoundError with what to do when there is nothing, DataError when what is there is no data set.
    """
    if isinstance(data, str) and data.startswith(hub.PREFIX):
        return data.removeprefix(hub.PREFIX), source_at(hub.fetch(data))
    if data == "digits":
        return "digits", DigitsSource()
    path = Path(data).expanduser()
    if data and data not in KNOWN_NAMES and path.exists():
        return path.resolve().name or str(data), source_at(path)
    if isinstance(data, Path) or not data or Path(data).name != data or data.startswith("."):
        raise DataNotFoundError(f"no data at {str(data)!r}: there is no such path")
    folder = os.environ.get("SCRIMP_DATA")
    if folder and (Path(folder) / data).exists():
        return data, source_at(Path(folder) / data)
    raise DataNotFoundError(_nothing_there(data, folder))


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
    from_here = f" (what is called {name!r} here is ./{name})" if Path(name).exists() else ""
    from_hub = f", or with a network --data {_ON_THE_HUB[name]}" if name in _ON_THE_HUB else ""
    return (
        f"the data {name!r} was not found: {looked}; give its folder or file as --data PATH{from_here}, or set "
        f"SCRIMP_DATA to a folder that holds it as {name}/{from_hub}"
    )
