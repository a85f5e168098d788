"""Two gloo ranks: the same plans and scores everywhere, equal steps, and a resume on another number of ranks."""

import pytest
import torch
from tests.reference.pruned_loops import Numbered, loss_of
from torch.utils.data import DataLoader

import scrimp
from scrimp._core import ranks
from scrimp.errors import ConfigError, DataError
from scrimp.samples import Budget, DynamicRandom, MeanThreshold, Quantiles, RePB, UpperConfidenceBound
from scrimp.testing import assert_same_state, check_ranks_agree, copy_state, run_ranks

NUM_SAMPLES, NUM_EPOCHS, GLOBAL_BATCH = 45, 5, 6
RULES = [MeanThreshold(), Budget(0.5), Quantiles(), RePB(), UpperConfidenceBound(0.5)]


def train(pruner, num_ranks, num_steps):
    """That many global steps; per step the samples of all ranks, and the loss over all of them."""
    loader = DataLoader(Numbered(NUM_SAMPLES), batch_size=GLOBAL_BATCH // num_ranks, sampler=pruner, drop_last=True)
    log = []
    while len(log) < num_steps:
        for index, _ in loader:
            loss = pruner.reduce(loss_of(index, pruner._epoch))
            log.append((pruner._epoch, index, loss))
            if len(log) == num_steps:
                break
    together = []
    for epoch, index, loss in log:
        samples = torch.cat(ranks.all_gather_ints(index)).sort().values
        together.append((epoch, samples, ranks.all_reduce_sum_(loss.double()) / num_ranks))
    return together


def whole_run(rank, rule_number, num_steps):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, RULES[rule_number])
    log = train(pruner, ranks.world_size(), num_steps)
    pruner.sync_scores()
    return {"log": log, "state": pruner.state_dict()}


def resumed_run(rank, rule_number, state, num_steps):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, RULES[rule_number])
    pruner.load_state_dict(state)
    return train(pruner, ranks.world_size(), num_steps)


def same_log(actual, expected):
    assert [(epoch, samples.tolist()) for epoch, samples, _ in actual] == [
        (epoch, samples.tolist()) for epoch, samples, _ in expected
    ]
    for (_, _, loss), (_, _, other) in zip(actual, expected, strict=True):
        assert float(loss) == pytest.approx(float(other), rel=1e-6)


@pytest.mark.parametrize("rule_number", range(2))
def test_two_ranks_agree_and_do_what_one_does(rule_number):
    """To the middle of an epoch; then on with one rank, and from one rank on with two."""
    two = check_ranks_agree(whole_run, rule_number, 16)
    one = whole_run(0, rule_number, 16)
    same_log(two["log"], one["log"])
    assert two["log"][-1][0] == 2 + rule_number
    assert two["state"]["fresh"] is not None
    assert_same_state(two["state"]["scores"], one["state"]["scores"])
    assert_same_state(two["state"]["fresh"], one["state"]["fresh"])

    whole = whole_run(0, rule_number, 22)["log"]
    same_log(one["log"] + resumed_run(0, rule_number, copy_state(two["state"]), 6), whole)
    same_log(one["log"] + check_ranks_agree(resumed_run, rule_number, one["state"], 6), whole)


# Sharded scores.


