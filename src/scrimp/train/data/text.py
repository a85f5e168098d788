"""A text file as characters."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scrimp.errors import DataError
from scrimp.train.data.holdout import HoldOut
from scrimp.train.data.source import Arrays, Facts, Progress, fingerprint_files

_NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class TextSource:
    """A UTF-8 text: tokens are its characters, numbered in the order of their code points.

    The last tenth is the test split. Tokens are uint8 for a vocabulary of up to 256 characters, int32 beyond.
    """

    file: Path
    form = "text file"

    @property
    def location(self) -> str:
        """The file."""
        return str(self.file)

    def fingerprint(self, progress: Progress) -> str:
        """A checksum of the file."""
        return fingerprint_files(self.form, self.file.parent, (self.file,), progress)

    def decode(self, arrays: Arrays, hold_out: HoldOut, progress: Progress) -> Facts:  # noqa: ARG002
        """Decode the text. Memory: about ten bytes per character for a moment."""
        raw = self.file.read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        num_train = len(codes) * 9 // 10
        if num_train == 0:
            raise DataError(
                f"{self.file} has {len(codes)} characters: too short to hold out its last tenth as test split"
            )
        present = np.zeros(_NUM_CODE_POINTS, dtype=bool)
        present[codes] = True
        vocabulary = np.flatnonzero(present)
        token_of = np.zeros(_NUM_CODE_POINTS, dtype=np.uint8 if len(vocabulary) <= 256 else np.int32)
        token_of[vocabulary] = np.arange(len(vocabulary))
        for name, part in (("train_inputs", codes[:num_train]), ("test_inputs", codes[num_train:])):
            arrays.begin(name, part.shape, token_of.dtype)
            arrays.append(name, token_of[part])
        progress(len(codes), len(codes), "reading text")
        return Facts(kind="text", classes=tuple(map(chr, vocabulary)), note="last tenth held out as test split")


def find_text(path: Path) -> TextSource | None:
    """A ``.txt`` file (or ``.TXT``), or the only one in a folder; None if there is none.

    Raises DataError when there are several.
    """
    if path.is_file():
        return TextSource(path) if path.suffix.lower() == ".txt" else None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".txt" and not file.name.startswith("."))
    if len(files) > 1:
        raise DataError(f"{path} holds several text files ({', '.join(f.name for f in files)}); give one of them")
    return TextSource(files[0]) if files else None
