import io
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from scrimp.errors import DataError

NAMES = ["cat", "dog", "eel"]
LABELS = [0, 1, 2] * 4


@pytest.fixture
def write(encode):
    def write(
        path, images, labels, *, column="img", label="label", names=NAMES, struct=True, form="PNG", row_group=None
    ):
        encoded = [image if isinstance(image, bytes) or image is None else encode(image, form) for image in images]
        values = [{"bytes": e, "path": None} for e in encoded] if struct else encoded
        table = pa.table({column: values, label: labels if isinstance(labels, pa.Array) else pa.array(labels)})
        if names:
            features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group)

    return write


def images_of(split):
    return split.inputs.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
@pytest.mark.parametrize(
    "layout", ["{}-00000-of-00001.parquet", "data/{}-00000.parquet", "plain/{}/0000.parquet", "{}.parquet"]
)
def test_the_hub_layouts_give_the_same_pixels_labels_and_names(tmp_path, load, write, encode, pixels, form, layout):
    if form == "WEBP":  # lossless only when asked for
        pixels[:] = 17
    write(tmp_path / "set" / layout.format("train"), pixels[:9], LABELS[:9], form=form)
    write(tmp_path / "set" / layout.format("test"), pixels[9:], LABELS[9:], form=form)
    dataset = load(tmp_path / "set")
    assert np.array_equal(images_of(dataset.train), pixels[:9])
    assert np.array_equal(images_of(dataset.test), pixels[9:])
    assert dataset.train.targets.tolist() == LABELS[:9]
    assert dataset.test.targets.tolist() == LABELS[9:]
    assert dataset.train.inputs.is_contiguous(memory_format=torch.channels_last)
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.targets.dtype == torch.int64
    assert dataset.classes == tuple(NAMES)
    assert dataset.image_shape == (3, 4, 5)
    assert dataset.source == f"parquet, {tmp_path / 'set'}"


def test_shards_are_read_in_order_and_across_row_groups(tmp_path, load, write, pixels):
    many = np.concatenate([pixels] * 50)
    labels = (LABELS * 50)[: len(many)]
    write(tmp_path / "set/train-00000-of-00002.parquet", many[:350], labels[:350], row_group=97)
    write(tmp_path / "set/train-00001-of-00002.parquet", many[350:], labels[350:])
    write(tmp_path / "set/test-00000-of-00001.parquet", pixels[:3], LABELS[:3])
    seen = []
    dataset = load(tmp_path / "set", progress=lambda done, total, what: seen.append((done, total, what)))
    assert np.array_equal(images_of(dataset.train), many)
    assert dataset.train.targets.tolist() == labels
    decoding = [(done, total) for done, total, what in seen if what == "decoding images"]
    assert decoding == [(256, 603), (512, 603), (603, 603)]
    checking = [(done, total) for done, total, what in seen if what == "checking source files"]
    assert len(checking) == 3
    assert checking[-1][0] == checking[-1][1] == sum(f.stat().st_size for f in (tmp_path / "set").iterdir())


@pytest.mark.parametrize("column", ["image", "anything"])
@pytest.mark.parametrize("label", ["labels", "fine_label", "anything_else"])
@pytest.mark.parametrize("struct", [True, False])
def test_columns_are_found_by_name_or_by_being_the_only_one(tmp_path, load, write, pixels, column, label, struct):
    write(tmp_path / "train.parquet", pixels, LABELS, column=column, label=label, struct=struct)
    dataset = load(tmp_path / "train.parquet")
    assert dataset.classes == tuple(NAMES)
    assert len(dataset.train) + len(dataset.test) == 12


def test_the_suffix_may_be_in_capitals(tmp_path, load, write, pixels):
    write(tmp_path / "set/TRAIN.PARQUET", pixels, LABELS)
    assert load(tmp_path / "set/TRAIN.PARQUET").checksum == load(tmp_path / "set").checksum


def test_without_names_classes_are_numbers(tmp_path, load, write, pixels):
    write(tmp_path / "train.parquet", pixels, LABELS, names=None)
    assert load(tmp_path / "train.parquet").classes == ("0", "1", "2")


