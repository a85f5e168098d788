"""Batches and losses of images and text, against slow twins."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scrimp._core.index_plan import SequentialPlan
from scrimp.errors import ConfigError, DataError
from scrimp.steps import DeviceLoader
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, Split
from scrimp.train.task import Task, build_loaders

CPU = torch.device("cpu")


def text_data(num_train: int = 103, num_test: int = 27) -> Dataset:
    """A text in which every character occurs once, so that a token tells its place."""
    tokens = torch.arange(num_train + num_test, dtype=torch.uint8)
    classes = tuple(map(chr, range(num_train + num_test)))
    splits = Split(tokens[:num_train], None), Split(tokens[num_train:], None)
    return Dataset("abc", "text", *splits, classes, "a test", "0")


def image_data(num_train: int = 50, num_test: int = 13) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_train + num_test, 2, 4, 4), dtype=torch.uint8, generator=draw)
    labels = torch.arange(num_train + num_test) % 5
    splits = Split(images[:num_train], labels[:num_train]), Split(images[num_train:], labels[num_train:])
    return Dataset("noise", "images", *splits, tuple("abcde"), "a test", "0")


def loaders(dataset: Dataset, **changes: Any) -> tuple[DeviceLoader, DeviceLoader]:
    place = {key: changes.pop(key) for key in ("sampler", "transforms") if key in changes}
    ranks = {"rank": changes.pop("rank", 0), "world_size": changes.pop("world_size", 1)}
    config = TrainConfig.from_dict({"context_length": 8, "batch_size": 4, **changes})
    return build_loaders(config, dataset, device=CPU, dtype=torch.float32, **ranks, **place)


# text


def test_text_targets_are_the_inputs_shifted_by_one() -> None:
    task = Task("text")
    train, _ = loaders(text_data())
    rows = set()
    for epoch in range(300):
        train.set_epoch(epoch)
        for batch in train:
            inputs, targets = task.split(batch.inputs, batch.targets)
            assert inputs.shape == targets.shape == (4, 8)
            for row, ours, theirs in zip(batch.index.tolist(), inputs.tolist(), targets.tolist(), strict=True):
                start = ours[0]
                assert ours == [start + i for i in range(8)]
                assert theirs == [start + 1 + i for i in range(8)]
                assert row * 8 <= start < (row + 1) * 8  # a window begins anywhere in its row
                rows.add(start)
    assert rows == set(range(11 * 8)), "in time training sees every window"


def test_text_is_tested_on_every_window_once() -> None:
    task = Task("text")
    _, test = loaders(text_data())
    starts = []
    for batch in test:
        inputs, targets = task.split(batch.inputs, batch.targets)
        assert torch.equal(targets, inputs + 1)
        starts += inputs[:, 0].tolist()
    assert starts == [103, 111, 119]


def test_text_losses_are_means_over_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 5, 7, generator=draw), torch.randint(0, 7, (3, 5), generator=draw)
    expected = [
        sum(float(torch.logsumexp(row[i], 0) - row[i, target[i]]) for i in range(5)) / 5
        for row, target in zip(logits, targets, strict=True)
    ]
    losses = Task("text").losses(logits, targets)
    assert losses.shape == (3,)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert Task("text").num_correct(logits, targets) is None


@pytest.mark.parametrize(
    ("num_train", "num_test", "what"), [(15, 27, "training part .* 15 .* at least 16"), (16, 8, "held-out .* 8 .* 9")]
)
def test_too_short_a_text_is_refused(num_train: int, num_test: int, what: str) -> None:
    with pytest.raises(DataError, match=f"the {what}.*--context-length"):
        loaders(text_data(num_train, num_test), batch_size=1)


def test_the_shortest_text() -> None:
    train, test = loaders(text_data(16, 9), batch_size=1)
    assert (len(train), len(test)) == (1, 1)


@pytest.mark.parametrize(
    "change", [{"crop_padding": 2}, {"flip": "random"}, {"cutout": 2}, {"label_smoothing": 0.1}, {"whiten": True}]
)
def test_settings_for_images_are_refused_for_text(change: dict[str, Any]) -> None:
    flag = f"--{next(iter(change)).replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag} is for images, but the data is text"):
        loaders(text_data(), **change)


# images


def normalized(dataset: Dataset, images: Tensor) -> Tensor:
    """Channel by channel, by hand."""
    of_train = dataset.train.inputs.double() / 255
    out = images.double() / 255
    for channel in range(images.shape[1]):
        values = of_train[:, channel]
        out[:, channel] = (out[:, channel] - values.mean()) / values.std(correction=0)
    return out.float()


def test_image_batches_are_normalised_and_keep_their_labels() -> None:
    dataset = image_data()
    train, test = loaders(dataset)
    seen: list[int] = []
    for batch in train:
        torch.testing.assert_close(batch.inputs, normalized(dataset, dataset.train.inputs[batch.index]))
        assert torch.equal(batch.targets, dataset.train.targets[batch.index])
        seen += batch.index.tolist()
    assert len(seen) == len(set(seen)) == 48, "the incomplete last batch is dropped"
    tested = torch.cat([batch.inputs for batch in test])
    torch.testing.assert_close(tested, normalized(dataset, dataset.test.inputs))


def test_augmentation_is_for_training_only() -> None:
    dataset = image_data()
    train, test = loaders(dataset, crop_padding=1, flip="random", cutout=2)
    plain_train, plain_test = loaders(dataset)
    for ours, theirs in zip(train, plain_train, strict=True):
        assert torch.equal(ours.index, theirs.index)
        assert not torch.equal(ours.inputs, theirs.inputs)
    for ours, theirs in zip(test, plain_test, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)


def test_cutout_fills_with_the_mean_colour() -> None:
    train, _ = loaders(image_data(), cutout=2, batch_size=50)
    (batch,) = train
    assert ((batch.inputs == 0).sum(dim=(1, 2, 3)) >= 2).all()


def test_further_transforms_come_last_and_a_sampler_decides() -> None:
    class Double:
        def draw(self, *args: Any) -> None:
            return None

        def apply(self, inputs: Tensor, drawn: None) -> Tensor:
            return inputs * 2

    dataset = image_data()
    train, _ = loaders(dataset, sampler=SequentialPlan, transforms=[Double()], batch_size=50)
    (batch,) = train
    assert batch.index.tolist() == list(range(50))
    torch.testing.assert_close(batch.inputs, 2 * normalized(dataset, dataset.train.inputs))


def test_two_ranks_share_the_batches_of_one() -> None:
    dataset = image_data()
    whole, whole_test = loaders(dataset, batch_size=8, flip="random")
    halves = [loaders(dataset, batch_size=4, flip="random", rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, halves[0][0], halves[1][0], strict=True):
        assert torch.equal(batch.inputs, torch.cat([first.inputs, second.inputs]))
    assert sum(len(batch.index) for batch in whole_test) == 13


def test_a_seed_decides_the_order() -> None:
    first, same, other = (next(iter(loaders(image_data(), seed=seed)[0])).index.tolist() for seed in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize("dataset", [image_data(), text_data()], ids=["images", "text"])
def test_batches_larger_than_the_data_set_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 51, but there are only \d+ training samples; lower --batch"):
        loaders(dataset, batch_size=51)
    with pytest.raises(ConfigError, match=r"batch_size is 26 on each of 2 processes, but there are only"):
        loaders(dataset, batch_size=26, world_size=2)


@pytest.fixture
def outputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=draw), torch.randint(0, 5, (6,), generator=draw)


def test_labels_are_smoothed_in_training_only(outputs: tuple[Tensor, Tensor]) -> None:
    logits, targets = outputs
    task = Task("images", label_smoothing=0.25)
    log_p = torch.log_softmax(logits, dim=1)
    plain = -log_p[torch.arange(6), targets]
    torch.testing.assert_close(task.losses(logits, targets), 0.75 * plain + 0.25 * -log_p.mean(dim=1))
    torch.testing.assert_close(task.losses(logits, targets, smoothed=False), plain)
    assert torch.equal(Task("images").losses(logits, targets), F.cross_entropy(logits, targets, reduction="none"))


def test_losses_are_computed_in_float32(outputs: tuple[Tensor, Tensor]) -> None:
    logits, targets = outputs
    losses = Task("images").losses(logits.bfloat16(), targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, F.cross_entropy(logits.bfloat16().float(), targets, reduction="none"))


def test_number_of_correct_ones(outputs: tuple[Tensor, Tensor]) -> None:
    logits, _ = outputs
    targets = logits.argmax(dim=1)
    targets[:2] = (targets[:2] + 1) % 5
    correct = Task("images").num_correct(logits, targets)
    assert correct is not None
    assert int(correct) == 4


def test_images_are_split_as_they_are(outputs: tuple[Tensor, Tensor]) -> None:
    logits, targets = outputs
    assert Task("images").split(logits, targets) == (logits, targets)
