"""IDX files as MNIST's page describes them, written the obvious way."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(
    folder: Path, split: str, images: np.ndarray, labels: np.ndarray, *, packed: bool = False, dot: str = "-"
) -> None:
    """Write the image and the label file of one split."""
    folder.mkdir(exist_ok=True)
    for name, array in ((f"{split}-images{dot}idx3-ubyte", images), (f"{split}-labels{dot}idx1-ubyte", labels)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
