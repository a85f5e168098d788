import numpy as np
import pytest
from tests.reference.idx_files import write_idx

from scrimp.errors import DataError

GRAY = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2] * 4, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    write_idx(tmp_path / "set", "train", GRAY[:9], LABELS[:9])
    write_idx(tmp_path / "set", "t10k", GRAY[9:], LABELS[9:])
    return tmp_path / "set"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dot", ["-", "."])
def test_pixels_and_labels_are_those_of_the_files(tmp_path, load, packed, dot):
    write_idx(tmp_path / "set", "train", GRAY[:9], LABELS[:9], packed=packed, dot=dot)
    write_idx(tmp_path / "set", "t10k", GRAY[9:], LABELS[9:], packed=packed, dot=dot)
    dataset = load(tmp_path / "set")
    assert np.array_equal(dataset.train.inputs[:, 0].numpy(), GRAY[:9])
    assert np.array_equal(dataset.test.inputs[:, 0].numpy(), GRAY[9:])
    assert dataset.train.targets.tolist() == LABELS[:9].tolist()
    assert dataset.test.targets.tolist() == LABELS[9:].tolist()
    assert dataset.classes == ("0", "1", "2")
    assert dataset.source.startswith("IDX, ")


@pytest.mark.parametrize("packed", [True, False])
def test_names_may_be_in_capitals(tmp_path, load, packed):
    write_idx(tmp_path / "set", "train", GRAY, LABELS, packed=packed)
    checksum = load(tmp_path / "set").checksum
    for file in (tmp_path / "set").iterdir():
        file.rename(file.with_name(file.name.upper()))
    assert load(tmp_path / "set").checksum == checksum


def test_a_plain_file_wins_over_its_gz_in_capitals(folder, load):
    checksum = load(folder).checksum
    for file in list(folder.iterdir()):
        file.with_name(f"{file.name.upper()}.GZ").write_bytes(b"never read")
    assert load(folder).checksum == checksum


def test_a_single_class_is_refused(tmp_path, load):
    write_idx(tmp_path / "set", "train", GRAY, np.full_like(LABELS, 7))
    refused(load, tmp_path / "set", str(tmp_path / "set"), "of one class, '7'", "two classes are the least")


def test_more_images_than_one_block(tmp_path, load):
    many = np.random.default_rng(1).integers(0, 256, (2500, 3, 2), dtype=np.uint8)
    labels = (np.arange(2500) % 10).astype(np.uint8)
    write_idx(tmp_path / "set", "train", many, labels, packed=True)
    write_idx(tmp_path / "set", "test", many[:10], labels[:10])
    assert np.array_equal(load(tmp_path / "set").train.inputs[:, 0].numpy(), many)


def test_without_test_files_a_part_is_held_out(tmp_path, load):
    write_idx(tmp_path / "set", "train", GRAY, LABELS)
    dataset = load(tmp_path / "set")
    assert (len(dataset.train), len(dataset.test)) == (9, 3)


def refused(load, path, *parts):
    with pytest.raises(DataError) as caught:
        load(path)
    for part in parts:
        assert part in str(caught.value)


def test_a_truncated_file_is_named(folder, load):
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    refused(load, folder, str(file), "truncated")


def test_a_truncated_or_broken_gz_is_named(tmp_path, load):
    write_idx(tmp_path / "set", "train", GRAY, LABELS, packed=True)
    file = tmp_path / "set" / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    for broken in (content[:-20], b"no gzip at all", content[:30] + b"\0" * 20 + content[50:]):
        file.write_bytes(broken)
        refused(load, tmp_path / "set", str(file))


def test_a_file_that_goes_on_is_named(folder, load):
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes() + b"\0")
    refused(load, folder, str(file), "goes on after the last row")


def test_another_kind_of_file_is_named(folder, load):
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + b"\0" * 100)
    refused(load, folder, "train-images-idx3-ubyte", "not an IDX file", "00000d03")


def test_counts_must_agree(tmp_path, load):
    write_idx(tmp_path / "set", "train", GRAY, LABELS[:11])
    refused(load, tmp_path / "set", "12 images", "11 labels")


def test_sizes_of_train_and_test_must_agree(folder, load):
    write_idx(folder, "t10k", GRAY[9:].transpose(0, 2, 1).copy(), LABELS[9:])
    refused(load, folder, "t10k-images", "(5, 4)", "(4, 5)")


def test_empty_images_and_splits_are_refused(tmp_path, load, folder):
    write_idx(tmp_path / "flat", "train", GRAY[:, :0], LABELS)
    refused(load, tmp_path / "flat", "(0, 5)")
    write_idx(folder, "t10k", GRAY[:0], LABELS[:0])
    refused(load, folder, "the test split", "is empty")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("train-images-idx3-ubyte", ["train images"]), ("t10k-labels-idx1-ubyte", ["test labels"])],
)
def test_a_missing_partner_is_named(folder, load, name, parts):
    (folder / name).unlink()
    refused(load, folder, "is missing", *parts)


def test_test_files_alone_are_refused(tmp_path, load):
    write_idx(tmp_path / "set", "t10k", GRAY, LABELS)
    refused(load, tmp_path / "set", "test split only")