def test_a_missing_test_split_is_held_out_and_said(tmp_path, load, write, pixels):
    many = np.concatenate([pixels] * 5)
    many[:, 0, 0, 0] = np.arange(60)  # so that an image tells its row
    write(tmp_path / "set/train-0.parquet", many, LABELS * 5)
    dataset = load(tmp_path / "set")
    train_rows, test_rows = (split.inputs[:, 0, 0, 0].tolist() for split in (dataset.train, dataset.test))
    assert sorted(train_rows + test_rows) == list(range(60))
    assert train_rows == sorted(train_rows)
    assert dataset.test.targets.bincount().tolist() == [4, 4, 4]
    assert dataset.train.targets.tolist() == [row % 3 for row in train_rows]
    assert dataset.test.targets.tolist() == [row % 3 for row in test_rows]
    assert "no test split: 20% of each class held out, seed 0" in dataset.source
    other = load(tmp_path / "set", seed=1, holdout=0.5)
    assert len(other.test) == 30
    assert other.checksum != dataset.checksum


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_split_serves_as_test_and_a_test_split_goes_before_it(tmp_path, load, write, pixels, caplog, name):
    write(tmp_path / "set/train-0.parquet", pixels[:6], LABELS[:6])
    write(tmp_path / f"set/{name}-0.parquet", pixels[6:9], LABELS[6:9])
    assert np.array_equal(images_of(load(tmp_path / "set").test), pixels[6:9])
    assert not caplog.records
    write(tmp_path / "set/test-0.parquet", pixels[9:], LABELS[9:])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(images_of(load(tmp_path / "set").test), pixels[9:])
    assert f"{name}-0.parquet" in caplog.text


def test_gray_among_colours_and_grays_stored_as_colours_lose_nothing(tmp_path, load, write, encode, pixels):
    gray = pixels[..., 0]
    as_rgb, as_palette = np.stack([gray[1]] * 3, axis=-1), io.BytesIO()
    Image.fromarray(gray[2]).convert("RGB").quantize(256).save(as_palette, "PNG")
    assert Image.open(as_palette).mode == "P"
    write(tmp_path / "set/train.parquet", [gray[0], as_rgb, as_palette.getvalue()], [0, 1, 2])
    write(tmp_path / "set/test.parquet", [gray[3]], [0])
    dataset = load(tmp_path / "set")
    assert dataset.image_shape == (1, 4, 5)
    assert np.array_equal(images_of(dataset.train)[..., 0], gray[:3])
    write(tmp_path / "set/train.parquet", [pixels[1], gray[0], gray[2]], [0, 1, 2])
    colour = load(tmp_path / "set")
    assert colour.image_shape == (3, 4, 5)
    assert np.array_equal(images_of(colour.train)[1], np.stack([gray[0]] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_image_after_a_gray_first_one_is_refused(tmp_path, load, write, pixels, mode):
    stream = io.BytesIO()
    Image.fromarray(pixels[2]).convert(mode).save(stream, "PNG")
    write(tmp_path / "set/train-0.parquet", [*pixels[:2, ..., 0], stream.getvalue(), *pixels[3:]], LABELS)
    refused(
        load, tmp_path / "set", "train-0.parquet, row 2", f"mode '{mode}'", "row 0 (counting from 0)) is gray",
        "mode 'L'", "convert the gray images to RGB, or all images to gray",
    )  # fmt: skip


def refused(load, path, *parts):
    with pytest.raises(DataError) as caught:
        load(path)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def test_an_image_of_another_size_is_named(tmp_path, load, write, pixels):
    wrong = [*pixels[:4], np.zeros((5, 4, 3), np.uint8), *pixels[5:]]
    write(tmp_path / "set/train-0.parquet", wrong, LABELS)
    refused(load, tmp_path / "set", "train-0.parquet, row 4", "4 wide and 5 high", "row 0", "5 wide and 4 high")


def test_a_test_split_of_another_size_is_named(tmp_path, load, write, pixels):
    write(tmp_path / "set/train-0.parquet", pixels, LABELS)
    write(tmp_path / "set/test-0.parquet", np.zeros((3, 2, 2, 3), np.uint8), LABELS[:3])
    refused(load, tmp_path / "set", "test-0.parquet, row 0", "2 wide and 2 high", "train-0.parquet, row 0")


@pytest.mark.parametrize("broken", ["truncated", "garbage"])
def test_a_corrupt_image_is_named(tmp_path, load, write, encode, pixels, broken):
    bad = encode(pixels[7])[:-40] if broken == "truncated" else b"not an image"
    write(tmp_path / "set/train-0.parquet", [*pixels[:7], bad, *pixels[8:]], LABELS)
    reason = "image file is truncated" if broken == "truncated" else "(cannot identify image file);"
    message = refused(load, tmp_path / "set", "train-0.parquet, row 7", "cannot be decoded", reason)
    assert "object at 0x" not in message
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("struct", [True, False])
def test_a_missing_image_is_named(tmp_path, load, write, pixels, struct):
    write(tmp_path / "set/train-0.parquet", [*pixels[:2], None, *pixels[3:]], LABELS, struct=struct)
    refused(load, tmp_path / "set", "row 2", "no image")


def test_sixteen_bit_images_are_refused(tmp_path, load, write):
    write(tmp_path / "set/train-0.parquet", [np.zeros((2, 2), np.uint16)] * 6, LABELS[:6])
    refused(load, tmp_path / "set", "row 0", "I;16", "8 bits")


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        ([0, 1, 2, -1] * 3, ["train-0.parquet", "row 3", "label -1", "0 to 2"]),
        ([0, 1, 2, 3] * 3, ["row 3", "label 3", "0 to 2 for its 3 classes"]),
        ([0, 1, None, 2] * 3, ["row 2", "no label", "null"]),
        ([0.0, 1.0, 2.0] * 4, ["no label column", "'label' (double)"]),
        (["a", "b", "c"] * 4, ["no label column", "'label' (string)", "integers"]),
        (pa.array([2**63 + 1] * 12, pa.uint64()), ["64 bits"]),
    ],
    ids=["negative", "out of range", "null", "float", "string", "beyond int64"],
)
def test_bad_labels_are_named(tmp_path, load, write, pixels, labels, parts):
    write(tmp_path / "set/train-0.parquet", pixels, labels)
    refused(load, tmp_path / "set", *parts)


