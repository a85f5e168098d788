"""The pruner in other people's loaders: which loss belongs to which sample, and what is refused."""

import copy
import pickle
import sys
import types

import pytest
import torch
from tests.reference.pruned_loops import Numbered, NumberedInBatches, collate_dicts, loss_of, train_epoch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

import scrimp
from scrimp.errors import ConfigError, DataError, NoEffectWarning
from scrimp.samples import Budget, DynamicRandom

LOADERS = {
    "plain": {},
    "drop last": {"drop_last": True},
    "workers": {"num_workers": 2},
    "workers, drop last": {"num_workers": 2, "drop_last": True},
    "persistent": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn"},
    "collate": {"collate_fn": collate_dicts},
}


def check_scores(pruner, seen, epoch):
    """Exactly the samples seen in ``epoch`` have its loss as their score."""
    pruner.set_epoch(epoch + 1)
    scores, visits = pruner._planner.scores.tracks[0], pruner._planner.scores.last_visit
    assert sorted(seen) == (visits == epoch).nonzero().flatten().tolist()
    assert torch.equal(scores[seen].float(), loss_of(torch.tensor(seen), epoch))


@pytest.mark.parametrize("name", LOADERS)
def test_every_loss_finds_its_sample(name):
    num_epochs = 3 if name == "spawn" else 8
    pruner = scrimp.InfoBatch(43, num_epochs, seed=2)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, **LOADERS[name])
    for epoch in range(num_epochs):
        if name == "persistent":  # whose loader does not tell that the loop is over
            pruner.set_epoch(epoch)
        assert pruner.epoch == epoch
        num_batches, planned = len(loader), pruner.epoch_indices().tolist()
        seen, losses = train_epoch(pruner, loader, epoch)
        assert len(losses) == num_batches
        assert seen == planned[: len(seen)]
        assert len(seen) == (len(planned) // 5 * 5 if loader.drop_last else len(planned))
        scores = pruner._planner.scores.fresh()
        assert torch.equal(scores[seen].float(), loss_of(torch.tensor(seen), epoch))
        if epoch in (0, num_epochs - 1):
            assert len(planned) == 43
    assert pruner.epoch == num_epochs - (name == "persistent")
    assert pruner.run_report().num_visits < 43 * num_epochs


@pytest.mark.parametrize(
    "data", [NumberedInBatches(43), Subset(Numbered(90), range(43)), Subset(NumberedInBatches(43), range(43))]
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_data_set(data, num_workers):
    pruner = scrimp.SamplePruner(43, 5, Budget(0.5))
    loader = DataLoader(data, batch_size=8, sampler=pruner, num_workers=num_workers)
    for epoch in range(3):
        seen, _ = train_epoch(pruner, loader, epoch)
    check_scores(pruner, seen, 2)


def test_a_batch_sampler_of_ones_own():
    pruner = scrimp.InfoBatch(43, 5)
    loader = DataLoader(Numbered(43), batch_sampler=BatchSampler(pruner, 5, drop_last=False))
    for epoch in range(5):
        seen, _ = train_epoch(pruner, loader, epoch)
    check_scores(pruner, seen, 4)


def test_without_batches():
    """batch_size=None: single samples, gathered by the loop."""
    pruner = scrimp.InfoBatch(10, 5)
    loader = DataLoader(Numbered(10), batch_size=None, sampler=pruner)
    for epoch in range(4):
        indices = [index for index, _ in loader]
        for part in torch.tensor(indices).split(3):
            pruner.reduce(loss_of(part, epoch))
    check_scores(pruner, indices, 3)


def test_persistent_workers_without_set_epoch():
    pruner = scrimp.InfoBatch(43, 8)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, num_workers=2, persistent_workers=True)
    lengths = [len(train_epoch(pruner, loader, epoch)[0]) for epoch in range(8)]
    assert lengths[0] == lengths[7] == 43
    assert max(lengths[1:7]) < 43
    assert pruner._epoch == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_len_within_the_last_batch_is_still_of_this_epoch(num_workers):
    pruner = scrimp.SamplePruner(40, 8, DynamicRandom(0.5), num_full_first=1)
    loader = DataLoader(Numbered(40), batch_size=8, sampler=pruner, num_workers=num_workers)
    for epoch, steps in enumerate([5, 3, 3]):
        num_last = 0
        for step, (index, _) in enumerate(loader):
            pruner.reduce(loss_of(index, epoch))
            assert pruner.epoch == epoch
            num_last += step + 1 == len(loader) == steps
        assert num_last == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lookahead_of_one_batch(num_workers):
    """As Accelerate's loader: the next batch is fetched before this one is trained."""
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, num_workers=num_workers)

    def ahead(batches):
        iterator = iter(batches)
        current = next(iterator)
        for following in iterator:
            yield current
            current = following
        yield current

    for epoch in range(3):
        seen, _ = train_epoch(pruner, ahead(loader), epoch)
        assert pruner.epoch == epoch + 1
    check_scores(pruner, seen, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_of_a_batch(num_workers):
    """Gradient accumulation: each batch in three parts; the last batch, dropped, is larger than a part."""
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(Numbered(43), batch_size=12, sampler=pruner, num_workers=num_workers, drop_last=True)
    for epoch in range(3):
        seen = []
        for index, _ in loader:
            for part in index.split(4):
                pruner.reduce(loss_of(part, epoch))
            seen += index.tolist()
        assert pruner.epoch == epoch + 1
    check_scores(pruner, seen, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_samples", [43, 500])
def test_a_pass_that_is_left_begins_again(num_workers, num_samples):
    pruner = scrimp.InfoBatch(num_samples, 6)
    loader = DataLoader(Numbered(num_samples), batch_size=5, sampler=pruner, num_workers=num_workers)
    train_epoch(pruner, loader, 0)
    planned = pruner.epoch_indices().tolist()
    next(iter(loader))  # a look at the data
    assert sum(len(index) for index, _ in loader) == len(planned)  # a sanity pass
    seen, _ = train_epoch(pruner, loader, 1, stop_after=3)
    assert seen == planned[: len(seen)]
    assert pruner.epoch == 1
    seen, _ = train_epoch(pruner, loader, 1)
    assert seen == planned
    check_scores(pruner, seen, 1)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("by_index", [False, True])
def test_a_break_after_everything_was_drawn_ahead_repeats_the_plan(by_index, persistent):
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(
        Numbered(43), batch_size=5, sampler=pruner, num_workers=2, prefetch_factor=5, persistent_workers=persistent
    )

    def train(stop_after):
        seen = []
        for number, (index, _) in enumerate(loader):
            if number == stop_after:
                break
            pruner.reduce(loss_of(index, 0), **({"index": index} if by_index else {}))
            seen += index.tolist()
        return seen

    whole = pruner.epoch_indices().tolist()
    for _ in range(3):
        assert train(3) == whole[:15]
    assert pruner.epoch == 0
    assert train(None) == whole
    assert len(train(None)) < 43
    pruner.set_epoch(1)
    assert pruner._planner.scores.last_visit.tolist() == [0] * 43


def test_a_break_in_the_last_batch_cannot_be_told_from_a_batch_left_out():
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner)
    train_epoch(pruner, loader, 0, stop_after=8)
    with pytest.raises(DataError, match=r"only 40.*restart_epoch"):
        next(iter(loader))
    pruner.restart_epoch()
    assert len(train_epoch(pruner, loader, 0)[0]) == 43


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_left_out_before_a_break_is_noticed(num_workers):
    pruner = scrimp.InfoBatch(100, 6)
    loader = DataLoader(Numbered(100), batch_size=5, sampler=pruner, num_workers=num_workers)
    for number, (index, _) in enumerate(loader):
        if number == 6:
            break
        if number != 2:
            pruner.reduce(loss_of(index, 0))
    with pytest.raises(DataError, match="batches were left out"):
        next(iter(loader))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("look", ["next", "list", "held", "after"])
def test_a_second_iterator_inside_the_loop_is_refused(look, num_workers):
    pruner = scrimp.InfoBatch(100, 6)
    loader = DataLoader(Numbered(100), batch_size=5, sampler=pruner, num_workers=num_workers)
    numbers = []

    def train():
        for number, (index, _) in enumerate(loader):
            numbers.append(number)
            if number == 3 and look == "next":
                next(iter(loader))
            if number == 3 and look == "list":
                list(loader)
            if number == 3 and look == "held":
                second = iter(loader)
                next(second)
            pruner.reduce(loss_of(index, 0))
            if number == 3 and look == "after":
                next(iter(loader))

    with pytest.raises(ConfigError, match=r"second iterator of the loader.*index="):
        train()
    assert numbers[-1] == (3 if look in {"next", "list"} else 4)


def test_an_iterator_that_is_only_held_does_no_harm():
    """As in tutorials: images, labels = next(data_iterator), which stays a variable."""
    pruner = scrimp.InfoBatch(100, 6)
    loader = DataLoader(Numbered(100), batch_size=5, sampler=pruner, num_workers=2)
    held = iter(loader)
    next(held)
    for epoch in range(3):
        seen, _ = train_epoch(pruner, loader, epoch)
    check_scores(pruner, seen, 2)
    assert next(held) is not None


class SortedInWindows(BatchSampler):
    """Batches of similar samples: a common way to pad less."""

    def __iter__(self):
        window = []
        for batch in super().__iter__():
            window += batch
        window.sort()
        yield from (window[begin : begin + 5] for begin in range(0, len(window), 5))


class SortedSamples:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(sorted(self.sampler))

    def __len__(self):
        return len(self.sampler)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["batches", "samples"])
