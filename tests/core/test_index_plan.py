import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.plans import shuffled
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from scrimp._core.index_plan import IndexPlan, SamplerPlan, SequentialPlan, ShufflePlan, as_index_plan
from scrimp.errors import ConfigError, DataError
from scrimp.testing import check_ranks_agree, check_stateful


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_sampler(num_samples: int = 7) -> RandomSampler:
    return RandomSampler(range(num_samples), generator=seeded())


class EpochSampler(Sampler[int]):
    """A sampler with an epoch and a state of its own."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples, self.epoch, self.passes = num_samples, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        self.passes += 1
        return iter([(i + 10 * self.epoch + self.passes) % self.num_samples for i in range(self.num_samples)])

    def state_dict(self):
        return {"passes": self.passes}

    def load_state_dict(self, state):
        self.passes = state["passes"]


MAKERS = {
    "shuffle": lambda: ShufflePlan(7, seed=3),
    "sequential": lambda: SequentialPlan(7),
    "random sampler": lambda: SamplerPlan(random_sampler(), 7),
    "own state": lambda: SamplerPlan(EpochSampler(7), 7),
    "distributed": lambda: SamplerPlan(DistributedSampler(range(7), num_replicas=1, rank=0), 7),
}


def next_epoch(plan):
    seen = {"epoch": plan.epoch, "length": len(plan), "indices": plan.epoch_indices(), "weights": plan.epoch_weights()}
    plan.set_epoch(plan.epoch + 1)
    return seen


def half_an_epoch(plan):
    """Looks without going on, every other time: a state between drawing an epoch and finishing it."""
    seen = plan.epoch_indices().clone()
    if getattr(plan, "looked", False):
        plan.set_epoch(plan.epoch + 1)
    plan.looked = not getattr(plan, "looked", False)
    return seen


@pytest.mark.parametrize("name", MAKERS)
def test_the_shared_suite(name):
    check_stateful(MAKERS[name], next_epoch)


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_from_the_middle_of_an_epoch_keeps_it(name):
    plan = MAKERS[name]()
    plan.set_epoch(2)
    drawn = plan.epoch_indices()
    state = plan.state_dict()
    fresh = MAKERS[name]()
    fresh.load_state_dict(state)
    assert fresh.epoch == 2
    assert torch.equal(fresh.epoch_indices(), drawn)
    plan.set_epoch(3)
    fresh.set_epoch(3)
    assert torch.equal(fresh.epoch_indices(), plan.epoch_indices())


@pytest.mark.parametrize("name", MAKERS)
def test_an_epoch_is_the_same_until_it_changes(name):
    plan = MAKERS[name]()
    assert isinstance(plan, IndexPlan)
    for epoch in range(3):
        plan.set_epoch(epoch)
        first = plan.epoch_indices()
        assert first.dtype == torch.int64
        assert first.device.type == "cpu"
        plan.set_epoch(epoch)
        assert torch.equal(plan.epoch_indices(), first)
        assert sorted(first.tolist()) == list(range(7))
        assert plan.epoch_weights() is None


@given(st.integers(1, 60), st.integers(-5, 2**40), st.integers(0, 10**6))
def test_a_shuffle_is_a_pure_function(num_samples, seed, epoch):
    plan = ShufflePlan(num_samples, seed=seed)
    plan.set_epoch(epoch)
    assert plan.epoch_indices().tolist() == shuffled(num_samples, seed, epoch)
    assert sorted(plan.epoch_indices().tolist()) == list(range(num_samples))


def test_epochs_and_seeds_differ():
    orders = {tuple(shuffled(20, seed, epoch)) for seed, epoch in itertools.product(range(3), range(5))}
    assert len(orders) == 15


def test_every_sample_comes_to_every_place_equally_often():
    plan, counts = ShufflePlan(5), torch.zeros(5, 5)
    for epoch in range(4000):
        plan.set_epoch(epoch)
        counts[torch.arange(5), plan.epoch_indices()] += 1
    chi_square = ((counts - 800) ** 2 / 800).sum()
    assert chi_square < 45  # 16 degrees of freedom: exceeded once in 7,000 seeds


# The plans as torch samplers.


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loop_gets_each_epoch_once(drop_last, num_workers):
    data = TensorDataset(torch.arange(23))
    plan = ShufflePlan(23, seed=1)
    loader = DataLoader(data, batch_size=5, sampler=plan, drop_last=drop_last, num_workers=num_workers)
    for epoch in range(3):
        assert plan.epoch == epoch
        assert len(loader) == (4 if drop_last else 5)
        seen = [int(i) for (batch,) in loader for i in batch]
        assert seen == shuffled(23, 1, epoch)[: 20 if drop_last else 23]


@pytest.mark.parametrize(("num_samples", "batch_size"), [(20, 5), (20, 20), (21, 20), (3, 5)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_epoch_moves_on_whatever_the_remainder(num_samples, batch_size, drop_last):
    plan = ShufflePlan(num_samples)
    batches = BatchSampler(plan, batch_size, drop_last)
    for epoch in range(3):
        assert len(list(batches)) == len(batches)
        assert plan.epoch == epoch + 1


def test_set_epoch_in_the_loop_gives_the_same_orders():
    plan = ShufflePlan(9)
    for epoch in range(3):
        plan.set_epoch(epoch)
        assert list(plan) == shuffled(9, 0, epoch)
    plan.set_epoch(1)
    assert list(plan) == shuffled(9, 0, 1)


def test_iter_twice_and_break_stay_in_the_epoch():
    plan = ShufflePlan(9)
    first, second = iter(plan), iter(plan)
    assert [next(first), next(second)] == [shuffled(9, 0, 0)[0]] * 2
    for _ in plan:
        break
    assert plan.epoch == 0
    assert list(first) == shuffled(9, 0, 0)[1:]
    assert plan.epoch == 1
    assert list(second) == shuffled(9, 0, 0)[1:]
    assert plan.epoch == 1  # a second pass over the old epoch does not move the new one on


# Adapting torch samplers.


@pytest.mark.parametrize(
    "sampler",
    [
        SequentialSampler(range(7)),
        random_sampler(),
        RandomSampler(range(7), replacement=True, num_samples=20, generator=seeded()),
        SubsetRandomSampler([1, 5, 2], generator=seeded()),
        WeightedRandomSampler([1.0] * 7, 12, generator=seeded()),
        [3, 1, 3],
        torch.tensor([3, 1, 3]),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_sampler_is_drained_as_it_stands(sampler):
    own_generator = getattr(sampler, "generator", None)
    if own_generator is not None:
        own_generator.manual_seed(5)
    expected = [int(i) for i in sampler]
    if own_generator is not None:
        own_generator.manual_seed(5)
    plan = as_index_plan(sampler, 7)
    assert plan.epoch_indices().tolist() == expected
    assert len(plan) == len(expected)


def test_numpy_integers_are_integers():
    numpy = pytest.importorskip("numpy")
    assert as_index_plan(list(numpy.array([2, 0], dtype=numpy.int32)), 3).epoch_indices().tolist() == [2, 0]


def test_the_epoch_is_passed_on():
    sampler = DistributedSampler(range(9), num_replicas=1, rank=0)
    plan = as_index_plan(sampler, 9)
    orders = []
    for epoch in (0, 1, 0):
        plan.set_epoch(epoch)
        assert sampler.epoch == epoch
        orders.append(plan.epoch_indices().tolist())
    assert orders[0] == orders[2] != orders[1]


def test_a_sampler_is_asked_once_per_epoch():
    sampler = EpochSampler(5)
    plan = SamplerPlan(sampler, 5)
    assert sampler.passes == 0
    for _ in range(3):
        plan.epoch_indices()
    assert sampler.passes == 1
    plan.set_epoch(1)
    plan.epoch_indices()
    assert sampler.passes == 2


def test_a_plan_is_taken_as_it_is():
    plan = ShufflePlan(5)
    assert as_index_plan(plan, 5) is plan
    with pytest.raises(DataError, match=r"made for 5 samples, but the data set has 6; make it as ShufflePlan\(6"):
        as_index_plan(plan, 6)


class Endless(Sampler[int]):
    def __iter__(self):
        return itertools.cycle([0, 1])


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ([0, 7], "list gave index 7 at position 1, but the data set has 7 samples"),
        ([0, -1], "index -1 at position 1"),
        ([0, 1.5], r"gave 1.5 \(a float\) at position 1"),
        ([1.0, 2.0], r"gave 1.0 \(a float\) at position 0"),
        ([True, False], r"gave True \(a bool\) at position 0"),
        ([[0, 1], [2, 3]], r"gave \[0, 1\] \(a list\) at position 0"),
        ([[0, 1], [2]], r"\(a list\) at position 0"),
        (["a"], r"gave 'a' \(a str\)"),
        ([None], r"\(a NoneType\)"),
        (Endless(), "Endless gave more than 700 indices .* does not end"),
    ],
)
def test_bad_indices_are_refused_where_they_stand(sampler, message):
    plan = as_index_plan(sampler, 7)
    with pytest.raises(DataError, match=message):
        plan.epoch_indices()


def test_a_bad_index_far_in_is_found():
    with pytest.raises(DataError, match=r"gave 0.5 \(a float\) at position 70000"):
        as_index_plan([0] * 70_000 + [0.5], 1000).epoch_indices()


def test_unsuitable_samplers_are_refused_at_once():
    with pytest.raises(DataError, match=r"pass its \.sampler"):
        as_index_plan(BatchSampler(SequentialSampler(range(7)), 2, False), 7)
    with pytest.raises(DataError, match="a int is no sampler"):
        as_index_plan(5, 7)
    with pytest.raises(ConfigError, match="DistributedSampler gives each rank its own share"):
        as_index_plan(DistributedSampler(range(7), num_replicas=2, rank=0), 7)


@pytest.mark.parametrize("num_samples", [0, -1, 2.0, True, None, "5"])
def test_impossible_sizes(num_samples):
    for make in (ShufflePlan, SequentialPlan, lambda n: SamplerPlan([0], n)):
        with pytest.raises(ConfigError, match="num_samples is"):
            make(num_samples)


def test_impossible_epochs_and_seeds():
    for plan in (ShufflePlan(3), SamplerPlan([0], 3)):
        for epoch in (-1, 1.0, True, None):
            with pytest.raises(ConfigError, match="epoch is"):
                plan.set_epoch(epoch)
        assert plan.epoch == 0
    with pytest.raises(ConfigError, match="seed is 'a'"):
        ShufflePlan(3, seed="a")


def test_a_state_of_another_plan_changes_nothing():
    plan = ShufflePlan(7, seed=3)
    plan.set_epoch(4)
    good = plan.state_dict()
    for change, message in [({"seed": 4}, "seed=4 but this one has seed=3"), ({"num_samples": 8}, "num_samples=8")]:
        with pytest.raises(ConfigError, match=message):
            plan.load_state_dict({**good, **change})
    with pytest.raises(ConfigError, match="epoch is -1"):
        plan.load_state_dict({**good, "epoch": -1})
    with pytest.raises(ConfigError, match="lacks num_samples, epoch"):
        plan.load_state_dict({"seed": 3})
    assert plan.state_dict() == good


def test_a_sampler_state_of_another_kind_changes_nothing():
    with_generator, without = SamplerPlan(random_sampler(), 7), SamplerPlan([1, 2], 7)
    own_state = SamplerPlan(EpochSampler(7), 7)
    for plan, other, message in [
        (without, with_generator, "only one of them has a generator"),
        (with_generator, without, "only one of them has a generator"),
        (without, own_state, "only one of them has a state"),
    ]:
        other.set_epoch(3)
        with pytest.raises(ConfigError, match=message):
            plan.load_state_dict(other.state_dict())
        plan.set_epoch(0)


def epochs_of_all_plans(rank: int):
    return {name: [next_epoch(make()) for _ in range(2)] for name, make in MAKERS.items()}


def test_two_ranks_plan_alike():
    here = epochs_of_all_plans(0)
    there = check_ranks_agree(epochs_of_all_plans)
    assert all(torch.equal(here[n][1]["indices"], there[n][1]["indices"]) for n in MAKERS)