def both_kinds(rank, rule_number, num_steps):
    """The same training with and without shards, with and without index."""
    seen = {}
    for name, by_index in (("whole", False), ("shards", False), ("shards, index", True)):
        pruner = scrimp.SamplePruner(
            NUM_SAMPLES, NUM_EPOCHS, RULES[rule_number], shard_scores=name != "whole", scale="constant"
        )
        loader = DataLoader(Numbered(NUM_SAMPLES), batch_size=3, sampler=pruner)
        log = []
        while len(log) < num_steps:
            length = len(loader)
            for index, _ in loader:
                losses = loss_of(index, pruner._epoch)
                losses[index == 7] = torch.nan
                loss = pruner.reduce(losses, **({"index": index} if by_index else {}))
                log.append((pruner._epoch, length, index.tolist(), float(loss), pruner.epoch_progress))
        pruner.sync_scores()
        state = pruner.state_dict()
        report = {**pruner.epoch_report().to_dict(), "plan_seconds": 0}
        run = {**pruner.run_report().to_dict(), "pruning_seconds": 0, "num_nonfinite": 0}
        seen[name] = {"log": str(log), "state": state, "report": report, "run": run}
        if name != "whole":
            held = [*vars(pruner._planner.scores).values()]
            own = sum(value.numel() for value in held if isinstance(value, torch.Tensor) and value.dtype != torch.int64)
            assert own <= (2 + RULES[rule_number].num_tracks) * 24
    assert_same_state(seen["shards"], seen["whole"], "what is seen with sharded scores")
    assert_same_state(seen["shards, index"], seen["whole"], "what is seen with sharded scores, by index")
    return {"log": seen["whole"]["log"].count("nan"), "state": seen["whole"]["state"]}


@pytest.mark.parametrize("world_size", [2, 3])
def test_sharded_scores_do_what_whole_ones_do(world_size):
    """To the bit, for rules with thresholds, budgets, quantiles and several tracks."""
    run_ranks(all_kinds, world_size=world_size)


def all_kinds(rank):
    for rule_number in range(len(RULES)):
        both_kinds(rank, rule_number, 22)


def sharded_run(rank, rule_number, num_steps, state=None):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, RULES[rule_number], shard_scores=True)
    if state is not None:
        pruner.load_state_dict(copy_state(state))
        progress = pruner.epoch_progress
        assert progress > 0
    log = train(pruner, ranks.world_size(), num_steps)
    return {"log": log, "state": pruner.state_dict()}


@pytest.mark.parametrize("rule_number", range(2))
def test_a_sharded_state_goes_on_on_any_number_of_ranks(rule_number):
    """From one to two, three and back, with shards and without, from the middle of an epoch."""
    whole = whole_run(0, rule_number, 22)["log"]
    two = check_ranks_agree(sharded_run, rule_number, 16)
    same_log(two["log"], whole[:16])
    same_log(two["log"] + resumed_run(0, rule_number, two["state"], 6), whole)
    same_log(two["log"] + check_ranks_agree(resumed_run, rule_number, two["state"], 6), whole)
    for world_size in (2, 3):
        again = check_ranks_agree(sharded_run, rule_number, 6, two["state"], world_size=world_size)
        same_log(two["log"] + again["log"], whole)


def sharded_strays(rank):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, DynamicRandom(0.5), num_full_first=0, shard_scores=True)
    own = list(pruner)
    left_out = torch.tensor(sorted(set(range(NUM_SAMPLES)) - set(own)))[: 1 + rank]
    if rank == 1:
        pruner.reduce(torch.ones(2), index=left_out)
    try:
        pruner.set_epoch(1)
    except DataError as error:
        return str(error)
    return "nothing was noticed"


def test_a_stray_sample_is_an_error_on_every_rank_with_shards_too():
    assert "does not visit in this epoch" in check_ranks_agree(sharded_strays)


def what_sharding_refuses(rank):
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, shard_scores=True)
    messages = []
    for action in (
        pruner.epoch_indices,
        pruner.epoch_weights,
        lambda: scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, rank=0, world_size=1, shard_scores=True),
    ):
        try:
            action()
        except ConfigError as error:
            messages.append(str(error))
    return messages


def test_what_sharding_refuses():
    messages = check_ranks_agree(what_sharding_refuses)
    assert [message.split(":")[0][:40] for message in messages] == [
        "with shard_scores=True a rank keeps only",
        "with shard_scores=True a rank keeps only",
        "shard_scores=True shares scores and visi",
    ]


def test_on_one_process_there_is_nothing_to_shard():
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, shard_scores=True)
    assert len(pruner.epoch_indices()) == NUM_SAMPLES


# Whole scores.