def test_a_sampler_in_between_that_may_reorder_is_refused(kind, num_workers):
    pruner = scrimp.InfoBatch(40, 6)
    if kind == "batches":
        loader = DataLoader(Numbered(40), batch_sampler=SortedInWindows(pruner, 5, False), num_workers=num_workers)
    else:
        loader = DataLoader(Numbered(40), batch_size=5, sampler=SortedSamples(pruner), num_workers=num_workers)
    for index, _ in loader:
        with pytest.raises(ConfigError, match=r"stands between this sampler and the DataLoader.*index="):
            pruner.reduce(loss_of(index, 0))
        pruner.reduce(loss_of(index, 0), index=index)
    check_scores(pruner, range(40), 0)


def test_a_batch_sampler_that_only_has_another_name_is_not_refused():
    class Mine(BatchSampler):
        pass

    pruner = scrimp.InfoBatch(43, 5)
    loader = DataLoader(Numbered(43), batch_sampler=Mine(pruner, 5, drop_last=False))
    for epoch in range(2):
        seen, _ = train_epoch(pruner, loader, epoch)
    check_scores(pruner, seen, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pruner: pickle.loads(pickle.dumps(pruner))])
def test_a_copy_in_the_middle_of_an_epoch_repeats_it(copied):
    pruner = scrimp.InfoBatch(43, 5)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, num_workers=2)
    batches = iter(loader)
    pruner.reduce(loss_of(next(batches)[0], 0))
    other = copied(pruner)
    seen, _ = train_epoch(other, DataLoader(Numbered(43), batch_size=5, sampler=other), 0)
    assert seen == pruner.epoch_indices().tolist()
    check_scores(other, seen, 0)


