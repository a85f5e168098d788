"""Sample pruning as the settings of a run ask for it."""

import dataclasses
from collections.abc import Mapping
from statistics import mean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.report.record import RunRecord
from scrimp.samples import Budget, DynamicRandom, MeanThreshold, Quantiles, Rule, SamplePruner
from scrimp.samples.report import QUANTILE_LEVELS
from scrimp.steps import Batch
from scrimp.train.config import TrainConfig
from scrimp.train.job import Job, Seams

_PRUNE_RATIO = 0.5
_KEEP = 0.6


def with_pruning(config: TrainConfig, seams: Seams) -> Seams:
    """``seams`` with a pruner as sampler and as reduction of losses, if the settings ask for one.

    Raises: ConfigError - settings that contradict each other, or seams that have a sampler already.
    """
    rule = rule_of(config)
    if rule is None:
        return seams
    if seams.sampler is not None:
        raise ConfigError("samples cannot be pruned (--sample-rule) in a run that has a sampler of its own")
    pruning = _Pruning(config, rule)
    try:
        pruning.sampler(1)  # too few epochs, for example, are refused before the data is read
    except ConfigError as error:
        raise ConfigError(f"{error} (--keep none, or --savings)") from error
    return dataclasses.replace(
        seams,
        sampler=pruning.sampler,
        reduce=pruning.reduce,
        epoch_facts=(*seams.epoch_facts, pruning.epoch_facts),
        before_save=(*seams.before_save, pruning.share),
    )


def rule_of(config: TrainConfig) -> Rule | None:
    """The rule that ``sample_rule``, ``prune_ratio`` and ``keep`` name; ``None`` for none.

    A ratio alone means the mean threshold, ``keep`` alone a budget. Raises: ConfigError - they do not go together.
    """
    name, prune_ratio, keep = config.sample_rule, config.prune_ratio, config.keep
    if prune_ratio is not None and keep is not None:
        raise ConfigError("--prune-ratio (for the mean threshold) and --keep (for a budget) do not go together")
    if name == "none":
        name = "mean" if prune_ratio is not None else "budget" if keep is not None else "none"
    if prune_ratio is not None and name != "mean":
        raise ConfigError(f"--prune-ratio is for --sample-rule mean; the rule {name} takes no such ratio")
    if keep is not None and name not in {"budget", "random"}:
        raise ConfigError(f"--keep is for --sample-rule budget and random; what {name} keeps depends on the losses")
    match name:
        case "mean":
            return MeanThreshold(_PRUNE_RATIO if prune_ratio is None else prune_ratio)
        case "quantiles":
            return Quantiles()
        case "budget":
            return Budget(_KEEP if keep is None else keep)
        case "random":
            return DynamicRandom(_KEEP if keep is None else keep)
        case _:
            return None


def pruning_totals(record: RunRecord) -> dict[str, float]:
    """What pruning did over a run, from its epoch lines; empty without pruning."""
    lines = [line for line in record.events("epoch") if "pruned_fraction" in line]
    if not lines:
        return {}
    return {
        "pruned_fraction": mean(line["pruned_fraction"] for line in lines),
        "pruning_seconds": sum(line["pruning_seconds"] for line in lines),
        "num_nonfinite_scores": lines[-1]["num_nonfinite_scores"],
    }


def class_keep_rates(record: RunRecord, classes: tuple[str, ...]) -> dict[str, float]:
    """Per class the mean over the epochs of the fraction that was visited; empty without pruning or without classes."""
    lines = [line["class_keep_rates"] for line in record.events("epoch") if "class_keep_rates" in line]
    return {name: mean(rates) for name, *rates in zip(classes, *lines, strict=False) if rates and None not in rates}


class _Pruning:
    """The pruner of one run, made when the number of samples is known."""

    def __init__(self, config: TrainConfig, rule: Rule) -> None:
        self._config, self._rule = config, rule
        self._pruner: SamplePruner | None = None
        self._seconds_told = 0.0

    def sampler(self, num_samples: int) -> SamplePruner:
        config = self._config
        # The paper's scale raises the gradient by num_samples / visits. With half of the visits that is like twice the
        # learning rate, which recipes tuned for full data do not bear; Adam does not follow it, and clipping cuts it.
        is_paper = isinstance(self._rule, MeanThreshold | Quantiles)
        grows = is_paper and config.optimizer == "sgd" and config.clip_norm is None
        self._pruner = SamplePruner(
            num_samples, config.num_epochs, self._rule, seed=config.seed, scale="sum" if grows else "constant"
        )
        return self._pruner

    def reduce(self, losses: Tensor, batch: Batch) -> Float[Tensor, ""]:
        assert self._pruner is not None
        return self._pruner.reduce(losses, index=batch.index)

    def epoch_facts(self, job: Job) -> Mapping[str, Any]:
        """The plan of the epoch that ends and the scores that it was made of; what pruning took since the last line."""
        assert self._pruner is not None
        report, run = self._pruner.epoch_report(), self._pruner.run_report()
        seconds, self._seconds_told = run.pruning_seconds - self._seconds_told, run.pruning_seconds
        quantiles = zip(QUANTILE_LEVELS, report.score_quantiles, strict=True)
        facts = {
            "num_samples": report.num_samples,
            "pruned_fraction": report.pruned_fraction,
            "effective_sample_size": report.effective_sample_size,
            "max_weight": report.max_weight,
            **{f"score_quantile_{round(100 * level)}": score for level, score in quantiles},
            "score_age_mean_epochs": report.mean_age_epochs,
            "score_age_max_epochs": report.max_age_epochs,
            "num_nonfinite_scores": run.num_nonfinite,
            "pruning_seconds": seconds,
        }
        targets = job.loader.targets
        return facts if targets is None else {**facts, "class_keep_rates": self._pruner.keep_rates(targets).tolist()}

    def share(self) -> None:
        assert self._pruner is not None
        self._pruner.sync_scores()
