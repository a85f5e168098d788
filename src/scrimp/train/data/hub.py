"""Parquet files from the Hugging Face Hub."""

import re
from pathlib import Path

from scrimp.errors import DataError, DataNotFoundError
from scrimp.train.data.source import optional_module

PREFIX = "hf://"
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<folder>[\w./-]+?))?/?")


def fetch(address: str) -> Path:
    """Download the parquet files of ``hf://OWNER/NAME`` or ``hf://OWNER/NAME/FOLDER``, or find them in the Hub's cache.

    Raises DataError for an address of another form, MissingDependencyError without the package ``huggingface_hub``,
    and DataNotFoundError when there is no network, no such data set, or no parquet file in it.
    """
    match = _NAME.fullmatch(address)
    if match is None:
        raise DataError(f"{address!r} is no address on the Hub; write hf://OWNER/NAME or hf://OWNER/NAME/FOLDER")
    hub = optional_module("huggingface_hub", "hub", f"fetching {address}")
    repository, folder = match["repository"], match["folder"]
    pattern = f"{folder}/*.parquet" if folder else "*.parquet"
    try:
        root = Path(hub.snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern]))
    except Exception as error:  # errors of its HTTP client too, which differs between versions
        first_line = (str(error).splitlines() or [""])[0]
        raise DataNotFoundError(
            f"{address} could not be fetched ({type(error).__name__}: {first_line}); check the name and the network, "
            "or download its parquet files elsewhere and give their folder as --data PATH"
        ) from error
    found = root / folder if folder else root
    if not any(found.rglob("*.parquet")):
        raise DataNotFoundError(f"{address} holds no parquet files; only data sets stored as parquet can be read")
    return found
