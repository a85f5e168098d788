import math

import pytest
import torch

from scrimp.errors import DataError
from scrimp.samples import MeanThreshold, UpperConfidenceBound
from scrimp.samples.scores import ScoreStore, packed, unpacked
from scrimp.testing import check_stateful


def observe(store, index, scores):
    store.observe(torch.tensor(index), torch.tensor(scores))


def test_scores_are_rounded_and_dated():
    store = ScoreStore(5, MeanThreshold(), 10)
    observe(store, [3, 1], [1.001, 2.0])
    assert store.tracks.isnan().all()
    store.commit(4)
    assert store.tracks.dtype == torch.bfloat16
    assert store.tracks[0, [1, 3]].tolist() == [2.0, 1.0]
    assert store.tracks[0, [0, 2, 4]].isnan().all()
    assert store.last_visit.tolist() == [-1, 4, -1, 4, -1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_not_finite_leaves_the_score_and_is_counted(bad):
    store = ScoreStore(3, MeanThreshold(), 10)
    observe(store, [0, 1], [5.0, 6.0])
    store.commit(0)
    observe(store, [0, 2], [bad, bad])
    assert (store.num_nonfinite, store.count_nonfinite()) == (0, 2)
    store.commit(1)
    assert store.count_nonfinite() == 2
    assert store.tracks[0, :2].tolist() == [5, 6]
    assert store.tracks[0, 2].isnan()
    assert store.num_nonfinite == 2
    assert store.last_visit.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_dtype(dtype):
    store = ScoreStore(2, MeanThreshold(), 10)
    store.observe(torch.tensor([1, 0]), torch.tensor([0.5, 4.0], dtype=dtype))
    store.commit(0)
    assert store.tracks[0].tolist() == [4, 0.5]


def test_a_sample_that_was_not_planned_is_refused():
    store = ScoreStore(5, MeanThreshold(), 10)
    observe(store, [3, 1], [1.0, 1.0])
    with pytest.raises(DataError, match="sample 3, which epoch 2 does not visit"):
        store.commit(2, torch.tensor([0, 1]))


def test_four_bytes_per_sample_between_epochs():
    store = ScoreStore(1000, MeanThreshold(), 200)
    observe(store, list(range(1000)), [1.0] * 1000)
    store.commit(0)
    held = [value for value in vars(store).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == 4 * 1000


def test_long_runs_count_epochs_in_32_bits():
    assert ScoreStore(2, MeanThreshold(), 40_000).last_visit.dtype == torch.int32


def test_packed_scores_come_back_to_the_bit():
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    index = torch.arange(len(values)) + 2**40
    numbers = packed(index, values)
    assert torch.equal(numbers >> 16, index)
    assert torch.equal(unpacked(numbers).view(torch.int16), values.view(torch.int16))


def test_the_shared_suite():
    def step(store):
        """A batch; every other time the epoch ends."""
        store.steps = getattr(store, "steps", int((store.last_visit.max() + 1) * 2 + (store.fresh() is not None)))
        observe(store, [store.steps % 5, (store.steps + 2) % 5], [float(store.steps), math.nan])
        store.steps += 1
        if store.steps % 2 == 0:
            store.commit(store.steps // 2 - 1)
        return {"scores": store.tracks, "nonfinite": store.num_nonfinite}

    check_stateful(lambda: ScoreStore(5, UpperConfidenceBound(0.5), 10), step, num_steps=5)
