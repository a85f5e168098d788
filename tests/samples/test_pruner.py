"""Weights, losses, steps, schedules and reports."""

import math

import pytest
import torch
from tests.reference.pruned_loops import Numbered, loss_of, train_epoch
from torch.utils.data import DataLoader

import scrimp
from scrimp._core.index_plan import IndexPlan, as_index_plan
from scrimp.errors import ConfigError, DataError
from scrimp.samples import (
    Budget,
    DynamicRandom,
    MeanThreshold,
    OrderDP,
    Quantiles,
    Rule,
    StaticRandom,
    StaticTop,
    Visits,
)


def in_epoch(epoch, rule=None, num_samples=40, num_epochs=8, **settings):
    """A pruner that has learnt the scores 1, 2, ... in epoch 0."""
    pruner = scrimp.SamplePruner(num_samples, num_epochs, rule or MeanThreshold(), **settings)
    index = pruner.epoch_indices()
    pruner.reduce(index + 1.0, index=index)
    pruner.set_epoch(epoch)
    return pruner


def test_it_is_an_index_plan():
    pruner = scrimp.InfoBatch(40, 8)
    assert isinstance(pruner, IndexPlan)
    assert as_index_plan(pruner, 40) is pruner
    assert isinstance(pruner, torch.utils.data.Sampler)


def test_infobatch_is_the_pruner_with_the_rule_of_the_paper():
    ours = scrimp.InfoBatch(40, 8, prune_ratio=0.25, seed=5)
    other = scrimp.SamplePruner(40, 8, MeanThreshold(0.25), seed=5)
    assert ours.rule == other.rule
    for pruner in (ours, other):
        index = pruner.epoch_indices()
        pruner.reduce(index + 1.0, index=index)
        pruner.set_epoch(1)
    assert torch.equal(ours.epoch_indices(), other.epoch_indices())
    assert torch.equal(ours.epoch_weights(), other.epoch_weights())


def test_below_the_mean_half_is_left_out_and_the_rest_weighs_double():
    pruner = in_epoch(1)  # the mean is 20.5: samples 0 to 19 lie below
    index, weights = pruner.epoch_indices(), pruner.epoch_weights()
    assert set(range(20, 40)) <= set(index.tolist())
    assert len(index) == 30
    assert torch.equal(weights, torch.where(index < 20, 2.0, 1.0))


def test_the_first_and_the_last_epochs_are_full():
    for epoch in (0, 7, 8, 20):
        assert sorted(in_epoch(epoch).epoch_indices().tolist()) == list(range(40))
        assert in_epoch(epoch).epoch_weights() is None
    assert len(in_epoch(6).epoch_indices()) == 30