@pytest.mark.parametrize(
    ("train", "test", "parts"),
    [
        ([0, 1, 3] * 3, [0, 1, 3], ["run up to 3", "label 2 never occurs"]),
        ([1, 2, 3] * 3, [1, 2, 3], ["label 0 never occurs"]),
        ([0, 1, 2] * 3, [0, 3, 1], ["label 3", "test split", "row 1", "up to 2"]),
        ([-1, 1, 2] * 3, [0, 1, 2], ["label -1", "0 or more"]),
    ],
    ids=["gap", "from one", "test has more", "negative"],
)
def test_labels_without_names_must_run_from_zero_without_gaps(tmp_path, load, write, pixels, train, test, parts):
    write(tmp_path / "set/train-0.parquet", pixels[:9], train, names=None)
    write(tmp_path / "set/test-0.parquet", pixels[9:], test, names=None)
    refused(load, tmp_path / "set", *parts)


@pytest.mark.parametrize(("names", "label", "shown"), [(NAMES, 1, "'dog'"), (None, 0, "'0'"), (None, 4, "'4'")])
def test_a_single_class_is_refused(tmp_path, load, write, pixels, names, label, shown):
    write(tmp_path / "set/train-0.parquet", pixels, [label] * 12, names=names)
    refused(load, tmp_path / "set", str(tmp_path / "set"), f"of one class, {shown}", "two classes are the least")


def test_class_names_must_agree(tmp_path, load, write, pixels):
    write(tmp_path / "set/train-0.parquet", pixels, LABELS)
    write(tmp_path / "set/test-0.parquet", pixels, LABELS, names=["cat", "eel", "dog"])
    refused(load, tmp_path / "set", "test-0.parquet", "'eel', 'dog'", "train-0.parquet")


def test_missing_and_ambiguous_columns_are_named(tmp_path, load, write, pixels):
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "no-image.parquet")
    refused(load, tmp_path / "no-image.parquet", "no image column", "'text' (string)", "'label' (int64)")
    pq.write_table(pa.table({"img": [b"a"], "text": ["a"]}), tmp_path / "no-label.parquet")
    refused(load, tmp_path / "no-label.parquet", "no label column", "'img' (binary)", "'text' (string)")
    pq.write_table(pa.table({"img": [b"a"], "x": [0], "y": [0]}), tmp_path / "two.parquet")
    refused(load, tmp_path / "two.parquet", "several columns could be the label column: ['x', 'y']")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(tmp_path, load, write, pixels, split):
    for name in ("train", "test"):
        write(tmp_path / f"set/{name}-0.parquet", pixels, LABELS)
    file = tmp_path / f"set/{split}-0.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    refused(load, tmp_path / "set", f"the {split} split of", "is empty")


def test_one_image_per_class_leaves_nothing_to_hold_out(tmp_path, load, write, pixels):
    write(tmp_path / "train.parquet", pixels[:3], [0, 1, 2])
    refused(load, tmp_path / "train.parquet", "no test split", "one per class")


def test_a_broken_file_is_named(tmp_path, load, write, pixels):
    write(tmp_path / "set/train-0.parquet", pixels, LABELS)
    content = (tmp_path / "set/train-0.parquet").read_bytes()
    (tmp_path / "set/train-0.parquet").write_bytes(content[: len(content) // 2])
    refused(load, tmp_path / "set", "train-0.parquet", "cannot be read as parquet")


def test_several_data_sets_and_a_missing_train_split_are_refused(tmp_path, load, write, pixels):
    write(tmp_path / "set/easy/train-0.parquet", pixels, LABELS)
    write(tmp_path / "set/hard/train-0.parquet", pixels, LABELS)
    refused(load, tmp_path / "set", str(tmp_path / "set/easy"), str(tmp_path / "set/hard"), "give one of these")
    write(tmp_path / "other/test-0.parquet", pixels, LABELS)
    refused(load, tmp_path / "other", "no train split", "test-0.parquet")
