import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.loader import epoch_batches
from tests.reference.plans import shuffled
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from scrimp._core.index_plan import SequentialPlan, ShufflePlan
from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.steps import AlternatingFlip, Cutout, DeviceLoader, Normalize, RandomCrop, RandomFlip, RandomWindow
from scrimp.testing import check_global_rng_untouched, check_stateful, copy_state, run_ranks

AUGMENTATION = (RandomCrop(2), RandomFlip(), AlternatingFlip(), Cutout(2), Normalize((0.5,) * 3, (0.2,) * 3))


def images(num_samples=11, memory_format=torch.channels_last):
    pixels = torch.randint(0, 256, (num_samples, 3, 6, 5), generator=generator(0, "images"), dtype=torch.uint8)
    return pixels.contiguous(memory_format=memory_format)


def make_loader(num_samples=11, batch_size=4, **options):
    options = {"transforms": AUGMENTATION, "seed": 7, **options}
    return DeviceLoader(images(num_samples), torch.arange(num_samples) * 10, batch_size, **options)


class WeightedPlan(ShufflePlan):
    """Some of the samples, each with a weight."""

    def epoch_indices(self):
        return super().epoch_indices()[: 5 + self.epoch % 3]

    def __len__(self):
        return 5 + self.epoch % 3

    def epoch_weights(self):
        return self.epoch_indices() + 0.5


