"""What loading returns: two splits, and what a model has to know of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from scrimp.errors import DataError
from scrimp.train.data.moments import Moments, channel_moments


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set.

    ``inputs`` are uint8 images of shape (N, C, H, W) in channels_last memory, or the tokens of a text, of shape
    (num_tokens,) and an integer type. ``targets`` are int64 labels of shape (N,), or None for a text. What comes from
    the cache is memory-mapped, copy-on-write: reading costs page cache and no heap, writing never reaches the file.
    """

    inputs: Tensor
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked data set: images with labels, or one text as characters.

    Args:
        name: what the user called it.
        kind: "images" or "text".
        train: the split to learn from.
        test: the split to judge by.
        classes: names of the classes, or the characters of the vocabulary; a label or token is a position in it.
        source: where it came from and how it was split, for people.
        checksum: blake2b of the decoded splits; equal for equal data, wherever it is stored.
        moments: mean and standard deviation per channel where they are known already.
    """

    name: str
    kind: Literal["images", "text"]
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    checksum: str
    moments: Moments | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes. Raises DataError for a text."""
        self._require("images", "classes")
        return len(self.classes)

    @property
    def vocab_size(self) -> int:
        """Number of different tokens. Raises DataError for images."""
        self._require("text", "vocabulary")
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width. Raises DataError for a text."""
        self._require("images", "image shape")
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the train split, pixels scaled to [0, 1]. Raises DataError for a text."""
        return self._moments.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation (of the population) of each channel over the train split, pixels scaled to [0, 1]."""
        return self._moments.std

    @cached_property
    def _moments(self) -> Moments:
        self._require("images", "channel mean")
        return self.moments or channel_moments(self.train.inputs.permute(0, 2, 3, 1).numpy())

    def encode(self, text: str) -> Integer[Tensor, " tokens"]:
        """Tokens of a text, int64. Raises DataError for a character outside the vocabulary, and for images."""
        self._require("text", "vocabulary")
        try:
            return torch.tensor([self._token_of[character] for character in text], dtype=torch.int64)
        except KeyError as error:
            position = text.index(error.args[0])
            raise DataError(
                f"character {error.args[0]!r} at position {position} does not occur in the text of {self.name!r}; "
                f"its vocabulary has {self.vocab_size} characters: {''.join(self.classes)!r}"
            ) from None

    def decode(self, tokens: Integer[Tensor, " tokens"]) -> str:
        """The text of some tokens. Raises DataError for a token outside the vocabulary, and for images."""
        self._require("text", "vocabulary")
        numbers = tokens.tolist()
        for position, number in enumerate(numbers):
            if not 0 <= number < len(self.classes):
                raise DataError(f"token {number} at position {position}: tokens run from 0 to {len(self.classes) - 1}")
        return "".join(self.classes[number] for number in numbers)

    @cached_property
    def _token_of(self) -> dict[str, int]:
        return {character: token for token, character in enumerate(self.classes)}

    def _require(self, kind: str, what: str) -> None:
        if self.kind != kind:
            raise DataError(f"data set {self.name!r} is of kind {self.kind!r} and has no {what}")


def describe(dataset: Dataset) -> str:
    """One line for people: name, sizes, shape, classes, where it came from."""
    sizes = f"{len(dataset.train):,} train + {len(dataset.test):,} test"
    if dataset.kind == "text":
        what = f"characters, {dataset.vocab_size} in the vocabulary"
    else:
        what = f"images of {'x'.join(map(str, dataset.image_shape))}, {dataset.num_classes} classes"
    return f"{dataset.name}: {sizes} {what} ({dataset.source})"
