"""Sample pruning as the settings of a run ask for it."""

import dataclasses

from jaxtyping import Float
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.samples import Budget, DynamicRandom, MeanThreshold, Quantiles, Rule, SamplePruner
from scrimp.steps import Batch
from scrimp.train.config import TrainConfig
from scrimp.train.job import Seams

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
    pruning.sampler(1)  # too few epochs, for example, are refused before the data is read
    return dataclasses.replace(
        seams, sampler=pruning.sampler, reduce=pruning.reduce, before_save=(*seams.before_save, pruning.share)
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


class _Pruning:
    """The pruner of one run, made when the number of samples is known."""

    def __init__(self, config: TrainConfig, rule: Rule) -> None:
        self._config, self._rule = config, rule
        self._pruner: SamplePruner | None = None

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

    def share(self) -> None:
        assert self._pruner is not None
        self._pruner.sync_scores()