def test_orders_differ_by_seed_and_epoch_and_leave_global_generators_alone():
    before = torch.get_rng_state()
    orders = {tuple(in_epoch(epoch, seed=seed).epoch_indices().tolist()) for seed in (0, 1) for epoch in (0, 1, 2, 7)}
    assert len(orders) == 8
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", ["sum", "constant"])
def test_the_loss_is_the_weighted_mean(scale):
    pruner = in_epoch(1, scale=scale)
    index, weights = pruner.epoch_indices()[:8], pruner.epoch_weights()[:8]
    losses = torch.rand(8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = losses.detach().clone()
    loss = pruner.reduce(losses, index=index)
    factor = 1.0 if scale == "sum" else 30 / 40
    assert loss.item() == pytest.approx(float((weights * before).mean()) * factor, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(losses.grad, weights / 8 * factor)
    assert torch.equal(losses.detach(), before)


@pytest.mark.parametrize("scale", ["sum", "constant"])
@pytest.mark.parametrize("rule", [MeanThreshold(), Quantiles(), Budget(0.5), DynamicRandom(0.5)])
def test_what_an_epoch_of_sgd_sums_to(rule, scale):
    """Summed over batches: as the full data set's ("sum"), or that times visits / samples ("constant")."""
    totals, visits = [], 0
    for seed in range(300):
        pruner = in_epoch(1, rule, seed=seed, scale=scale)
        index = pruner.epoch_indices()
        visits = len(index)
        totals.append(float(pruner.reduce(index.double() ** 2, index=index)) * visits)
    expected = float((torch.arange(40.0) ** 2).sum()) * (1 if scale == "sum" else visits / 40)
    error = float(torch.tensor(totals).std()) / len(totals) ** 0.5
    assert abs(sum(totals) / len(totals) - expected) < 4 * error + 1e-3 * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_dtype(dtype):
    pruner = in_epoch(1)
    index = pruner.epoch_indices()
    losses = (index + 1).to(dtype).requires_grad_()
    loss = pruner.reduce(losses, index=index)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert losses.grad.dtype == dtype
    assert losses.grad.count_nonzero() == len(index)


def test_losses_whose_output_autograd_saved():
    """exp saves its output; weighting it in place would break its gradient."""
    pruner = in_epoch(1)
    index = pruner.epoch_indices()
    logs = torch.zeros(len(index), requires_grad=True)
    pruner.reduce(logs.exp(), index=index).backward()
    torch.testing.assert_close(logs.grad, pruner.epoch_weights() / len(index))


def test_tokens_with_a_mask():
    pruner = in_epoch(1)
    index, weights = pruner.epoch_indices()[:3], pruner.epoch_weights()[:3]
    losses = torch.arange(12.0).view(3, 4).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    loss = pruner.reduce(losses, index=index, mask=mask)
    per_token = weights.unsqueeze(1) * mask
    growth = 40 / len(pruner.epoch_indices())  # scale="sum"
    assert loss.item() == pytest.approx(float((per_token * losses.detach()).sum() / per_token.sum()) * growth)
    loss.backward()
    torch.testing.assert_close(losses.grad, per_token / per_token.sum() * growth)
    assert pruner._planner.scores.fresh()[index].tolist() == [0.5, 5.5, 11]


@pytest.mark.parametrize(("scale", "rule"), [("sum", MeanThreshold()), ("constant", Budget(0.5))])
@pytest.mark.parametrize("valid_per_sample", [None, 20.5])
def test_masked_losses_are_unbiased_where_lengths_go_with_losses(scale, rule, valid_per_sample):
    """Hard samples are long. The mean over many epochs meets the mean over all valid tokens (times the scale)."""
    lengths = torch.arange(40) + 1
    mask = torch.arange(40) < lengths.unsqueeze(1)
    losses = (lengths.unsqueeze(1) * mask).float()
    truth = float(losses.sum() / mask.sum())
    found = []
    for seed in range(400):
        pruner = in_epoch(1, rule, seed=seed, scale=scale)
        index = pruner.epoch_indices()
        loss = pruner.reduce(losses[index], mask=mask[index], index=index, valid_per_sample=valid_per_sample)
        found.append(float(loss) * (len(index) / 40 if scale == "sum" else 1))
    found = torch.tensor(found)
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / 20 + 0.003 * truth
    unweighted = float((losses[index].sum(1) * (pruner.epoch_weights())).sum() / mask[index].sum())
    assert abs(unweighted * (len(index) / 40 if scale == "sum" else 1) - truth) > 0.05 * truth


def test_a_mean_length_has_to_be_one():
    pruner = scrimp.InfoBatch(4, 8)
    index = pruner.epoch_indices()
    with pytest.raises(DataError, match="goes with mask="):
        pruner.reduce(torch.ones(4), index=index, valid_per_sample=2.0)
    with pytest.raises(DataError, match="valid_per_sample is 0"):
        pruner.reduce(torch.ones(4, 2), mask=torch.ones(4, 2), index=index, valid_per_sample=0)


def test_terms_of_a_detector():
    pruner = in_epoch(1)
    index, weights = pruner.epoch_indices()[:4], pruner.epoch_weights()[:4]
    terms = {name: torch.full((4,), value, requires_grad=True) for name, value in [("box", 1.0), ("class", 2.0)]}
    pruner.reduce(terms, index=index).backward()
    for term in terms.values():
        torch.testing.assert_close(term.grad, weights / 4)
    assert pruner._planner.scores.fresh()[index].tolist() == [3] * 4


def test_scores_other_than_the_loss():
    pruner = scrimp.InfoBatch(4, 8)
    index = pruner.epoch_indices()
    pruner.reduce(torch.ones(4), index=index, scores=index * 1.0)
    assert pruner._planner.scores.fresh().tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="scores have shape"):
        pruner.reduce(torch.ones(4), index=index, scores=torch.ones(3))


def test_a_loss_that_is_not_finite_keeps_the_former_score():
    pruner = in_epoch(1, num_samples=4)
    index = pruner.epoch_indices()
    pruner.reduce(torch.where(index == 3, math.nan, 7.0), index=index)
    assert pruner.run_report().num_nonfinite == 1  # the last epoch has no other to tell it
    pruner.set_epoch(2)
    assert pruner._planner.scores.tracks[0, 3] == 4
    assert pruner.run_report().num_nonfinite == 1
    assert len(pruner.epoch_indices()) < 4 or pruner.epoch_weights() is None


def test_samples_never_visited_are_left_out_of_the_mean():
    """Ten tiny losses, ninety samples never seen: half of the ten that lie below their own mean may go, no others."""
    pruner = scrimp.InfoBatch(100, 8)
    pruner.reduce(torch.arange(10.0) * 1e-4, index=torch.arange(10))
    pruner.set_epoch(1)
    assert len(pruner.epoch_indices()) in {97, 98}
    assert set(range(5, 100)) <= set(pruner.epoch_indices().tolist())


# Steps and schedules.


@pytest.mark.parametrize("rule", [Budget(0.6), DynamicRandom(0.3), StaticRandom(0.5)])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_epochs", [5, 8])
def test_total_steps_is_what_is_trained(rule, drop_last, num_epochs):
    pruner = scrimp.SamplePruner(43, num_epochs, rule)
    expected = pruner.total_steps(5, drop_last=drop_last)
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner, drop_last=drop_last)
    assert sum(len(train_epoch(pruner, loader, epoch)[1]) for epoch in range(num_epochs)) == expected


