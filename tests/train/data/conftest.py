"""Loading with a cache of the test's own, and tiny images to load."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scrimp.train.data import Dataset, load_dataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test forgets, the user's cache stays untouched."""
    monkeypatch.setenv("SCRIMP_CACHE", str(tmp_path / "cache-by-environment"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    return partial(load_dataset, cache_dir=tmp_path / "cache")


@pytest.fixture
def pixels() -> np.ndarray:
    """Twelve RGB images of 5 wide and 4 high."""
    return np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def encode(image: np.ndarray, form: str = "PNG") -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, form)
        return stream.getvalue()

    return encode
