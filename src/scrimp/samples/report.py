"""What pruning did, as plain values."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxtyping import BFloat16, Int
from torch import Tensor

from scrimp.samples.draw import Visits
from scrimp.samples.score_codes import Histogram

QUANTILE_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class EpochReport:
    """What was planned for one epoch, from which scores."""

    epoch: int
    is_full: bool
    num_samples: int
    num_visits: int
    pruned_fraction: float
    """Of the samples, in this epoch."""
    effective_sample_size: float
    """``sum(w) ** 2 / sum(w ** 2)`` over the visits: how many equally weighted ones they are worth."""
    max_weight: float
    score_quantiles: tuple[float, ...]
    """At 0, 5, 25, 50, 75, 95 and 100 %; NaN before there are scores."""
    num_unscored: int
    mean_age_epochs: float
    """Epochs since the last visit; 1 for a sample visited in the epoch before. NaN before there was any visit."""
    max_age_epochs: int
    plan_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, ``None`` for NaN."""
        return _json(self)

    def __str__(self) -> str:
        share = f"{self.num_visits:,} of {self.num_samples:,} samples"
        return f"epoch {self.epoch}: {share} ({self.pruned_fraction:.1%} pruned)"


@dataclass(frozen=True)
class RunReport:
    """What pruning saved and cost so far. The present epoch counts as planned, whether it was finished or not."""

    num_epochs: int
    num_visits: int
    num_visits_full: int
    """What the same epochs would have visited without pruning."""
    saved_fraction: float
    num_nonfinite: int
    """Visits whose score was not finite; they left the former score in place."""
    pruning_seconds: float
    """Planning epochs and committing scores, since this pruner was made. The cost of ``reduce`` is not in it."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return _json(self)

    def __str__(self) -> str:
        return (
            f"{self.num_visits:,} of {self.num_visits_full:,} visits ({self.saved_fraction:.1%} saved) in "
            f"{self.num_epochs} epochs; pruning took {self.pruning_seconds:.3f} s"
        )


def epoch_report(
    visits: Visits,
    *,
    epoch: int,
    is_full: bool,
    scores: BFloat16[Tensor, " samples"],
    last_visit: Int[Tensor, " samples"],
    plan_seconds: float,
) -> EpochReport:
    """Measure a plan and the scores that it was made of. Cost: a few passes over the samples."""
    num_samples, num_visits = scores.numel(), visits.indices.numel()
    weights = visits.weights
    size = (
        float(num_visits) if weights is None else float(weights.sum().double() ** 2 / weights.double().square().sum())
    )
    visited = last_visit >= 0
    ages = (epoch - last_visit[visited].long()).clamp_(min=0)
    histogram = Histogram.of(scores)
    return EpochReport(
        epoch=epoch,
        is_full=is_full,
        num_samples=num_samples,
        num_visits=num_visits,
        pruned_fraction=1 - num_visits / num_samples,
        effective_sample_size=size,
        max_weight=1.0 if weights is None else float(weights.max()),
        score_quantiles=histogram.quantiles(QUANTILE_LEVELS),
        num_unscored=num_samples - int(histogram.counts.sum()),
        mean_age_epochs=float(ages.double().mean()) if ages.numel() else float("nan"),
        max_age_epochs=int(ages.max()) if ages.numel() else 0,
        plan_seconds=plan_seconds,
    )


def _json(report: EpochReport | RunReport) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN

    return {name: plain(value) for name, value in dataclasses.asdict(report).items()}