def test_total_steps_over_ranks_and_parts():
    pruner = scrimp.SamplePruner(100, 8, DynamicRandom(0.5), num_full_first=1)  # 2 full epochs, 6 of 50 visits
    assert pruner.total_steps(10) == 2 * 10 + 6 * 5
    assert pruner.total_steps(10, world_size=2) == 2 * 5 + 6 * 3
    assert pruner.total_steps(10, accumulation=4) == 2 * 3 + 6 * 2


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": 8, "accumulation": 0}, {"batch_size": 2.5}])
def test_total_steps_of_impossible_batches(sizes):
    with pytest.raises(ConfigError, match="has to be an integer from 1"):
        scrimp.SamplePruner(43, 8, Budget(0.5)).total_steps(**sizes)


def test_total_steps_of_a_threshold_is_not_known():
    with pytest.raises(ConfigError, match="epoch_progress"):
        scrimp.InfoBatch(43, 8).total_steps(5)


def test_one_cycle_with_the_exact_number_of_steps():
    """OneCycleLR refuses a step too many, and ends at its lowest rate only if all are made."""
    pruner = scrimp.SamplePruner(43, 8, Budget(0.6))
    loader = DataLoader(Numbered(43), batch_size=5, sampler=pruner)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    total = pruner.total_steps(5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, final_div_factor=1e4)
    rates = []
    for epoch in range(8):
        for index, _ in loader:
            pruner.reduce(loss_of(index, epoch))
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            if len(rates) < total:
                schedule.step()
    assert len(rates) == total
    assert rates[-1] == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_schedule_of_progress_does_not_jump_where_pruning_stops(shape):
    pruner = scrimp.InfoBatch(60, 8)
    loader = DataLoader(Numbered(60), batch_size=5, sampler=pruner)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    def factor(_):
        done = pruner.epoch_progress / pruner.num_epochs
        return (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates, starts = [1.0], []
    for epoch in range(8):
        for index, _ in loader:
            pruner.reduce(loss_of(index, epoch))
            optimizer.step()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
        starts.append(len(rates))
    steps = torch.tensor(rates).diff()
    assert (steps < 1e-7).all()
    largest = math.pi / 2 / 8 / 9 if shape == "cosine" else 1 / 8 / 9  # a pruned epoch has 9 steps or more
    assert float(steps.abs().max()) <= largest * 1.01
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert starts[0] != starts[1] - starts[0]


def test_progress_is_counted_by_index_too():
    pruner = in_epoch(2)
    assert pruner.epoch_progress == 2
    index = pruner.epoch_indices()
    pruner.reduce(index[:15] + 1.0, index=index[:15])
    assert pruner.epoch_progress == 2.5


# Reports.


def test_the_report_of_an_epoch():
    report = in_epoch(1).epoch_report()
    assert (report.epoch, report.is_full, report.num_samples, report.num_visits) == (1, False, 40, 30)
    assert report.pruned_fraction == 0.25
    assert report.effective_sample_size == pytest.approx(40**2 / (20 + 10 * 4))
    assert report.max_weight == 2
    assert report.score_quantiles == (1, 2, 10, 20, 30, 38, 40)
    assert (report.num_unscored, report.mean_age_epochs, report.max_age_epochs) == (0, 1.0, 1)
    assert "30 of 40 samples (25.0% pruned)" in str(report)
    first = scrimp.InfoBatch(40, 8).epoch_report().to_dict()
    assert first["num_unscored"] == 40
    assert first["mean_age_epochs"] is None
    assert first["score_quantiles"] == [None] * 7


def test_the_report_of_a_run():
    pruner = scrimp.SamplePruner(40, 8, DynamicRandom(0.5), num_full_first=1)
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner)
    for epoch in range(8):
        train_epoch(pruner, loader, epoch)
        len(loader)
    report = pruner.run_report()
    assert (report.num_epochs, report.num_visits, report.num_visits_full) == (8, 2 * 40 + 6 * 20, 320)
    assert report.saved_fraction == 1 - 200 / 320
    assert report.pruning_seconds > 0
    assert "200 of 320 visits (37.5% saved)" in str(report)
    assert report.to_dict()["num_visits"] == 200


