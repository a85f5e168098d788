"""A test split for data that has none: stratified, and the same in every run."""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64


@dataclass(frozen=True)
class HoldOut:
    """Which fraction of each class to hold out for testing, and the seed of the choice."""

    fraction: float
    seed: int

    def choose(self, labels: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """True for the rows to hold out: of each class the rounded fraction, at least one and never all.

        A class with a single row keeps it for training. Rows are ordered by a hash of seed and row number, so the
        choice depends on no random generator and stays the same with every version of every library.
        """
        order = np.array([_hash(self.seed, row) for row in range(len(labels))], dtype=np.uint64)
        chosen = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            num_held_out = min(max(round(len(rows) * self.fraction), 1), len(rows) - 1)
            chosen[rows[np.argsort(order[rows], kind="stable")[:num_held_out]]] = True
        return chosen


def _hash(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest(), "big")