def test_more_epochs_than_the_pruner_was_made_for_are_told():
    pruner = scrimp.InfoBatch(10, 4)
    loader = DataLoader(Numbered(10), batch_size=5, sampler=pruner)
    for epoch in range(4):
        train_epoch(pruner, loader, epoch)
    with pytest.warns(NoEffectWarning, match="epoch 4 is beyond num_epochs=4"):
        train_epoch(pruner, loader, 4)


def test_set_epoch_repeats_and_skips():
    pruner = scrimp.InfoBatch(43, 8)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        pruner.set_epoch(epoch)
        train_epoch(pruner, loader, epoch, stop_after=3 if epoch == 1 else None)
    assert pruner.epoch == 3
    assert (pruner._planner.scores.last_visit == 1).sum() <= 15
    pruner.set_epoch(7)
    assert len(pruner) == 43
    assert pruner.epoch_weights() is None


# What is refused.


def test_more_losses_than_samples():
    pruner = scrimp.InfoBatch(20, 5)
    with pytest.raises(DataError, match="it handed out none"):
        pruner.reduce(torch.ones(4))
    batches = iter(DataLoader(Numbered(20), batch_size=4, sampler=pruner))
    next(batches)
    pruner.reduce(torch.ones(4))
    with pytest.raises(DataError, match=r"4 losses came, but only 0 samples are out.*index="):
        pruner.reduce(torch.ones(4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_losses_of_tokens_in_one_row(num_workers):
    """Workers have drawn far ahead, so that the count of samples alone would let them pass."""
    pruner = scrimp.InfoBatch(400, 5)
    loader = DataLoader(Numbered(400), batch_size=4, sampler=pruner, num_workers=num_workers)
    index, _ = next(batches := iter(loader))
    with pytest.raises(DataError, match=r"12 losses came, but only 4 .*losses.view\(4, 3\).*mask="):
        pruner.reduce(torch.ones(12))
    with pytest.raises(DataError, match=r"one integer per sample \(if .*losses.view\(4, 3\)"):
        pruner.reduce(torch.ones(12), index=index)
    del batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_that_is_left_out(num_workers):
    pruner = scrimp.InfoBatch(40, 5)
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner, num_workers=num_workers)
    for number, (index, _) in enumerate(loader):
        if number != 3:
            pruner.reduce(loss_of(index, 0))
    with pytest.raises(DataError, match=r"handed out to the loop, but losses came back for only 35.*index="):
        list(loader)


def test_every_other_batch():
    """A wrapper that gives each of two processes half of the batches, without saying so."""
    pruner = scrimp.InfoBatch(40, 5)
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner)
    train_epoch(pruner, (batch for number, batch in enumerate(loader) if number % 2), 0)
    with pytest.raises(DataError, match="drops or shards them"):
        list(loader)