def test_keep_rates_by_class():
    pruner = in_epoch(1)
    rates = pruner.keep_rates(torch.arange(40) // 20)
    assert rates.tolist() == [0.5, 1.0]
    with pytest.raises(DataError, match="each of 40 samples needs one"):
        pruner.keep_rates(torch.zeros(3))


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": 2}, "nothing could be pruned"),
        ({"rule": StaticTop(0.5, after=10)}, "the first 10 epoch.s. are full"),
        ({"rule": StaticTop(0.5, after=10), "num_full_first": 1}, "the first 10 epoch.s. are full"),
        ({"rule": DynamicRandom(0.99), "num_samples": 3}, "visits all of 3 samples"),
        ({"rule": OrderDP(1, 1)}, "visits all of 40 samples"),
        ({"num_epochs": 0}, "positive number"),
        ({"num_samples": 0}, "positive integer"),
        ({"rule": "mean"}, "has to be a scrimp.samples.Rule"),
        ({"scale": "mean"}, "'sum' or 'constant'"),
        ({"anneal": 1}, "in \\[0, 1\\)"),
        ({"rank": 0}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "ranks count from 0"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        scrimp.SamplePruner(**{"num_samples": 40, "num_epochs": 8, "rule": MeanThreshold(), **settings})


def test_a_rule_that_leaves_nothing():
    class Nothing(Rule):
        unbiased = False

        def select(self, view):
            return Visits(torch.empty(0, dtype=torch.int64))

    with pytest.raises(DataError, match="left no sample"):
        in_epoch(1, Nothing()).epoch_indices()


def test_shares_of_ranks_are_equal_and_make_up_the_plan():
    pruners = [in_epoch(1, DynamicRandom(0.5), num_samples=46, rank=rank, world_size=3) for rank in range(3)]
    shares = [list(pruner) for pruner in pruners]
    assert [len(share) for share in shares] == [len(pruner) for pruner in pruners] == [7, 7, 7]
    plan = pruners[0].epoch_indices().tolist()
    assert [shares[place % 3][place // 3] for place in range(21)] == plan[:21]
    assert len(plan) == 23
