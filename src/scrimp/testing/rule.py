"""The suite for rules of sample pruning, ours or yours: pure, honest about bias, sound with any scores, resumable."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from scrimp.errors import ScrimpError
from scrimp.samples import Rule, SamplePruner, ScoreView, Visits
from scrimp.testing.stateful import assert_same_state, check_global_rng_untouched, check_stateful

_NUM_SAMPLES = 300
_FEW_SAMPLES = 24  # of the experiment with many plans
_NUM_UNSCORED = 20
_ODD_SCORES = (
    ("all 0", [0.0] * 8),
    ("all equal", [2.5] * 8),
    ("one enormous", [0.0] * 7 + [3e38]),
    ("negative and tiny", [-1.0] * 4 + [1e-30] * 4),
    ("none at all", [math.nan] * 8),
)
_NUMBERS_OF_EPOCHS = (4, 5, 7, 8, 13, 30, 90, 100, 200, 300)


def check_rule(rule: Rule, *, num_plans: int = 10_000) -> None:
    """All checks of a rule, as one call.

    - The same view gives the same plan, and is not changed; global random generators are left alone.
    - Visits are distinct samples of the data set with positive finite weights, as many as ``num_visits`` promises.
    - Samples without a score are visited; scores that are all equal, zero, negative, enormous or missing do no harm.
    - Full epochs at both ends of the training have weights of 1, for many numbers of epochs.
    - A pruner with the rule resumes bit for bit after every epoch.
    - If the rule says that it is unbiased: over ``num_plans`` plans from the same scores the mean weighted gradient
      meets the full one within 4 standard errors, and how often each sample is visited fits its weight by a chi-square
      test (at less than one false alarm in ten thousand; the plans are always the same ones).

    Raises: AssertionError - the first check that failed, and how. Cost: with 10,000 plans about 2 seconds.
    """
    check_plans(rule)
    check_scores(rule)
    check_full_epochs(rule)
    check_stateful(lambda: _pruner(rule, 43, _least_epochs(rule) + 2), _epoch, num_steps=_first_pruned(rule) + 3)
    if rule.unbiased:
        check_unbiased(rule, num_plans=num_plans)


def check_plans(rule: Rule) -> None:
    """Plans are pure functions of the view and sound sets of samples, for epochs of all kinds."""
    for epoch in range(_first_pruned(rule), _first_pruned(rule) + 25):
        view = example_view(rule, epoch, _NUM_SAMPLES, num_unscored=5)
        before, fresh = (
            dataclasses.replace(view, tracks=view.tracks.clone(), last_visit=view.last_visit.clone()) for _ in range(2)
        )
        plans: list[Visits] = []
        check_global_rng_untouched(lambda view=view, plans=plans: plans.append(_select(rule, view, "usual scores")))  # type: ignore[misc]
        again = _select(rule, fresh, "usual scores")
        what = f"the plan of {rule!r} for epoch {epoch}"
        assert_same_state(_plain(again), _plain(plans[0]), f"{what}, made a second time from the same view,")
        for name in ("tracks", "last_visit"):
            assert_same_state(getattr(view, name), getattr(before, name), f"{name} of the view, after {rule!r} saw it,")
        _check_visits(rule, plans[0], _NUM_SAMPLES, what)


def check_scores(rule: Rule) -> None:
    """Samples without a score are visited; odd scores give sound plans."""
    first = _first_pruned(rule)
    for epoch in range(first, first + 9) if rule.needs_scores else ():
        visits = _select(rule, example_view(rule, epoch, _NUM_SAMPLES, num_unscored=_NUM_UNSCORED), "missing scores")
        missing = sorted(set(range(_NUM_UNSCORED)) - set(visits.indices.tolist()))
        assert not missing, f"{rule!r} leaves out sample {missing[0]}, which has no score (NaN); it has to be visited"
    for name, scores in _ODD_SCORES:
        observed = torch.tensor(scores)
        tracks = torch.full((rule.num_tracks, len(scores)), math.nan)
        if not observed.isnan().any():
            tracks = rule.update(tracks, rule.batch_scores(observed), torch.ones(len(scores), dtype=torch.bool), 0)
            shape = (rule.num_tracks, len(scores))
            assert tracks.shape == shape, f"{rule!r}.update returned shape {tuple(tracks.shape)} instead of {shape}"
        last_visit = torch.full((len(scores),), first - 1, dtype=torch.int16)
        view = ScoreView(tracks.bfloat16(), last_visit, max(first, 1), 0)
        _check_visits(rule, _select(rule, view, name), len(scores), f"the plan of {rule!r} from scores {name}")


def check_full_epochs(rule: Rule) -> None:
    """The first epochs and the last eighth visit everything with weight 1, for many numbers of epochs."""
    for num_epochs in _NUMBERS_OF_EPOCHS:
        if num_epochs < _least_epochs(rule):
            continue
        pruner = _pruner(rule, 16, num_epochs)
        end = 7 * num_epochs // 8
        for epoch in {*range(_first_pruned(rule)), end, (end + num_epochs) // 2, num_epochs - 1}:
            if epoch < _first_pruned(rule) and not rule.needs_scores:
                continue
            pruner.set_epoch(epoch)
            what = f"epoch {epoch} of {num_epochs} with {rule!r}"
            assert sorted(pruner.epoch_indices().tolist()) == list(range(16)), f"{what} is not full"
            assert pruner.epoch_weights() is None, f"{what} has weights, but is one of the full ones"


@dataclass(frozen=True)
class PlanStatistics:
    """Many plans from the same scores, summed up."""

    gradient_deviations: Float64[Tensor, " axes"]
    """The mean weighted gradient less the full one, in standard errors."""
    counts: Float64[Tensor, " samples"]
    """How often each sample was visited."""
    probabilities: Float64[Tensor, " samples"]
    """What its last weight says of how likely that was; NaN if it never was."""
    num_plans: int


def plan_statistics(rule: Rule, *, num_plans: int = 10_000, epoch: int = 50) -> PlanStatistics:
    """Plans for one view under ``num_plans`` seeds. Cost: about 0.1 ms per plan."""
    random = torch.Generator().manual_seed(5)
    gradients = torch.randn(_FEW_SAMPLES, 3, generator=random, dtype=torch.float64) + 1
    counts = torch.zeros(_FEW_SAMPLES, dtype=torch.float64)
    probabilities = torch.full((_FEW_SAMPLES,), math.nan, dtype=torch.float64)
    totals = torch.empty(num_plans, 3, dtype=torch.float64)
    view = example_view(rule, epoch, _FEW_SAMPLES)
    for number in range(num_plans):
        visits = rule.select(dataclasses.replace(view, seed=number))
        weights = torch.ones(len(visits.indices)) if visits.weights is None else visits.weights
        totals[number] = (weights.double().unsqueeze(1) * gradients[visits.indices]).sum(0)
        counts[visits.indices] += 1
        probabilities[visits.indices] = 1 / weights.double()
    error = (totals.std(0) / num_plans**0.5).clamp(min=1e-9)
    return PlanStatistics((totals.mean(0) - gradients.sum(0)).abs() / error, counts, probabilities, num_plans)


def check_unbiased(rule: Rule, *, num_plans: int = 10_000) -> None:
    """The weighted gradient within 4 standard errors of the full one; inclusion counts by a chi-square test."""
    found = plan_statistics(rule, num_plans=num_plans)
    worst = float(found.gradient_deviations.max())
    assert worst < 4, (
        f"{rule!r} says that it is unbiased, but over {num_plans} plans the weighted gradient is {worst:.1f} standard "
        "errors off the full one: weigh every visit by the inverse of its probability, as view.draw does"
    )
    p, counts = found.probabilities, found.counts
    never = p.isnan().nonzero()
    assert not never.numel(), f"{rule!r} says that it is unbiased, but never visits sample {int(never[0])}"
    is_certain = p > 1 - 1e-6
    assert bool((counts[is_certain] == num_plans).all()), f"{rule!r} leaves out samples that it gives a weight of 1"
    p, counts = p[~is_certain], counts[~is_certain]
    chi_square = float(((counts - num_plans * p) ** 2 / (num_plans * p * (1 - p))).sum())
    bound = len(p) + 4 * (2 * len(p)) ** 0.5 + 6
    assert chi_square < bound, (
        f"{rule!r} says that it is unbiased, but visits do not fit the weights: chi-square {chi_square:.1f} over "
        f"{len(p)} samples, at most {bound:.1f} expected"
    )


def example_view(
    rule: Rule, epoch: int, num_samples: int = _FEW_SAMPLES, *, seed: int = 3, num_unscored: int = 0
) -> ScoreView:
    """What ``rule`` may be shown before ``epoch``: lognormal losses, each seen twice, waits of 0 to 6 epochs.

    The first ``num_unscored`` samples have no score.
    """
    random = torch.Generator().manual_seed(11)
    losses = torch.randn(num_samples, generator=random).exp()
    tracks = torch.full((rule.num_tracks, num_samples), math.nan)
    for visit, factor in enumerate([torch.linspace(1, 1.5, num_samples), torch.ones(num_samples)]):
        is_first = torch.full((num_samples,), visit == 0)
        tracks = rule.update(tracks, rule.batch_scores(factor * losses), is_first, visit).bfloat16().float()
    tracks[:, :num_unscored] = math.nan
    waits = torch.randint(0, 7, (num_samples,), generator=random)
    last_visit = (epoch - 1 - waits).clamp(min=-1)
    last_visit[:num_unscored] = -1
    return ScoreView(tracks.bfloat16(), last_visit.to(torch.int32), epoch, seed)


def _select(rule: Rule, view: ScoreView, scores: str) -> Visits:
    try:
        visits = rule.select(view)
    except (ScrimpError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"{rule!r} raised with {scores}, in epoch {view.epoch}: {error!r}") from error
    assert isinstance(visits, Visits), (
        f"{rule!r} selected a {type(visits).__name__}; a rule returns what view.draw(probabilities) or "
        "view.take(indices) gives"
    )
    return visits


def _check_visits(rule: Rule, visits: Visits, num_samples: int, what: str) -> None:
    indices, weights = visits.indices, visits.weights
    assert indices.dtype == torch.int64, f"{what} has indices of {indices.dtype} instead of torch.int64"
    assert indices.ndim == 1, f"{what} has indices of shape {tuple(indices.shape)}; one dimension is expected"
    assert indices.numel(), f"{what} is empty"
    assert indices.unique().numel() == indices.numel(), f"{what} visits a sample twice"
    lowest, highest = int(indices.min()), int(indices.max())
    assert lowest >= 0, f"{what} visits sample {lowest}"
    assert highest < num_samples, f"{what} visits sample {highest} of only {num_samples}"
    if weights is not None:
        assert weights.shape == indices.shape, f"{what} has {tuple(weights.shape)} weights for {indices.numel()} visits"
        assert weights.dtype == torch.float32, f"{what} has weights of {weights.dtype} instead of torch.float32"
        is_sound = weights.isfinite() & (weights > 0)
        assert bool(is_sound.all()), f"{what} has a weight that is not positive and finite"
    if (promised := rule.num_visits(num_samples)) is not None:
        assert indices.numel() == promised, f"{what} has {indices.numel()} visits, but num_visits says {promised}"


def _plain(visits: Visits) -> dict[str, Any]:
    return {"indices": visits.indices, "weights": visits.weights}


def _first_pruned(rule: Rule) -> int:
    return max(1, rule.num_full_first)


def _least_epochs(rule: Rule) -> int:
    """With an eighth at the end, the shortest training in which two epochs are pruned."""
    return math.ceil((_first_pruned(rule) + 2) * 8 / 7)


def _pruner(rule: Rule, num_samples: int, num_epochs: int) -> SamplePruner:
    return SamplePruner(num_samples, num_epochs, rule, seed=4)


def _epoch(pruner: SamplePruner) -> dict[str, Any]:
    """Train one epoch in two batches; what can be seen of it."""
    indices = pruner.epoch_indices()
    seen = {"epoch": pruner.epoch, "length": len(pruner), "indices": indices, "weights": pruner.epoch_weights()}
    losses = [
        pruner.reduce((index * 7 % 11 + 1).float() * (1 + pruner.epoch % 3), index=index)
        for index in indices.tensor_split(2)
        if index.numel()
    ]
    pruner.set_epoch(pruner.epoch + 1)
    return {**seen, "losses": torch.stack(losses)}