class BatchSamplerShard:
    """As Accelerate's, to the eye."""

    num_processes, process_index, batch_size, drop_last = 2, 0, 5, False

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        for number, batch in enumerate(self.batch_sampler):
            if number % 2 == 0:
                yield batch


def test_sharding_by_accelerate_is_seen_at_once():
    pruner = scrimp.InfoBatch(40, 5)
    loader = DataLoader(Numbered(40), batch_sampler=BatchSamplerShard(BatchSampler(pruner, 5, drop_last=False)))
    index, _ = next(iter(loader))
    with pytest.raises(ConfigError, match=r"BatchSamplerShard deals.*index="):
        pruner.reduce(torch.ones(5))
    pruner.reduce(torch.ones(5), index=index)


def test_progress_where_a_wrapper_deals_batches_out():
    """This process trains half of the epoch's batches, and the other half is trained elsewhere."""
    pruner = scrimp.InfoBatch(40, 5, rank=0, world_size=1)
    loader = DataLoader(Numbered(40), batch_sampler=BatchSamplerShard(BatchSampler(pruner, 5, drop_last=False)))
    seen = []
    for index, _ in loader:
        pruner.reduce(loss_of(index, 0), index=index)
        seen.append(pruner.epoch_progress)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_a_share_of_a_share_is_refused():
    pruner = scrimp.InfoBatch(40, 5, rank=0, world_size=2)
    loader = DataLoader(Numbered(40), batch_sampler=BatchSamplerShard(BatchSampler(pruner, 5, drop_last=False)))
    with pytest.raises(ConfigError, match=r"already gives each process its own share.*world_size=1"):
        next(iter(loader))


def test_out_of_order_loaders():
    pruner = scrimp.InfoBatch(40, 5)
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner, num_workers=2, in_order=False)
    for number, (index, _) in enumerate(loader):
        if number == 0:
            with pytest.raises(ConfigError, match=r"in_order=False.*index="):
                pruner.reduce(loss_of(index, 0))
        pruner.reduce(loss_of(index, 0), index=index)
    check_scores(pruner, range(40), 0)


def test_losses_that_never_come():
    pruner = scrimp.InfoBatch(40, 5)
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner)
    list(loader)
    list(loader)
    with pytest.raises(ConfigError, match="brought no losses"):
        list(loader)


def test_data_sets_that_cannot_be_pruned():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    with pytest.raises(ConfigError, match="IterableDataset decides for itself"):
        scrimp.InfoBatch(Stream(), 5)
    with pytest.raises(ConfigError, match="give its length"):
        scrimp.InfoBatch(Numbered(3), 5)
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(), sampler=scrimp.InfoBatch(3, 5))