def epoch_and_length(rank):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, Budget(0.5))
    loader = DataLoader(Numbered(NUM_SAMPLES), batch_size=5, sampler=pruner)
    seen = []
    for _ in range(2):
        for index, _ in loader:
            pruner.reduce(loss_of(index, pruner._epoch))
        seen.append((pruner.epoch, len(pruner)))
    pruner.sync_scores()
    resumed = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, Budget(0.5))
    resumed.load_state_dict(copy_state(pruner.state_dict()))
    return [*seen, (resumed.epoch, len(resumed))]


def test_after_a_loop_epoch_and_length_speak_of_the_same_epoch():
    assert check_ranks_agree(epoch_and_length) == [(0, 22), (1, 11), (2, 11)]


def save_without_sharing(rank):
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS)
    pruner.reduce(torch.ones(2), index=torch.tensor([rank, rank + 2]))
    pruner.state_dict()


def test_a_state_within_an_epoch_needs_the_other_ranks():
    with pytest.raises(AssertionError, match="call sync_scores"):
        run_ranks(save_without_sharing)


def plan_with_a_seed_of_its_own(rank):
    iter(scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, seed=rank))


def test_plans_that_differ_are_found():
    with pytest.raises(AssertionError, match="the plan of epoch 0 is not the same on all ranks"):
        run_ranks(plan_with_a_seed_of_its_own)


def save_a_plan_of_its_own(rank):
    """Planned without a loader, which would compare plans."""
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, seed=rank)
    index = pruner.epoch_indices()[rank::2]
    pruner.reduce(torch.ones(len(index)), index=index)
    pruner.sync_scores()


def test_plans_that_differ_are_refused_before_they_are_saved():
    with pytest.raises(AssertionError, match="the plan of epoch 0 is not the same on all ranks"):
        run_ranks(save_a_plan_of_its_own)


def count_collectives(rank):
    """Collectives within steps, and in going on to the next epoch."""
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS)
    calls = []
    gather = ranks.all_gather_ints
    ranks.all_gather_ints = lambda values: calls.append(values.dtype) or gather(values)
    batches = iter(DataLoader(Numbered(NUM_SAMPLES), batch_size=5, sampler=pruner))
    within = []
    for index, _ in batches:
        before = len(calls)
        pruner.reduce(loss_of(index, 0))
        within.append(len(calls) - before)
    before = len(calls)
    pruner.set_epoch(1)
    return {"within": within, "between": [str(dtype) for dtype in calls[before:]]}


def test_no_collective_per_step_and_one_gather_of_integers_per_epoch():
    result = check_ranks_agree(count_collectives)
    assert result["within"] == [0] * 5
    assert result["between"] == ["torch.int64"]


def index_of_another_sample(rank):
    pruner = scrimp.SamplePruner(NUM_SAMPLES, NUM_EPOCHS, Budget(0.5))
    for epoch in range(2):
        pruner.set_epoch(epoch)
        index = pruner.epoch_indices()[rank::2]
        if epoch == 1 and rank == 1:
            index = torch.tensor(sorted(set(range(NUM_SAMPLES)) - set(pruner.epoch_indices().tolist())))[:2]
        pruner.reduce(torch.ones(len(index)), index=index)
    try:
        pruner.set_epoch(2)
    except DataError as error:
        return str(error)
    return "nothing was noticed"


def test_a_stray_sample_is_an_error_on_every_rank():
    assert "which epoch 1 does not visit" in check_ranks_agree(index_of_another_sample)


def explicit_share(rank):
    """A wrapper shards by itself: the pruner hands out everything, and losses come with their index."""
    pruner = scrimp.InfoBatch(NUM_SAMPLES, NUM_EPOCHS, rank=0, world_size=1)
    loader = DataLoader(Numbered(NUM_SAMPLES), batch_size=5, sampler=pruner)
    for epoch in range(3):
        for number, (index, _) in enumerate(loader):
            if number % 2 == rank:
                pruner.reduce(loss_of(index, epoch), index=index)
    pruner.set_epoch(3)
    return pruner.state_dict()["scores"]


def test_sharding_from_outside_by_index():
    scores = check_ranks_agree(explicit_share)
    assert not scores.isnan().any()
