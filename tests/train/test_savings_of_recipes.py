"""All savings of each recipe in one run, on a few samples of data of its kind."""

import numpy as np
import pytest
from tests.reference.idx_files import write_idx

from scrimp.train.load import load_run, unpack_run
from scrimp.train.recipes import find_recipe
from scrimp.train.run import run
from scrimp.train.variants import savings_of, with_savings

DRAW = np.random.default_rng(0)


def small_images(folder):
    for split, size in (("train", 120), ("t10k", 20)):
        labels = np.arange(size, dtype=np.uint8) % 10
        write_idx(folder, split, DRAW.integers(0, 256, (size, 28, 28), dtype=np.uint8), labels)


def colour_images(folder):
    for name, size in (("data_batch_1", 120), ("test_batch", 20)):
        planes = DRAW.integers(0, 256, (size, 3 * 32 * 32), dtype=np.uint8)
        labels = (np.arange(size, dtype=np.uint8) % 10)[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, planes], axis=1).tobytes())


def words(folder):
    (folder / "words.txt").write_text("to train or not to train, that is the question\n" * 200)


KINDS = {
    "fashion-mnist": (small_images, {"model_args": {"width": 4}}),
    "cifar10-small": (colour_images, {"model_args": {"width": 4}}),
    "cifar10": (colour_images, {"model_args": {"width": 4}}),
    "text": (words, {"model_args": {"depth": 1, "width": 16, "num_heads": 2}, "context_length": 16}),
}


@pytest.mark.parametrize("recipe", KINDS)
def test_they_go_together(tmp_path, recipe):
    write, changes = KINDS[recipe]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    config = with_savings(find_recipe(recipe), savings_of(recipe).names())
    changes = {**changes, "model_args": {**config.model_args, **changes["model_args"]}}
    quick = config.replace(**changes, data=str(folder), num_epochs=4, batch_size=24, threads=1)
    done = run(quick, out=tmp_path / "run")
    summary = done.summary
    assert summary.sample_visits < summary.sample_visits_full
    assert summary.model_packed_bytes == (tmp_path / "run" / "model.scrimp").stat().st_size
    assert summary.model_packed_bytes < summary.model_float32_bytes / 3
    loaded, unpacked = load_run(tmp_path / "run"), unpack_run(tmp_path / "run" / "model.scrimp")
    assert {name for name, _ in loaded.model.named_parameters()} == {
        name for name, _ in unpacked.model.named_parameters()
    }
