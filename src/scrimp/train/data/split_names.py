"""Telling from a file's or folder's name which split it belongs to."""

import re
from pathlib import PurePath

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
"""In the order of preference, where a source has several."""

_WORD = re.compile(r"(?<![a-z])(" + "|".join((*TRAIN_NAMES, *TEST_NAMES)) + r")(?![a-z])")


def split_of(path: PurePath) -> str | None:
    """The split that a relative path names: in the file's name, else in the nearest folder's; None if nowhere."""
    for part in (path.stem, *(folder.name for folder in path.parents)):
        found = _WORD.search(part.lower())
        if found:
            return found.group(1)
    return None


def without_split(folder: PurePath) -> PurePath:
    """The folder, without a last component that only names a split."""
    return folder.parent if folder.name.lower() in (*TRAIN_NAMES, *TEST_NAMES) else folder
