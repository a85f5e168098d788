import pickle

import numpy as np
import pytest

from scrimp.errors import DataError

PLANES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def records(planes, *labels):
    columns = [np.array(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, planes.reshape(len(planes), -1)], axis=1).tobytes()


@pytest.fixture
def ten(tmp_path):
    folder = tmp_path / "cifar"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(records(PLANES[:4], [3, 1, 4, 1]))
    (folder / "data_batch_2.bin").write_bytes(records(PLANES[4:8], [5, 9, 2, 6]))
    (folder / "test_batch.bin").write_bytes(records(PLANES[8:], [5, 3, 5, 8]))
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return folder


def refused(load, path, *parts):
    with pytest.raises(DataError) as caught:
        load(path)
    for part in parts:
        assert part in str(caught.value)


def test_ten_classes(ten, load):
    dataset = load(ten)
    assert np.array_equal(dataset.train.inputs.numpy(), PLANES[:8])
    assert np.array_equal(dataset.test.inputs.numpy(), PLANES[8:])
    assert dataset.train.targets.tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert dataset.test.targets.tolist() == [5, 3, 5, 8]
    assert dataset.classes == tuple(TEN)
    assert dataset.source == f"CIFAR binary, {ten}"


def test_a_hundred_classes_use_the_fine_label(tmp_path, load):
    folder = tmp_path / "set" / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(records(PLANES[:8], [1] * 8, [99, 1, 2, 3, 4, 5, 6, 7]))
    (folder / "test.bin").write_bytes(records(PLANES[8:], [1] * 4, [0, 1, 2, 98]))
    dataset = load(tmp_path / "set")
    assert dataset.train.targets.tolist() == [99, 1, 2, 3, 4, 5, 6, 7]
    assert np.array_equal(dataset.test.inputs.numpy(), PLANES[8:])
    assert dataset.num_classes == 100


def test_without_names_and_test_file(ten, load):
    (ten / "batches.meta.txt").unlink()
    (ten / "test_batch.bin").unlink()
    dataset = load(ten)
    assert dataset.classes == tuple("0123456789")
    assert dataset.test.targets.tolist() == [1]
    assert "held out" in dataset.source


def test_a_label_out_of_range_is_named(ten, load):
    (ten / "data_batch_2.bin").write_bytes(records(PLANES[4:8], [5, 9, 10, 6]))
    refused(load, ten, "label 10", "data_batch_2.bin", "row 2", "0 to 9")


def test_a_single_class_is_refused(ten, load):
    for part in (1, 2):
        (ten / f"data_batch_{part}.bin").write_bytes(records(PLANES[:4], [3] * 4))
    refused(load, ten, str(ten), "of one class, 'cat'", "two classes are the least")


def test_a_truncated_file_is_named(ten, load):
    (ten / "test_batch.bin").write_bytes(records(PLANES[8:], [5, 3, 5, 8])[:-1])
    refused(load, ten, "test_batch.bin", "12291 bytes", "records of 3073 bytes")
    (ten / "test_batch.bin").write_bytes(b"")
    refused(load, ten, "test_batch.bin", "0 bytes")


def test_wrong_number_of_names(ten, load):
    (ten / "batches.meta.txt").write_text("cat dog")
    refused(load, ten, "names 2 classes")


class Bomb:
    """Unpickling one of these fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("names", [["data_batch_1", "test_batch"], ["train", "test", "meta"]])
@pytest.mark.parametrize("below", [".", "cifar-10-batches-py"])
def test_pickles_are_refused_unread(tmp_path, load, names, below):
    folder = tmp_path / "set" / below
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(load, tmp_path / "set", "pickle", "*.bin", "parquet")
