"""The plan of one epoch after another, made of the scores that the epochs before left."""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.samples.draw import Visits, random_order
from scrimp.samples.report import EpochReport, epoch_report
from scrimp.samples.rules.rule import Rule, ScoreView
from scrimp.samples.schedule import Schedule
from scrimp.samples.scores import ScoreStore
from scrimp.samples.sharded_scores import ShardedScoreStore


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch visits.

    ``factor`` is what the mean of the weighted losses is multiplied by, ``factor_of_ratio`` a ratio of weighted sums.
    """

    visits: Visits
    num_visits: int
    factor: float
    factor_of_ratio: float
    seconds: float
    share: "OwnShare | None" = None
    """What else is kept where ``visits`` are those of this rank only."""

    def digest(self) -> str:
        """A checksum of the indices and weights of all visits."""
        return _digest(self.visits) if self.share is None else self.share.digest


@dataclass(frozen=True)
class OwnShare:
    """Of a plan of which this rank keeps only its own visits."""

    digest: str
    report: EpochReport
    remaining: Int64[Tensor, " own"] = field(repr=False)
    """Those of the own visits that were not trained when the state was saved."""
    num_remaining: int
    """Of all ranks."""


def _digest(visits: Visits) -> str:
    digest = hashlib.blake2b(visits.indices.numpy().tobytes(), digest_size=16)
    if visits.weights is not None:
        digest.update(visits.weights.numpy().tobytes())
    return digest.hexdigest()


class Planner:
    """Scores, and the plan that is made of them: a pure function of seed, epoch and scores.

    Only the present epoch's plan is kept. ``planned`` makes it when it is first asked for; ``leave`` makes scores of
    what the epoch has seen and forgets it.
    """

    def __init__(
        self,
        num_samples: int,
        rule: Rule,
        schedule: Schedule,
        seed: int,
        scale: Literal["sum", "constant"],
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Args: share - picks this rank's part of an epoch's order, if scores are sharded."""
        self.num_samples, self.rule, self.schedule, self.seed, self.scale = num_samples, rule, schedule, seed, scale
        self.share = share
        store = ScoreStore if share is None else ShardedScoreStore
        self.scores: ScoreStore = store(num_samples, rule, schedule.num_begun)
        self.plan: EpochPlan | None = None
        self.expected_digest: str | None = None
        self.num_planned = (0, 0)  # epochs of the training, and their visits
        self.seconds = 0.0
        self._weights: Tensor | None = None
        self._samples: Tensor | None = None  # of a share, ascending, to find a weight

    def planned(self, epoch: int, visited: Tensor | None = None) -> EpochPlan:
        """The plan of ``epoch``, the one that was not left yet.

        Args: visited - of all samples, what a saved state says; only looked at when scores are sharded.

        Raises: ConfigError - it is not the plan that was saved. DataError - the rule left no sample.
        """
        if self.plan is None:
            begin = time.perf_counter()
            is_full = self.schedule.is_full(epoch)
            # sharded: all scores, for as long as this takes
            view = None if is_full and self.share is None else self.scores.view(epoch, self.seed)
            visits = self._choose(epoch, None if is_full else view)
            seconds = time.perf_counter() - begin
            num_visits = visits.indices.numel()
            fraction = num_visits / self.num_samples
            factor = 1.0 if self.scale == "sum" else fraction
            mean_weight = 1.0 if visits.weights is None else 1 / fraction
            plan = EpochPlan(visits, num_visits, factor, factor * mean_weight, seconds)
            self.plan = plan if view is None or self.share is None else self._own_share(plan, view, visited)
            self.seconds += seconds
            expected, self.expected_digest = self.expected_digest, None
            if expected is None and epoch < self.schedule.num_begun:
                self.num_planned = (self.num_planned[0] + 1, self.num_planned[1] + num_visits)
            if expected is not None and self.plan.digest() != expected:
                raise ConfigError(
                    f"the plan of epoch {epoch} is not the one that was saved: another version of torch or of "
                    "the rule draws differently. Resume at an epoch's beginning, with set_epoch"
                )
        return self.plan

    def digest(self) -> str | None:
        """The checksum of the present plan, made or saved; ``None`` before there is one."""
        return self.expected_digest if self.plan is None else self.plan.digest()

    def leave(self, epoch: int) -> None:
        """Losses of ``epoch`` become scores, then its plan is forgotten. Cost: as ``ScoreStore.commit``."""
        begin = time.perf_counter()
        is_partial = self.plan is not None and self.plan.num_visits < self.num_samples
        planned = self.plan.visits.indices if self.plan is not None and is_partial else None
        self.scores.commit(epoch, planned)
        self.forget()
        self.expected_digest = None
        self.seconds += time.perf_counter() - begin

    def forget(self) -> None:
        """Make the plan anew when it is asked for again."""
        self.plan = self._weights = self._samples = None
        if isinstance(self.scores, ShardedScoreStore):
            self.scores.allowed = None

    def weights_of(self, plan: EpochPlan, index: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"] | None:
        """The weights of samples, where ``index`` is; ``None`` if all are 1.

        NaN for samples that the epoch leaves out, so that a mistake is seen. Cost: a gather, or, of a share, a search.
        """
        weights = plan.visits.weights
        if weights is None:
            return None
        if self._weights is None or self._weights.device != index.device:
            if plan.share is None:
                by_sample = torch.full((self.num_samples,), torch.nan)
                by_sample[plan.visits.indices] = weights
                self._weights = by_sample.to(index.device)
            else:
                assert isinstance(self.scores, ShardedScoreStore)
                assert self.scores.allowed is not None
                self._samples = self.scores.allowed.to(index.device)
                self._weights = weights[plan.visits.indices.argsort()].to(index.device)
        if self._samples is None:
            return self._weights.index_select(0, index)
        place = torch.searchsorted(self._samples, index).clamp_(max=self._samples.numel() - 1)
        return torch.where(self._samples[place] == index, self._weights[place], torch.nan)

    def _own_share(self, plan: EpochPlan, view: ScoreView, visited: Tensor | None) -> EpochPlan:
        """``plan`` with the visits of this rank only, and what has to be known of the others."""
        assert self.share is not None
        assert isinstance(self.scores, ShardedScoreStore)
        indices, weights = plan.visits.indices, plan.visits.weights
        own = Visits(self.share(indices).clone(), None if weights is None else self.share(weights).clone())
        report = epoch_report(
            plan.visits, epoch=view.epoch, is_full=self.schedule.is_full(view.epoch), scores=view.tracks[0],
            last_visit=view.last_visit, plan_seconds=plan.seconds,
        )  # fmt: skip
        remaining, num_remaining = own.indices, indices.numel()
        if visited is not None:
            of_all = indices[~visited[indices]]
            remaining, num_remaining = self.share(of_all).clone(), of_all.numel()
        share = OwnShare(plan.digest(), report, remaining, num_remaining)
        self.scores.allowed = own.indices.sort().values
        return dataclasses.replace(plan, visits=own, share=share)

    def _choose(self, epoch: int, view: ScoreView | None) -> Visits:
        if view is None:
            random = generator(self.seed, "samples", epoch, "full")
            return Visits(random_order(self.num_samples, random).to(torch.int64))
        visits = self.rule.select(view)
        if not isinstance(visits, Visits):
            raise ConfigError(
                f"{self.rule!r} selected a {type(visits).__name__}; a rule returns what view.draw(probabilities) or "
                "view.take(indices) gives"
            )
        if not visits.indices.numel():
            raise DataError(f"{self.rule!r} left no sample for epoch {epoch}")
        return visits
