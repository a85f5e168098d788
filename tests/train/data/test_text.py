import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp.errors import DataError
from scrimp.train.data import describe
from scrimp.train.data.holdout import HoldOut
from scrimp.train.data.text import TextSource

TEXT = "to be, or not to be: that is the question" * 5


class Kept:
    """Arrays as plain lists of rows."""

    def __init__(self):
        self.arrays = {}

    def begin(self, name, shape, dtype):
        self.arrays[name] = np.empty((0, *shape[1:]), dtype)

    def append(self, name, block):
        self.arrays[name] = np.concatenate([self.arrays[name], block])


@pytest.fixture
def file(tmp_path):
    (tmp_path / "play.txt").write_text(TEXT)
    return tmp_path / "play.txt"


def test_characters_in_order_with_the_last_tenth_held_out(file, load):
    dataset = load(file)
    vocabulary = sorted(set(TEXT))
    tokens = [vocabulary.index(character) for character in TEXT]
    num_train = len(TEXT) * 9 // 10
    assert dataset.kind == "text"
    assert dataset.classes == tuple(vocabulary)
    assert dataset.vocab_size == len(vocabulary)
    assert dataset.train.inputs.tolist() == tokens[:num_train]
    assert dataset.test.inputs.tolist() == tokens[num_train:]
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.targets is None
    assert dataset.decode(dataset.train.inputs) + dataset.decode(dataset.test.inputs) == TEXT
    assert dataset.encode("to be").tolist() == [vocabulary.index(character) for character in "to be"]
    assert describe(dataset) == (
        f"play.txt: 184 train + 21 test characters, {len(vocabulary)} in the vocabulary "
        f"(text file, {file}; last tenth held out as test split)"
    )


def test_a_folder_with_one_text_file(file, load):
    assert load(file.parent).checksum == load(file).checksum
    (file.parent / "second.txt").write_text("more")
    with pytest.raises(DataError, match=r"several text files \(play.txt, second.txt\)"):
        load(file.parent)


def test_the_suffix_may_be_in_capitals(file, load):
    checksum = load(file).checksum
    loud = file.rename(file.with_name("PLAY.TXT"))
    assert load(loud).checksum == load(loud.parent).checksum == checksum


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=400))
def test_any_text_survives(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("text") / "any.txt"
    file.write_bytes(("\ufeff" + text).encode())
    kept = Kept()
    facts = TextSource(file).decode(kept, HoldOut(0.2, 0), lambda *_: None)
    tokens = np.concatenate([kept.arrays["train_inputs"], kept.arrays["test_inputs"]])
    assert "".join(facts.classes[token] for token in tokens) == text


def test_a_large_vocabulary_takes_wider_tokens(tmp_path, load):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 2
    (tmp_path / "wide.txt").write_text(text, encoding="utf-8")
    dataset = load(tmp_path / "wide.txt")
    assert dataset.train.inputs.dtype == torch.int32
    assert dataset.vocab_size == 300
    assert dataset.decode(dataset.encode(text)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 characters"),
        (b"a", "has 1 characters"),
        (b"good until \xff here", "not UTF-8 text: invalid start byte at byte 11"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, load, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "bad.txt")


def test_unknown_characters_and_tokens_are_named(file, load):
    dataset = load(file)
    with pytest.raises(DataError, match="character 'X' at position 2"):
        dataset.encode("toX")
    for wrong in (dataset.vocab_size, -1):
        with pytest.raises(DataError, match=f"token {wrong} at position 1"):
            dataset.decode(torch.tensor([0, wrong]))
