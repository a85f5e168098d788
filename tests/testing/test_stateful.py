import math
import random

import numpy as np
import pytest
import torch

from scrimp.testing import (
    assert_same_state,
    check_global_rng_untouched,
    check_resume,
    check_round_trip,
    check_stateful,
    copy_state,
)


class Walk:
    """A random walk: a tensor, a counter and a generator. Right in every respect; the others each break one thing."""

    def __init__(self) -> None:
        self.place, self.count, self.generator = torch.zeros(3), 0, torch.Generator().manual_seed(0)

    def advance(self):
        self.count += 1
        self.place = self.place + torch.randn(3, generator=self.generator)
        return {"place": self.place, "count": self.count}

    def state_dict(self):
        return {"place": self.place, "count": self.count, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.place, self.count = state["place"], state["count"]
        self.generator.set_state(state["generator"])


class ForgetsItsGenerator(Walk):
    def state_dict(self):
        return {"place": self.place, "count": self.count}

    def load_state_dict(self, state):
        self.place, self.count = state["place"], state["count"]


class LoadsOnlyHalf(Walk):
    def load_state_dict(self, state):
        self.place = state["place"]
        self.generator.set_state(state["generator"])


class HoldsAnObject(Walk):
    def state_dict(self):
        return {**super().state_dict(), "inner": {"rng": random.Random(0)}}


class RoundsOff(Walk):
    def state_dict(self):
        return {**super().state_dict(), "place": self.place.to(torch.bfloat16)}

    def load_state_dict(self, state):
        super().load_state_dict({**state, "place": state["place"].float()})


class DrawsGlobally(Walk):
    def advance(self):
        torch.rand(())
        return super().advance()


class SeedsGloballyOnLoading(Walk):
    def load_state_dict(self, state):
        np.random.seed(0)  # noqa: NPY002, TID251 - the offence
        super().load_state_dict(state)


class IsNotDeterministic(Walk):
    num_made = 0

    def __init__(self) -> None:
        super().__init__()
        IsNotDeterministic.num_made += 1
        self.generator.manual_seed(IsNotDeterministic.num_made)


def advance(walk):
    return walk.advance()


def test_a_right_object_passes():
    check_stateful(Walk, advance)
    check_stateful(Walk, advance, num_steps=1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForgetsItsGenerator, "step 2 of a run resumed after step 1 differs at 'place': 3 of 3 values"),
        (LoadsOnlyHalf, "the state that was loaded after 1 steps differs at 'count': 0 instead of 1"),
        (HoldsAnObject, "'inner/rng': it is a Random"),
        (RoundsOff, "step . of a run resumed after step . differs at 'place'"),
        (DrawsGlobally, "the state of the global random generators differs at 'torch'"),
        (SeedsGloballyOnLoading, "the state of the global random generators differs at 'numpy"),
        (IsNotDeterministic, "of a second, uninterrupted run differs at 'place'"),
    ],
)
def test_each_check_can_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_stateful(broken, advance)


def test_which_check_finds_what():
    check_round_trip(ForgetsItsGenerator, advance)  # a state that is too small survives a round trip
    with pytest.raises(AssertionError):
        check_resume(ForgetsItsGenerator, advance)
    with pytest.raises(AssertionError, match="'inner/rng'"):
        check_round_trip(HoldsAnObject, advance)
    check_resume(DrawsGlobally, advance)


@pytest.mark.parametrize(
    ("action", "name"),
    [
        (lambda: torch.rand(1), "torch"),
        (random.random, "python/words"),
        (np.random.rand, "numpy/"),
    ],
)
def test_each_global_generator_is_watched(action, name):
    check_global_rng_untouched(lambda: None)
    with pytest.raises(AssertionError, match=f"the state of the global random generators differs at '{name}"):
        check_global_rng_untouched(action)


def test_a_copy_is_the_same_and_shares_nothing():
    state = {
        "a": [1, 2.5, None, True, "x", (1, 2)],
        3: {"b": torch.arange(4.0), "c": torch.zeros(0, 2), "d": torch.tensor(7)},
        "e": torch.randn(2, 3, 4, 4, generator=torch.Generator()).contiguous(memory_format=torch.channels_last),
        "nan": math.nan,
    }
    copy = copy_state(state)
    assert_same_state(copy, state)
    copy[3]["b"].add_(1)
    assert state[3]["b"].tolist() == [0, 1, 2, 3]
    assert_same_state(copy_state(torch.arange(3)), torch.arange(3))
    with pytest.raises(AssertionError, match="'f/0': it is a set"):
        copy_state({"f": [{1, 2}]})


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, r"'.': keys missing \['b'\], added \[\]"),
        ({"a": {"c": 1, 2: 3}}, {"a": {"c": 1}}, r"'a': keys missing \[\], added \[2\]"),
        ({"a": [1, 2]}, {"a": [1]}, "'a': 2 items instead of 1"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "'a/1': 2 instead of 3"),
        ({"a": (1,)}, {"a": [1]}, r"\(tuple\) instead of .* \(list\)"),
        ({"a": 1}, {"a": True}, r"\(int\) instead of True \(bool\)"),
        ({"a": 1}, {"a": 1.0}, r"\(int\) instead of 1.0 \(float\)"),
        (torch.zeros(2), [0.0, 0.0], r"\(Tensor\) instead of"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "float32 .* instead of torch.float64"),
        (torch.zeros(2, 1), torch.zeros(2), r"\(2, 1\) instead of torch.float32 \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.5, 2.5]), "2 of 3 .* flat index 1: 1.0 instead of 1.5"),
        (torch.tensor(0.0), torch.tensor(-0.0), "0.0 instead of -0.0"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "index 1: False instead of True"),
    ],
)
def test_the_first_difference_is_named(actual, expected, message):
    with pytest.raises(AssertionError, match=f"the thing differs at .*{message}"):
        assert_same_state(actual, expected, "the thing")


def test_same_values_in_other_clothes_are_the_same():
    assert_same_state(torch.nn.Parameter(torch.ones(2)), torch.ones(2))
    assert_same_state(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert_same_state(torch.zeros(0, 3), torch.zeros(0, 3))
    assert_same_state(torch.arange(6).view(2, 3).t(), torch.arange(6).view(2, 3).t().contiguous())
