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


def with_rule_named(config: TrainConfig) -> TrainConfig:
    """``config`` with the rule and the ratio that it stands for, so that a run's record says what was done.

    Raises: ConfigError - they do not go together.
    """
    name, prune_ratio, keep = config.sample_rule, config.prune_ratio, config.keep
    if prune_ratio is not None and keep is not None:
        raise ConfigError("--prune-ratio (for the mean threshold) and --keep (for a budget) do not go together")
    if name == "auto":
        name = "mean" if prune_ratio is not None else "budget" if keep is not None else "none"
    if prune_ratio is not None and name != "mean":
        raise ConfigError(
            f"--prune-ratio is for --sample-rule mean; {_spoken(name)} takes no such ratio. Leave one of them out"
        )
    if keep is not None and name not in {"budget", "random"}:
        what = "none leaves nothing out" if name == "none" else f"what {name} keeps depends on the losses"
        raise ConfigError(f"--keep is for --sample-rule budget and random; {what}. Leave one of them out")
    if name == "mean" and prune_ratio is None:
        prune_ratio = _PRUNE_RATIO
    if name in {"budget", "random"} and keep is None:
        keep = _KEEP
    return config.replace(sample_rule=name, prune_ratio=prune_ratio, keep=keep)


def rule_in_words(config: TrainConfig) -> str | None:
    """The rule and its ratio, of settings that name them; ``None`` without pruning."""
    ratio = f", prune ratio {config.prune_ratio:g}" if config.prune_ratio is not None else ""
    keep = f", keep {config.keep:g}" if config.keep is not None else ""
    return None if config.sample_rule == "none" else f"{config.sample_rule}{ratio}{keep}"


def _spoken(name: str) -> str:
    return "without pruning (none) there is nothing that" if name == "none" else f"the rule {name}"


def with_pruning(config: TrainConfig, seams: Seams) -> Seams:
    """``seams`` with a pruner as sampler and as reduction of losses, if the settings ask for one.

    Every rule has a first full epoch and the same full ones at the end.

    Raises: ConfigError - settings that contradict each other, or seams that have a sampler already.
    """
    rule = rule_of(config)
    if rule is None:
        return seams
    if seams.sampler is not None:
        raise ConfigError("samples cannot be pruned (--sample-rule) in a run that has a sampler of its own")
    pruning = _Pruning(config, rule)
    try:
        pruning.sampler(1000)  # too few epochs, for example, are refused before the data is read
    except ConfigError as error:
        raise ConfigError(f"{error} (--keep none, or --savings)") from error
    return dataclasses.replace(
        seams,
        sampler=pruning.sampler,
        reduce=pruning.reduce,
        epoch_facts=(*seams.epoch_facts, pruning.epoch_facts),
        before_save=(*seams.before_save, pruning.share),
    )


def is_too_short(config: TrainConfig) -> bool:
    """Whether the settings ask for pruning in training that has too few epochs for it."""
    rule = rule_of(config)
    if rule is None:
        return False
    try:
        _Pruning(config, rule).sampler(1000)
    except ConfigError:
        return True
    return False


def rule_of(config: TrainConfig) -> Rule | None:
    """The rule that ``sample_rule``, ``prune_ratio`` and ``keep`` name; ``None`` for none.

    Raises: ConfigError - they do not go together.
    """
    config = with_rule_named(config)
    match config.sample_rule:
        case "mean":
            assert config.prune_ratio is not None
            return MeanThreshold(config.prune_ratio)
        case "quantiles":
            return Quantiles()
        case "budget":
            assert config.keep is not None
            return Budget(config.keep)
        case "random":
            assert config.keep is not None
            return DynamicRandom(config.keep)
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
            num_samples,
            config.num_epochs,
            self._rule,
            num_full_first=1,  # of the random rule too: it is the control and makes the visits of the budget
            seed=config.seed,
            scale="sum" if grows else "constant",
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