# By index.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_by_index_any_order_will_do(num_workers):
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, num_workers=num_workers)
    for epoch in range(6):
        assert pruner.epoch == epoch
        seen = []
        for index, _ in reversed(list(loader)):
            pruner.reduce(loss_of(index, epoch), index=index)
            seen += index.tolist()
        if epoch < 5:
            assert pruner.epoch == epoch + 1
    check_scores(pruner, seen, 5)


def test_by_index_with_half_of_the_batches():
    pruner = scrimp.InfoBatch(43, 6)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner)
    for epoch in range(3):
        for number, (index, _) in enumerate(loader):
            if number % 2:
                pruner.reduce(loss_of(index, epoch), index=index)
    assert pruner._epoch == 2


def test_by_index_without_a_loader():
    """Groups of the plan's own samples."""
    pruner = scrimp.InfoBatch(43, 6)
    for epoch in range(3):
        pruner.set_epoch(epoch)
        index = pruner.epoch_indices().sort().values
        for group in index.split(7):
            pruner.reduce(loss_of(group, epoch), index=group)
    check_scores(pruner, index.tolist(), 2)


def test_by_order_or_by_index_but_not_both():
    pruner = scrimp.InfoBatch(20, 5)
    batches = iter(DataLoader(Numbered(20), batch_size=4, sampler=pruner))
    index = next(batches)[0]
    pruner.reduce(torch.ones(4), index=index)
    next(batches)
    with pytest.raises(DataError, match="now lacks index"):
        pruner.reduce(torch.ones(4))
    pruner.restart_epoch()
    batches = iter(DataLoader(Numbered(20), batch_size=4, sampler=pruner))
    next(batches)
    pruner.reduce(torch.ones(4))
    with pytest.raises(DataError, match="began without index="):
        pruner.reduce(torch.ones(4), index=index)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([1, 2, 20]), "values from 1 to 20"),
        (torch.tensor([-1, 2, 3]), "values from -1 to 3"),
        (torch.tensor([1, 2]), "one integer per sample"),
        (torch.tensor([1.0, 2, 3]), "one integer per sample"),
    ],
)
def test_an_index_has_to_fit(index, message):
    with pytest.raises(DataError, match=message):
        scrimp.InfoBatch(20, 5).reduce(torch.ones(3), index=index)


def test_a_sample_that_the_epoch_leaves_out():
    pruner = scrimp.SamplePruner(20, 5, DynamicRandom(0.5), num_full_first=0)
    left_out = min(set(range(20)) - set(pruner.epoch_indices().tolist()))
    assert pruner.reduce(torch.ones(1), index=torch.tensor([left_out])).isnan()
    with pytest.raises(DataError, match=f"sample {left_out}, which epoch 0 does not visit"):
        pruner.set_epoch(1)


def test_nothing_is_patched_or_wrapped():
    modules = set(sys.modules)
    before = {name: value for name, value in vars(torch.utils.data.dataloader).items() if not name.startswith("__")}
    pruner = scrimp.InfoBatch(20, 5)
    train_epoch(pruner, DataLoader(Numbered(20), batch_size=4, sampler=pruner), 0)
    assert before.items() <= vars(torch.utils.data.dataloader).items()
    assert not [module for module in set(sys.modules) - modules if module.startswith("accelerate")]
    assert isinstance(pruner.reduce, types.MethodType)


def test_losses_that_lack_in_one_batch_and_come_in_another_do_not_shift() -> None:
    """The sum is right, and without a look at each batch 33 of 40 losses would be another sample's."""
    pruner = scrimp.InfoBatch(40, num_epochs=8)
    loader = iter(DataLoader(torch.arange(40.0), batch_size=4, sampler=pruner))
    pruner.reduce(next(loader))
    pruner.reduce(next(loader)[:3])
    third = next(loader)
    with pytest.raises(DataError, match=r"4 losses of another batch came while 1 of the batch before are missing"):
        pruner.reduce(third)


def test_a_batch_may_come_back_in_parts() -> None:
    pruner = scrimp.InfoBatch(42, num_epochs=8)
    for batch in DataLoader(torch.arange(42.0), batch_size=4, sampler=pruner):
        for part in batch.split(3):
            pruner.reduce(part)
    assert pruner.epoch == 1
