"""Labels, checked."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from scrimp.errors import DataError


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a source in its row order; ``test`` is None without a test split, ``names`` without class names."""

    train: Int64[np.ndarray, " train_rows"]
    test: Int64[np.ndarray, " test_rows"] | None
    names: tuple[str, ...] | None

    def class_names(self, location: str) -> tuple[str, ...]:
        """The names of all classes, checked against the labels.

        Without names every label from 0 to the largest in the train split has to occur there; numbers are the names.
        Raises DataError for an empty split, a single class, a gap, and a test label that training never sees.
        """
        for what, labels in (("train", self.train), ("test", self.test)):
            if labels is not None and len(labels) == 0:
                raise DataError(f"the {what} split of {location} is empty; give it rows, or take its file away")
        present = np.unique(self.train)
        if len(present) == 1:
            only = int(present[0])
            raise DataError(
                f"all images in the train split of {location} are of one class, "
                f"{(str(only) if self.names is None else self.names[only])!r}; two classes are the least"
            )
        if self.names is not None:
            return self.names
        largest = int(present[-1])
        if len(present) != largest + 1:
            missing = int(np.flatnonzero(present != np.arange(len(present)))[0])
            raise DataError(
                f"labels in the train split of {location} run up to {largest}, but label {missing} never occurs; "
                "number the classes from 0 without gaps"
            )
        if self.test is not None and int(self.test.max()) > largest:
            row = int(np.flatnonzero(self.test > largest)[0])
            raise DataError(
                f"label {int(self.test[row])} occurs in the test split of {location} (row {row}, counting from 0), but "
                f"labels in the train split run only up to {largest}; train and test must share their classes"
            )
        return tuple(str(label) for label in range(largest + 1))


def check_label_range(labels: Int64[np.ndarray, " rows"], num_classes: int | None, place: str) -> None:
    """Raise DataError that names ``place``, row and value of the first label below 0, or not below ``num_classes``."""
    wrong = labels < 0
    if num_classes is not None:
        wrong |= labels >= num_classes
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1} for its {num_classes} classes"
        raise DataError(f"label {int(labels[row])} in {place}, row {row} (counting from 0): labels must be {allowed}")
