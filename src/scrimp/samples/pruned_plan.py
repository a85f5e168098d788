"""Epochs that leave samples out, as data."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import IterableDataset

from scrimp._core import ranks
from scrimp._core.index_plan import PlanSampler
from scrimp._core.rng import generator
from scrimp._core.tensor_role import TensorRole, tag
from scrimp.errors import ConfigError, DataError
from scrimp.samples.passes import Passes
from scrimp.samples.planner import EpochPlan, Planner
from scrimp.samples.report import EpochReport, RunReport, epoch_report
from scrimp.samples.rules.description import description
from scrimp.samples.rules.rule import Rule
from scrimp.samples.schedule import Schedule, steps_of


class PrunedPlan(PlanSampler):
    """An IndexPlan whose epochs a rule chooses: the part of ``SamplePruner`` that knows no losses.

    Arguments and errors are those of ``SamplePruner``.
    """

    def __init__(
        self,
        num_samples: int,
        num_epochs: float,
        rule: Rule,
        *,
        anneal: float = 0.125,
        num_full_first: int | None = None,
        seed: int = 0,
        scale: Literal["sum", "constant"] = "sum",
        rank: int | None = None,
        world_size: int | None = None,
        shard_scores: bool = False,
    ) -> None:
        _refuse_data_set(num_samples)
        super().__init__(num_samples)
        generator(seed)  # refuses a bad seed here and not in the first epoch
        if not isinstance(rule, Rule):
            raise ConfigError(f"rule is {rule!r}; it has to be a scrimp.samples.Rule, such as MeanThreshold()")
        if scale not in {"sum", "constant"}:
            raise ConfigError(f"scale is {scale!r}; it has to be 'sum' or 'constant'")
        self._passes = Passes(rank, world_size)
        if num_full_first is None:
            num_full_first = rule.num_full_first
        elif isinstance(num_full_first, int) and num_full_first >= 0:
            num_full_first = max(num_full_first, rule.num_full_first)
        self.schedule = Schedule.of(num_epochs, anneal, num_full_first)
        if rule.num_visits(num_samples) == num_samples:
            raise ConfigError(
                f"{rule!r} visits all of {num_samples} samples, so nothing would ever be left out; lower what it keeps"
            )
        self.rule = rule
        self.seed = seed
        self.scale = scale
        if shard_scores and (self._passes.rank, self._passes.world_size) != (ranks.rank(), ranks.world_size()):
            raise ConfigError(
                "shard_scores=True shares scores and visits out to the processes of torch.distributed alike; leave out "
                "rank and world_size, and let no wrapper shard the loader"
            )
        self.shard_scores = shard_scores
        share = self._passes.share if shard_scores and ranks.world_size() > 1 else None
        self._planner = Planner(num_samples, rule, self.schedule, seed, scale, share)
        if share is not None:  # now that all ranks are here; later one may ask alone
            self._planner.planned(0)

    @property
    def epoch(self) -> int:
        """The present epoch, from 0; the next one as soon as a loop is left whose batches were all reduced.

        On several ranks the next one begins with the next pass or with ``set_epoch``, as all ranks have to be there.
        """
        return self._epoch + (self._passes.is_behind and ranks.world_size() == 1)

    @property
    def num_epochs(self) -> float:
        """Epochs of the whole training."""
        return self.schedule.num_epochs

    @property
    def num_visits(self) -> int:
        """Visits that the present epoch makes, over all ranks."""
        return self._planned().num_visits

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch; the losses of the present one become scores. The present one again: no effect.

        Every rank has to call this alike. Raises: ConfigError - negative or no integer.
        """
        before = self._epoch
        super().set_epoch(epoch)
        if epoch != before:
            self._epoch = before
            self._go_to(epoch)

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """The samples that the present epoch visits, in order, over all ranks.

        Raises: ConfigError - scores are sharded, and so are plans.
        """
        return self._whole_plan().visits.indices

    def epoch_weights(self) -> Float[Tensor, " visits"] | None:
        """The weight of each visit, in the same order; ``None`` if all are 1, as in full epochs.

        Raises: ConfigError - scores are sharded, and so are plans.
        """
        return self._whole_plan().visits.weights

    def total_steps(
        self, batch_size: int, *, drop_last: bool = False, world_size: int | None = None, accumulation: int = 1
    ) -> int:
        """Optimizer steps of the whole training, exactly, before it begins.

        Args: batch_size - per rank. world_size - if not the present one. accumulation - batches per optimizer step; an
            epoch's last step may have fewer.
        Raises: ConfigError - the rule's number of visits depends on the scores, or a size is no positive integer.
        """
        for name, size in (("batch_size", batch_size), ("accumulation", accumulation)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"{name} is {size!r}; it has to be an integer from 1")
        num_visits = self.rule.num_visits(self.num_samples)
        if num_visits is None:
            raise ConfigError(
                f"how many samples {type(self.rule).__name__} visits depends on their scores, so the number of steps "
                "is not known before training; make the schedule a function of pruner.epoch_progress, or use a rule "
                "with a budget, such as scrimp.samples.Budget(keep=0.6)"
            )
        size = self._passes.world_size if world_size is None else world_size
        full, pruned = (
            -(-steps_of(visits, batch_size, size, drop_last=drop_last) // accumulation)
            for visits in (self.num_samples, num_visits)
        )
        return self.schedule.total_steps(full, pruned)

    def sync_scores(self) -> None:
        """Exchange what the ranks have seen in this epoch, so that ``state_dict`` holds all of it.

        Only needed before a state is saved in the middle of an epoch on several ranks; every rank has to call it.
        Raises: ConfigError - the ranks have different plans. Cost: two gathers; one host sync.
        """
        ranks.assert_same_on_all_ranks(self._planner.digest() or "", f"the plan of epoch {self._epoch}")
        self._planner.scores.share()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on bit for bit, also in the middle of an epoch, on any number of ranks.

        Raises: ConfigError - on several ranks, ``sync_scores`` has to come first; nothing is exchanged here, so that
            one rank alone may save. Cost: 4 to 6 bytes per sample; one host sync within an epoch.
        """
        state = {
            **self._settings(),
            "epoch": self._epoch,
            "is_over": self._passes.is_over,
            "plan_digest": self._planner.digest(),
            "num_planned": list(self._planner.num_planned),
            **self._planner.scores.state_dict(),
        }
        roles = {name: TensorRole.SCORE for name in ("scores", "fresh") if isinstance(state[name], Tensor)}
        return tag(state, roles)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state: the next pass hands out those visits of its epoch that were not trained.

        Raises: ConfigError - it is of another data set, seed, rule or schedule; nothing was changed.
        """
        needed = ("epoch", "is_over", "plan_digest", "num_planned", "scores", "last_visit", "fresh", "num_nonfinite")
        if missing := [key for key in (*needed, *self._settings()) if key not in state]:
            raise ConfigError(f"this is no state of a {type(self).__name__}: it lacks {', '.join(missing)}")
        for key, value in self._settings().items():
            if state[key] != value:
                raise ConfigError(f"the pruner was saved with {key}={state[key]!r} but this one has {key}={value!r}")
        planner = self._planner
        planner.scores.check_state(state)
        super().set_epoch(state["epoch"])
        planner.scores.load_state_dict(state)
        planner.forget()
        planner.expected_digest = state["plan_digest"]
        planner.num_planned = (state["num_planned"][0], state["num_planned"][1])
        self._passes.resume(is_partial=state["fresh"] is not None, is_over=state["is_over"])
        if ranks.world_size() > 1 and state["is_over"]:
            self._go_to(self._epoch + 1)
        elif planner.share is not None:
            planner.planned(self._epoch, None if state["fresh"] is None else ~state["fresh"].cpu().isnan())

    def epoch_report(self) -> EpochReport:
        """What is planned for the present epoch. Cost: a few passes over the samples."""
        plan = self._planned()
        if plan.share is not None:
            return plan.share.report
        return epoch_report(
            plan.visits,
            epoch=self._epoch,
            is_full=self.schedule.is_full(self._epoch),
            scores=self._planner.scores.tracks[0],
            last_visit=self._planner.scores.last_visit,
            plan_seconds=plan.seconds,
        )

    def run_report(self) -> RunReport:
        """What pruning saved and cost so far, up to and with the present epoch."""
        epochs, visits = self._planner.num_planned
        full = epochs * self.num_samples
        return RunReport(
            num_epochs=epochs,
            num_visits=visits,
            num_visits_full=full,
            saved_fraction=1 - visits / full if full else 0.0,
            num_nonfinite=self._planner.scores.count_nonfinite(),
            pruning_seconds=self._planner.seconds,
        )

    def keep_rates(self, labels: Int64[Tensor, " samples"]) -> Float[Tensor, " classes"]:
        """The fraction of each class that the present epoch visits. Raises: DataError - not one label per sample."""
        if labels.shape != (self.num_samples,):
            raise DataError(f"labels have shape {tuple(labels.shape)}; each of {self.num_samples} samples needs one")
        labels = labels.cpu()
        sizes = torch.bincount(labels)
        return torch.bincount(labels[self.epoch_indices()], minlength=sizes.numel()) / sizes

    def _planned(self) -> EpochPlan:
        """The plan of the present epoch."""
        if self.shard_scores and self._planner.share is None and ranks.world_size() > 1:
            raise ConfigError(
                "this pruner was made before torch.distributed was initialised, so its scores are not sharded; make it "
                "after init_process_group"
            )
        # exchanging scores takes all ranks, and this may be one alone
        if self._passes.is_behind and ranks.world_size() == 1:
            self._go_to(self._epoch + 1)
        return self._planner.planned(self._epoch)

    def _whole_plan(self) -> EpochPlan:
        plan = self._planned()
        if plan.share is not None:
            raise ConfigError(
                "with shard_scores=True a rank keeps only its own share of a plan: iterate the pruner (as a "
                "DataLoader's sampler does), or leave shard_scores out for a loader that takes whole plans"
            )
        return plan

    def _go_to(self, epoch: int) -> None:
        """Leave the present epoch."""
        self._planner.leave(self._epoch)
        self._passes.leave()
        self._epoch = epoch
        if self._planner.share is not None:
            self._planner.planned(epoch)

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "rule": description(self.rule),
            "num_epochs": float(self.schedule.num_epochs),
            "first_pruned": self.schedule.first_pruned,
            "end_pruned": self.schedule.end_pruned,
            "scale": self.scale,
        }


def _refuse_data_set(num_samples: object) -> None:
    if isinstance(num_samples, IterableDataset):
        raise ConfigError(
            "an IterableDataset decides for itself what it gives, so samples cannot be left out by index; use a data "
            "set with __getitem__ and __len__"
        )
    if not isinstance(num_samples, int) and hasattr(num_samples, "__len__"):
        raise ConfigError(f"a {type(num_samples).__name__} was given for num_samples; give its length: len(...)")