def assert_same_batches(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert (a.weights is None) == (b.weights is None)
        assert a.weights is None or torch.equal(a.weights, b.weights)
        assert a.global_size == b.global_size


# What it hands out.


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_equal_the_twin(memory_format, drop_last):
    inputs, targets = images(memory_format=memory_format), torch.arange(11) * 10
    loader = DeviceLoader(inputs, targets, 4, transforms=AUGMENTATION, seed=7, drop_last=drop_last)
    for epoch in range(3):
        expected = epoch_batches(
            inputs,
            targets,
            shuffled(11, 7, epoch),
            4,
            transforms=AUGMENTATION,
            seed=7,
            epoch=epoch,
            drop_last=drop_last,
        )
        assert len(loader) == len(expected) == (2 if drop_last else 3)
        assert loader.num_visits == (8 if drop_last else 11)
        for batch, [(index, samples, labels)] in itertools.zip_longest(loader, expected):
            assert torch.equal(batch.index, index)
            assert torch.equal(batch.inputs, samples)
            assert torch.equal(batch.targets, labels)
            assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
            assert batch.weights is None
            assert batch.global_size == len(index)


@pytest.mark.parametrize(
    "inputs",
    [
        images(9),
        images(9, torch.contiguous_format),
        images(9).float(),
        images(9).bfloat16(),
        torch.arange(9 * 6).view(9, 6),
        torch.arange(60, dtype=torch.uint8).unfold(0, 12, 6),
        torch.arange(9.0),
        torch.arange(9 * 8).view(9, 2, 2, 2, 1),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)
def test_without_transforms_samples_come_as_they_are(inputs):
    num_samples = len(inputs)
    for batch in DeviceLoader(inputs, None, 4):
        assert batch.inputs.dtype == inputs.dtype
        assert torch.equal(batch.inputs, inputs[batch.index])
        assert batch.targets is None
        if inputs.ndim == 4:
            assert batch.inputs.stride() == inputs[: len(batch.index)].clone().stride()
    assert num_samples == sum(len(b.index) for b in DeviceLoader(inputs, None, 4))


def test_overlapping_rows_of_a_text_become_windows():
    text = torch.randint(0, 65, (103,), generator=generator(0), dtype=torch.uint8)
    loader = DeviceLoader(text.unfold(0, 10, 5), None, 4, transforms=[RandomWindow(6)])
    assert loader.num_samples == 19
    for batch in loader:
        assert batch.inputs.shape == (len(batch.index), 6)
        for sample, window in zip(batch.index.tolist(), batch.inputs.tolist(), strict=True):
            row = text[5 * sample : 5 * sample + 10].tolist()
            assert window in [row[first : first + 6] for first in range(5)]


def test_a_batch_unpacks_as_a_dataloaders_does():
    data = images(), torch.arange(11)
    ours = DeviceLoader(*data, 4, sampler=SequentialPlan(11))
    for (inputs, targets), (their_inputs, their_targets) in zip(ours, DataLoader(TensorDataset(*data), 4), strict=True):
        assert torch.equal(inputs, their_inputs)
        assert torch.equal(targets, their_targets)


def test_a_torch_sampler_gives_the_order():
    sampler = RandomSampler(range(11), generator=torch.Generator().manual_seed(3))
    expected = list(RandomSampler(range(11), generator=torch.Generator().manual_seed(3)))
    loader = make_loader(sampler=sampler)
    assert torch.cat([batch.index for batch in loader]).tolist() == expected


def test_weights_go_with_their_samples():
    loader = make_loader(sampler=WeightedPlan(11))
    for epoch in range(4):
        assert (len(loader), loader.num_visits) == (2, 5 + epoch % 3)
        batches = list(loader)
        assert [batch.global_size for batch in batches] == [4, 1 + epoch % 3]
        for batch in batches:
            assert torch.equal(batch.weights, batch.index + 0.5)


def test_no_global_generator_is_touched():
    check_global_rng_untouched(lambda: list(make_loader()))


# Epochs.


def test_iterating_goes_through_the_epochs():
    loader = make_loader(transforms=())
    for epoch in range(3):
        assert (loader.epoch, loader.steps_done) == (epoch, 0)
        index = torch.cat([batch.index for batch in loader])
        assert index.tolist() == shuffled(11, 7, epoch)


def test_breaking_off_begins_the_epoch_again():
    loader = make_loader()
    whole = list(make_loader())
    assert torch.equal(next(iter(loader)).inputs, whole[0].inputs)
    assert loader.steps_done == 1
    assert_same_batches(list(loader), whole)
    assert (loader.epoch, loader.steps_done) == (1, 0)


def test_set_epoch_goes_anywhere():
    loader, other = make_loader(), make_loader()
    epochs = [list(other) for _ in range(3)]
    for epoch in (2, 0, 1, 1):
        loader.set_epoch(epoch)
        assert_same_batches(list(loader), epochs[epoch])
    with pytest.raises(ConfigError, match="epoch is -1"):
        loader.set_epoch(-1)


def test_every_transform_draws_from_a_stream_of_its_own():
    white = torch.ones(11, 1, 6, 5)

    def inputs(*transforms):
        return torch.cat([batch.inputs for batch in DeviceLoader(white, None, 4, transforms=transforms)])

    squares = inputs(RandomFlip(0.0), Cutout(2))
    assert torch.equal(inputs(RandomFlip(1.0), Cutout(2)), squares)
    assert torch.equal(inputs(Cutout(2, fill=1.0), Cutout(2)), squares)
    assert not torch.equal(inputs(Cutout(2)), squares)  # another place in the list, another stream


# State.


class Run:
    """A loop around a loader that can be stopped after any batch."""

    def __init__(self, loader) -> None:
        self.loader, self.batches = loader, None

    def advance(self):
        while True:
            if self.batches is None:
                self.batches = iter(self.loader)
            batch = next(self.batches, None)
            if batch is not None:
                return {
                    "epoch": self.loader.epoch,
                    "steps_done": self.loader.steps_done,
                    "index": batch.index,
                    "inputs": batch.inputs,
                    "targets": batch.targets,
                    "weights": batch.weights,
                }
            self.batches = None

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


SAMPLERS = {
    "shuffle": lambda: None,
    "weighted": lambda: WeightedPlan(11),
    "torch": lambda: RandomSampler(range(11), generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_shared_suite(name, drop_last):
    check_stateful(
        lambda: Run(make_loader(sampler=SAMPLERS[name](), drop_last=drop_last)), lambda run: run.advance(), num_steps=7
    )


def test_a_state_after_k_batches_continues_with_the_next():
    whole = list(make_loader())
    for k in range(4):
        loader = make_loader()
        for _ in itertools.islice(loader, k):
            pass
        state = loader.state_dict()
        assert (state["epoch"], state["steps_done"]) == (0, k)
        fresh = make_loader()
        fresh.load_state_dict(copy_state(state))
        fresh.set_epoch(0)  # a loop that always says its epoch keeps the position
        assert (fresh.epoch, fresh.steps_done) == (0, k)
        assert fresh.state_dict() == state
        assert_same_batches(list(fresh), whole[k:])
        assert (fresh.epoch, fresh.steps_done) == (1, 0)


def test_a_loaded_position_is_left_behind_by_another_epoch():
    loader = make_loader()
    next(iter(loader))
    fresh = make_loader()
    fresh.load_state_dict(loader.state_dict())
    fresh.set_epoch(1)
    assert fresh.steps_done == 0
    fresh.set_epoch(0)
    assert_same_batches(list(fresh), list(make_loader()))


def test_a_state_of_another_loader_changes_nothing():
    loader = make_loader()
    loader.set_epoch(2)
    before = loader.state_dict()
    for other, message in [
        (make_loader(12), "num_samples=12 but this one has num_samples=11"),
        (make_loader(seed=8), "seed=8"),
        (make_loader(batch_size=5), "global_batch_size=5"),
        (make_loader(drop_last=True), "drop_last=True"),
        (make_loader(sampler=ShufflePlan(11, seed=1)), "ShufflePlan was saved with seed=1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            loader.load_state_dict(other.state_dict())
    with pytest.raises(ConfigError, match="lacks epoch, steps_done, plan"):
        loader.load_state_dict({"num_samples": 11, "seed": 7, "global_batch_size": 4, "drop_last": False})
    assert loader.state_dict() == before


# Ranks, without processes: a loader is told its rank.


@settings(deadline=None, max_examples=60)
@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_ranks_share_the_visits_as_the_twin_does(num_samples, batch_size, world_size, drop_last):
    inputs = torch.arange(num_samples)
    options = {"drop_last": drop_last, "world_size": world_size, "transforms": ()}
    if batch_size * world_size > num_samples:
        with pytest.raises(ConfigError, match=f"has only {num_samples} samples"):
            DeviceLoader(inputs, inputs, batch_size, **options)
        return
    expected = epoch_batches(
        inputs, inputs, shuffled(num_samples, 0, 0), batch_size, world_size=world_size, drop_last=drop_last
    )
    loaders = [DeviceLoader(inputs, inputs, batch_size, rank=rank, **options) for rank in range(world_size)]
    for rank, loader in enumerate(loaders):
        assert len(loader) == len(expected)
        batches = list(loader)
        assert [batch.index.tolist() for batch in batches] == [step[rank][0].tolist() for step in expected]
        assert [batch.global_size for batch in batches] == [sum(len(part[0]) for part in step) for step in expected]
    left_out = num_samples - loaders[0].num_visits
    assert left_out < (batch_size * world_size if drop_last else world_size)


@pytest.mark.parametrize("drop_last", [False, True])
def test_two_ranks_together_are_one_rank(drop_last):
    whole = make_loader(batch_size=4, drop_last=drop_last)
    halves = [make_loader(batch_size=2, drop_last=drop_last, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        for one, *parts in zip(whole, *halves, strict=True):
            assert torch.equal(torch.cat([part.index for part in parts]), one.index)
            assert torch.equal(torch.cat([part.inputs for part in parts]), one.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), one.targets)
            assert [part.global_size for part in parts] == [one.global_size] * 2
    assert halves[0].state_dict() == halves[1].state_dict() == whole.state_dict()


def test_a_run_may_go_on_with_another_number_of_ranks():
    one = make_loader(batch_size=4)
    batches = iter(one)
    next(batches)
    halves = [make_loader(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(one.state_dict())
    for rest, *parts in zip(batches, *halves, strict=True):
        assert torch.equal(torch.cat([part.inputs for part in parts]), rest.inputs)


def load_as_a_rank(rank: int):
    loader = make_loader(batch_size=2, rank=rank, world_size=2)
    index = [batch.index for batch in loader]
    quarrel = make_loader(batch_size=2, rank=rank, world_size=2, sampler=ShufflePlan(11, seed=rank))
    try:
        next(iter(quarrel))
    except ConfigError as error:
        return index, str(error)
    return index, None


def test_ranks_that_would_load_different_epochs_are_stopped():
    results = run_ranks(load_as_a_rank)
    here = [[b.index for b in make_loader(batch_size=2, rank=rank, world_size=2)] for rank in range(2)]
    for rank, (index, error) in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(index, here[rank], strict=True))
        assert "the plan of epoch 0 is not the same on all ranks" in error


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size is 0; it has to be an integer from 1"),
        ({"batch_size": -3}, ConfigError, "batch_size is -3"),
        ({"batch_size": 2.0}, ConfigError, "batch_size is 2.0"),
        ({"batch_size": True}, ConfigError, "batch_size is True"),
        ({"batch_size": 12}, ConfigError, "batch_size is 12, but the data set has only 11 samples"),
        ({"batch_size": 6, "world_size": 2}, ConfigError, "batch_size is 6 on each of 2 ranks"),
        ({"rank": 1}, ConfigError, "rank is 1 but world_size is 1"),
        ({"rank": -1}, ConfigError, "rank is -1"),
        ({"world_size": 0}, ConfigError, "world_size is 0"),
        ({"seed": "a"}, ConfigError, "seed is 'a'"),
        ({"transforms": [torch.nn.Identity()]}, ConfigError, "needs the methods draw and apply"),
        ({"sampler": ShufflePlan(12)}, DataError, "made for 12 samples, but the data set has 11"),
        ({"sampler": 5}, DataError, "is no sampler"),
    ],
)
def test_impossible_settings(options, error, message):
    with pytest.raises(error, match=message):
        make_loader(**options)


def test_data_that_do_not_fit():
    with pytest.raises(DataError, match=r"11 inputs but targets of shape \(10,\)"):
        DeviceLoader(images(), torch.arange(10), 2)
    with pytest.raises(DataError, match=r"11 inputs but targets of shape \(\)"):
        DeviceLoader(images(), torch.tensor(3), 2)
    with pytest.raises(DataError, match=r"no samples: inputs are \(0, 3\)"):
        DeviceLoader(torch.zeros(0, 3), None, 2)
    with pytest.raises(DataError, match=r"no samples: inputs are \(\)"):
        DeviceLoader(torch.tensor(1), None, 2)


class BadPlan(ShufflePlan):
    """A plan that gives whatever it is told."""

    indices, weights = torch.arange(11), None

    def epoch_indices(self):
        return self.indices

    def epoch_weights(self):
        return self.weights

    def __len__(self):
        return len(self.indices)


@pytest.mark.parametrize(
    ("indices", "weights", "message"),
    [
        (torch.arange(12), None, "indices from 0 to 11, but the data set has 11 samples"),
        (torch.arange(11) - 1, None, "indices from -1 to 9"),
        (torch.arange(11.0), None, "torch.float32"),
        (torch.arange(11), torch.ones(10), "10 weights for 11 visits"),
        (torch.arange(0), None, "epoch 0 visits 0 samples, too few for one batch of 4 .* drop_last=False"),
    ],
)
def test_plans_that_do_not_fit(indices, weights, message):
    plan = BadPlan(11)
    plan.indices, plan.weights = indices, weights
    with pytest.raises(DataError, match=message):
        next(iter(make_loader(sampler=plan)))


def test_an_epoch_that_drop_last_would_empty():
    plan = BadPlan(11)
    plan.indices = torch.arange(3)
    loader = make_loader(sampler=plan, drop_last=True)
    assert len(loader) == 0
    with pytest.raises(
        DataError, match=r"visits 3 samples, too few for one batch of 4 on each of 1 rank.* drop_last=True"
    ):
        list(loader)


class ShortDraws(RandomFlip):
    """Draws one row too few."""

    def draw(self, index, epoch, generator):
        return super().draw(index, epoch, generator)[1:]


def test_a_transform_that_draws_too_little():
    with pytest.raises(DataError, match=r"ShortDraws.draw gave \(10,\) for 11 visits"):
        list(make_loader(transforms=[ShortDraws()]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_costs_no_host_sync():
    loader = DeviceLoader(images(), torch.arange(11), 4, transforms=AUGMENTATION, device="cuda")
    on_cpu = list(DeviceLoader(images(), torch.arange(11), 4, transforms=AUGMENTATION))
    batches = iter(loader)
    first = next(batches)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    for batch, expected in zip([first, *rest], on_cpu, strict=True):
        assert batch.inputs.device.type == "cuda"
        assert torch.equal(batch.index.cpu(), expected.index)
        assert torch.allclose(batch.inputs.cpu(), expected.inputs, atol=1e-6)
