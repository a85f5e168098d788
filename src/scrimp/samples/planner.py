"""The plan of one epoch after another, made of the scores that the epochs before left."""

import hashlib
import time
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scrimp._core.rng import generator
from scrimp.errors import ConfigError, DataError
from scrimp.samples.draw import Visits, random_order
from scrimp.samples.rules.rule import Rule
from scrimp.samples.schedule import Schedule
from scrimp.samples.scores import ScoreStore


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

    def digest(self) -> str:
        """A checksum of indices and weights."""
        digest = hashlib.blake2b(self.visits.indices.numpy().tobytes(), digest_size=16)
        if self.visits.weights is not None:
            digest.update(self.visits.weights.numpy().tobytes())
        return digest.hexdigest()


class Planner:
    """Scores, and the plan that is made of them: a pure function of seed, epoch and scores.

    Only the present epoch's plan is kept. ``planned`` makes it when it is first asked for; ``leave`` makes scores of
    what the epoch has seen and forgets it.
    """

    def __init__(
        self, num_samples: int, rule: Rule, schedule: Schedule, seed: int, scale: Literal["sum", "constant"]
    ) -> None:
        self.num_samples, self.rule, self.schedule, self.seed, self.scale = num_samples, rule, schedule, seed, scale
        self.scores = ScoreStore(num_samples, rule, schedule.num_begun)
        self.plan: EpochPlan | None = None
        self.expected_digest: str | None = None
        self.num_planned = (0, 0)  # epochs of the training, and their visits
        self.seconds = 0.0
        self._weights: Tensor | None = None

    def planned(self, epoch: int) -> EpochPlan:
        """The plan of ``epoch``, the one that was not left yet.

        Raises: ConfigError - it is not the plan that was saved. DataError - the rule left no sample.
        """
        if self.plan is None:
            begin = time.perf_counter()
            visits = self._choose(epoch)
            seconds = time.perf_counter() - begin
            num_visits = visits.indices.numel()
            fraction = num_visits / self.num_samples
            factor = 1.0 if self.scale == "sum" else fraction
            mean_weight = 1.0 if visits.weights is None else 1 / fraction
            self.plan = EpochPlan(visits, num_visits, factor, factor * mean_weight, seconds)
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
        self.plan = self._weights = None

    def weights_by_sample(self, plan: EpochPlan, device: torch.device) -> Float[Tensor, " samples"]:
        """Weights where the losses are; NaN for samples that the epoch leaves out, so that a mistake is seen."""
        if self._weights is None or self._weights.device != device:
            assert plan.visits.weights is not None
            weights = torch.full((self.num_samples,), torch.nan)
            weights[plan.visits.indices] = plan.visits.weights
            self._weights = weights.to(device)
        return self._weights

    def _choose(self, epoch: int) -> Visits:
        if self.schedule.is_full(epoch):
            random = generator(self.seed, "samples", epoch, "full")
            return Visits(random_order(self.num_samples, random).to(torch.int64))
        visits = self.rule.select(self.scores.view(epoch, self.seed))
        if not isinstance(visits, Visits):
            raise ConfigError(
                f"{self.rule!r} selected a {type(visits).__name__}; a rule returns what view.draw(probabilities) or "
                "view.take(indices) gives"
            )
        if not visits.indices.numel():
            raise DataError(f"{self.rule!r} left no sample for epoch {epoch}")
        return visits
