"""The pruner: a sampler that leaves samples out, and the loss that makes up for it."""

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import IterableDataset

from scrimp._core import ranks
from scrimp._core.index_plan import PlanSampler
from scrimp._core.rng import generator
from scrimp._core.tensor_role import TensorRole, tag
from scrimp.errors import ConfigError, DataError
from scrimp.samples.draw import Visits, random_order
from scrimp.samples.handout import Handout
from scrimp.samples.loss_values import loss_values
from scrimp.samples.positions import PositionSampler
from scrimp.samples.report import EpochReport, RunReport, epoch_report
from scrimp.samples.rules.mean_threshold import MeanThreshold
from scrimp.samples.rules.rule import Rule
from scrimp.samples.schedule import Schedule, steps_of
from scrimp.samples.scores import ScoreStore

_IDLE_PASSES_ALLOWED = 2


class SamplePruner(PlanSampler):
    """Dynamic data pruning for any loop: a sampler that skips samples, and a loss that stays unbiased.

    ::

        pruner = scrimp.SamplePruner(len(train_set), num_epochs=200, rule=scrimp.samples.Budget(keep=0.6))
        loader = DataLoader(train_set, batch_size=128, sampler=pruner)
        for epoch in range(200):
            for images, labels in loader:
                losses = F.cross_entropy(model(images), labels, reduction="none")
                loss = pruner.reduce(losses)

    Before each epoch the rule chooses from the samples' scores (their last losses) which ones to visit; the loss of a
    visit is weighted by the inverse of its probability. The first epoch is full, to learn the scores; the last
    ``anneal`` of the epochs is full again, with all weights 1.

    Which loss belongs to which sample. ``reduce(losses)`` relies on order: a DataLoader hands out batches in the order
    in which it drew their indices, with any number of workers. It has to be called once per batch (or per part of a
    batch, in order). Whatever breaks the order is refused where it can be told: too many losses at once, too few at
    the end of a pass, ``in_order=False``, wrappers that shard. ``reduce(losses, index=...)`` is right always.

    Epochs. The next one begins when a new pass is started after all batches of a pass were reduced, or by
    ``set_epoch``. A pass that is left by ``break`` before that, or without a single ``reduce``, repeats the same plan.
    ``len`` speaks of the next epoch as soon as the loop is left; with persistent workers, from the next pass on or
    after ``set_epoch``.

    Ranks. Iterating gives this rank's share, the same number of visits on every rank (a rest of fewer visits than there
    are ranks is left out); ``epoch_indices`` is the whole plan, which a DeviceLoader splits itself. Starting a pass
    and ``set_epoch`` exchange scores and compare plans, so every rank has to do them. With a wrapper that shards a
    loader by itself, give ``world_size=1`` and use ``index=``.

    Your own weights: a class-weighted objective stays unbiased as ``reduce(weights[labels] * losses, scores=losses)``.
    A sampler that repeats samples (WeightedRandomSampler) cannot be combined with pruning; a batch sampler that
    groups the samples of ``epoch_indices()`` can, with ``index=``.

    Not unbiased is what does not add up over samples: statistics of BatchNorm over a batch, contrastive losses,
    partners in mixup (weights of both images enter), a clipped gradient.

    Args: num_samples - ``len`` of the data set. num_epochs - of the whole training; may be fractional.
        rule - which samples an epoch visits. anneal - fraction of the epochs, at the end, that are full.
        num_full_first - full epochs at the beginning; 1 for rules that need scores, else 0.
        seed - names the run's random choices. scale - what ``reduce`` returns in expectation. "sum" (the paper):
        a step's gradient grows by num_samples / visits as the steps become fewer, so that an epoch of SGD moves as far
        as without pruning; at half of the visits that is like twice the learning rate. "constant": the mean loss, for
        optimizers that do not care for the gradient's scale (Adam, LAMB, sign methods), for gradient clipping, and
        where the learning rate is near the largest that works.
        rank, world_size - if not those of torch.distributed.
    Raises: ConfigError - an impossible value, a data set in the place of its length, or a schedule in which no epoch
        could be pruned.
    Cost: between epochs 4 bytes per sample (2 more for each further track of a rule); planning takes about 30 ns per
        sample on one core; ``reduce`` adds a gather, a product and an indexed copy, and no host sync.
    Source: InfoBatch (arXiv 2303.04947) for the scheme and the rule MeanThreshold.
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
    ) -> None:
        _refuse_data_set(num_samples)
        super().__init__(num_samples)
        generator(seed)  # refuses a bad seed here and not in the first epoch
        if not isinstance(rule, Rule):
            raise ConfigError(f"rule is {rule!r}; it has to be a scrimp.samples.Rule, such as MeanThreshold()")
        if scale not in {"sum", "constant"}:
            raise ConfigError(f"scale is {scale!r}; it has to be 'sum' or 'constant'")
        if (rank is None) != (world_size is None):
            raise ConfigError("give both rank and world_size, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} but world_size is {world_size}; ranks count from 0")
        if num_full_first is None:
            num_full_first = 1 if rule.needs_scores else 0
        self.schedule = Schedule.of(num_epochs, anneal, num_full_first)
        self.rule = rule
        self.seed = seed
        self.scale = scale
        self._given_rank, self._given_world_size = rank, world_size
        self._scores = ScoreStore(num_samples, rule, self.schedule.num_begun)
        self._plan: _Plan | None = None
        self._handout: Handout | None = None
        self._weights: Tensor | None = None
        self._is_resuming = False
        self._num_reduced = 0  # of this rank, in the present epoch
        self._num_idle_passes = 0
        self._num_planned = (0, 0)  # epochs of the training, and their visits
        self._seconds = 0.0

    @property
    def epoch(self) -> int:
        """The present epoch, from 0; the next one as soon as a loop is left whose batches were all reduced."""
        return self._epoch + self._is_behind

    @property
    def num_epochs(self) -> float:
        """Epochs of the whole training."""
        return self.schedule.num_epochs

    @property
    def num_visits(self) -> int:
        """Visits that the present epoch makes, over all ranks."""
        return self._planned().num_visits

    @property
    def epoch_progress(self) -> float:
        """Epochs trained so far, with the part of the present one by its own number of visits.

        For schedules that should not jump where the number of steps per epoch changes: the learning rate as a function
        of ``pruner.epoch_progress / pruner.num_epochs``, asked for at every step.
        """
        if self._plan is None or self._is_over:
            return float(self._epoch + self._is_over)
        return self._epoch + min(1.0, self._num_reduced * self._world_size() / self._plan.num_visits)

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch; the losses of the present one become scores. The present one again: no effect.

        Every rank has to call this alike. Raises: ConfigError - negative or no integer.
        """
        before = self._epoch
        super().set_epoch(epoch)
        if epoch != before:
            self._epoch = before
            self._go_to(epoch)

    def restart_epoch(self) -> None:
        """Begin the present epoch again with the same plan, after a pass that was left early."""
        self._handout = None
        self._is_resuming = False

    def epoch_indices(self) -> Int64[Tensor, " visits"]:
        """The samples that the present epoch visits, in order, over all ranks."""
        return self._planned().visits.indices

    def epoch_weights(self) -> Float[Tensor, " visits"] | None:
        """The weight of each visit, in the same order; ``None`` if all are 1, as in full epochs."""
        return self._planned().visits.weights

    def __len__(self) -> int:
        """Visits of this rank in the present epoch (in the rest of it, after a resume)."""
        if self._is_resuming:
            return self._share(self._remaining()).numel()
        return self._planned().num_visits // self._world_size()

    def __iter__(self) -> Iterator[int]:
        return self._begin_pass().hand_out()

    def positions(self) -> PositionSampler:
        """This sampler for torchdata's StatefulDataLoader, which saves for every batch where its sampler stands."""
        return PositionSampler(self, self._begin_pass)

    def reduce(
        self,
        losses: Tensor | Mapping[str, Tensor],
        *,
        index: Int64[Tensor, " batch"] | None = None,
        mask: Shaped[Tensor, "batch ..."] | None = None,
        scores: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, weighted so that its expectation is that of the whole data set; and note the scores.

        Differentiable in every term; changes nothing in place. Returns float32 for losses in half precision, which are
        widened before they are weighted, else the dtype of the losses.

        Args: losses - one value per sample, unreduced: (batch,), or (batch, tokens) or (batch, height, width), averaged
            per sample, or a dict of such terms, which are added. index - the samples of the batch; if left out, the
            next ones that the sampler handed out. mask - of the shape of losses: the sum over valid entries is divided
            by the number of valid entries in the batch. scores - how hard each sample is, if not its loss.
        Raises: DataError - an already reduced loss, shapes that do not fit, more losses than samples are out, an index
            that is no index of the data set.
        Cost: a gather, a product and an indexed copy over the batch; no host sync, no collective.
        """
        values, seen = loss_values(losses, mask)
        if scores is not None:
            seen = _checked_scores(scores, values)
        plan = self._plan or self._planned()
        index = self._take(values.shape[0], values.device) if index is None else self._checked_index(index, values)
        self._scores.observe(index, seen)
        self._is_resuming = False
        self._num_reduced += values.shape[0]
        if plan.visits.weights is not None:
            weights = self._weights_by_sample(plan, values.device).index_select(0, index)
            values = values * weights if values.dtype is weights.dtype else values * weights.to(values.dtype)
        loss = values.mean()
        return loss if plan.factor == 1 else loss * plan.factor

    def total_steps(
        self, batch_size: int, *, drop_last: bool = False, world_size: int | None = None, accumulation: int = 1
    ) -> int:
        """Optimizer steps of the whole training, exactly, before it begins.

        Args: batch_size - per rank. world_size - if not the present one. accumulation - batches per optimizer step; an
            epoch's last step may have fewer.
        Raises: ConfigError - the rule's number of visits depends on the scores.
        """
        num_visits = self.rule.num_visits(self.num_samples)
        if num_visits is None:
            raise ConfigError(
                f"how many samples {type(self.rule).__name__} visits depends on their scores, so the number of steps "
                "is not known before training; make the schedule a function of pruner.epoch_progress, or use a rule "
                "with a budget, such as scrimp.samples.Budget(keep=0.6)"
            )
        size = self._world_size() if world_size is None else world_size
        full, pruned = (
            -(-steps_of(visits, batch_size, size, drop_last=drop_last) // accumulation)
            for visits in (self.num_samples, num_visits)
        )
        return self.schedule.total_steps(full, pruned)

    def sync_scores(self) -> None:
        """Exchange what the ranks have seen in this epoch, so that ``state_dict`` holds all of it.

        Only needed before a state is saved in the middle of an epoch on several ranks; every rank has to call it.
        Cost: one gather; one host sync.
        """
        self._scores.share()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on bit for bit, also in the middle of an epoch, on any number of ranks.

        Raises: ConfigError - on several ranks, ``sync_scores`` has to come first; nothing is exchanged here, so that
            one rank alone may save. Cost: 4 to 6 bytes per sample; one host sync within an epoch.
        """
        state = {
            **self._settings(),
            "epoch": self._epoch,
            "is_over": self._is_over,
            "plan_digest": self._expected_digest if self._plan is None else self._plan.digest(),
            "num_planned": list(self._num_planned),
            **self._scores.state_dict(),
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
        self._scores.check_state(state)
        super().set_epoch(state["epoch"])
        self._scores.load_state_dict(state)
        self._forget_plan()
        self._num_idle_passes = 0
        self._is_resuming = state["fresh"] is not None
        self._num_reduced = 0
        self._was_over = state["is_over"]
        self._expected_digest = state["plan_digest"]
        self._num_planned = (state["num_planned"][0], state["num_planned"][1])

    def epoch_report(self) -> EpochReport:
        """What is planned for the present epoch. Cost: a few passes over the samples."""
        plan = self._planned()
        return epoch_report(
            plan.visits,
            epoch=self._epoch,
            is_full=self.schedule.is_full(self._epoch),
            scores=self._scores.tracks[0],
            last_visit=self._scores.last_visit,
            plan_seconds=plan.seconds,
        )

    def run_report(self) -> RunReport:
        """What pruning saved and cost so far, up to and with the present epoch."""
        epochs, visits = self._num_planned
        full = epochs * self.num_samples
        return RunReport(
            num_epochs=epochs,
            num_visits=visits,
            num_visits_full=full,
            saved_fraction=1 - visits / full if full else 0.0,
            num_nonfinite=self._scores.num_nonfinite,
            pruning_seconds=self._seconds,
        )

    def keep_rates(self, labels: Int64[Tensor, " samples"]) -> Float[Tensor, " classes"]:
        """The fraction of each class that the present epoch visits. Raises: DataError - not one label per sample."""
        if labels.shape != (self.num_samples,):
            raise DataError(f"labels have shape {tuple(labels.shape)}; each of {self.num_samples} samples needs one")
        labels = labels.cpu()
        sizes = torch.bincount(labels)
        return torch.bincount(labels[self.epoch_indices()], minlength=sizes.numel()) / sizes

    # --- the present epoch

    _was_over = False
    _expected_digest: str | None = None

    @property
    def _is_over(self) -> bool:
        """Whether the present epoch is trained and only waits for the next pass to begin another."""
        return self._was_over if self._handout is None else self._handout.is_complete

    @property
    def _is_behind(self) -> bool:
        """Whether its loop is left, too: within the last batch, ``epoch`` and ``len`` still speak of this epoch."""
        return self._is_over and (self._handout is None or self._handout.is_left)

    def _planned(self) -> "_Plan":
        """The plan of the present epoch."""
        if self._is_behind and ranks.world_size() == 1:  # exchanging scores takes all ranks, and this may be one alone
            self._go_to(self._epoch + 1)
        if self._plan is None:
            begin = time.perf_counter()
            visits = self._choose()
            seconds = time.perf_counter() - begin
            num_visits = visits.indices.numel()
            factor = 1.0 if self.scale == "sum" else num_visits / self.num_samples
            self._plan = _Plan(visits, num_visits, factor, seconds)
            self._seconds += seconds
            expected, self._expected_digest = self._expected_digest, None
            if expected is None and self._epoch < self.schedule.num_begun:
                self._num_planned = (self._num_planned[0] + 1, self._num_planned[1] + num_visits)
            if expected is not None and self._plan.digest() != expected:
                raise ConfigError(
                    f"the plan of epoch {self._epoch} is not the one that was saved: another version of torch or of "
                    "the rule draws differently. Resume at an epoch's beginning, with set_epoch"
                )
        return self._plan

    def _choose(self) -> Visits:
        if self.schedule.is_full(self._epoch):
            random = generator(self.seed, "samples", self._epoch, "full")
            return Visits(random_order(self.num_samples, random).to(torch.int64))
        visits = self.rule.select(self._scores.view(self._epoch, self.seed))
        if not visits.indices.numel():
            raise DataError(f"{self.rule!r} left no sample for epoch {self._epoch}")
        return visits

    def _go_to(self, epoch: int) -> None:
        """Leave the present epoch: its losses become scores, then its plan is forgotten."""
        begin = time.perf_counter()
        is_partial = self._plan is not None and self._plan.num_visits < self.num_samples
        planned = self._plan.visits.indices if self._plan is not None and is_partial else None
        self._scores.commit(self._epoch, planned)
        self._forget_plan()
        self._epoch = epoch
        self._is_resuming = self._was_over = False
        self._num_reduced = 0
        self._expected_digest = None
        self._seconds += time.perf_counter() - begin

    def _forget_plan(self) -> None:
        self._plan = self._handout = self._weights = None

    # --- passes

    def _begin_pass(self) -> Handout:
        if self._handout is not None:
            self._handout.check_end()
            self._count_idle(self._handout)
        if self._is_over or (self._handout is not None and self._handout.is_explicit and _is_spent(self._handout)):
            self._go_to(self._epoch + 1)
        plan = self._planned()
        if ranks.world_size() > 1:
            ranks.assert_same_on_all_ranks(plan.digest(), f"the plan of epoch {self._epoch}")
        order = self._remaining() if self._is_resuming else plan.visits.indices
        self._num_reduced = (plan.num_visits - order.numel()) // self._world_size()
        self._handout = Handout(self._share(order), self._epoch)
        return self._handout

    def _count_idle(self, last: Handout) -> None:
        self._num_idle_passes = self._num_idle_passes + 1 if last.is_untouched and _is_spent(last) else 0
        if self._num_idle_passes >= _IDLE_PASSES_ALLOWED:
            raise ConfigError(
                f"{self._num_idle_passes} whole passes over epoch {self._epoch} brought no losses; call "
                "pruner.reduce(losses) for every batch, or the epoch never ends"
            )

    def _remaining(self) -> Int64[Tensor, " visits"]:
        """Those visits of the plan that were not trained before the state was saved, over all ranks."""
        indices = self._planned().visits.indices
        visited = self._scores.visited()
        return indices if visited is None else indices[~visited[indices]]

    def _share(self, order: Int64[Tensor, " visits"]) -> Int64[Tensor, " own"]:
        size = self._world_size()
        return order if size == 1 else order[: order.numel() // size * size][self._rank() :: size]

    def _rank(self) -> int:
        return ranks.rank() if self._given_rank is None else self._given_rank

    def _world_size(self) -> int:
        return ranks.world_size() if self._given_world_size is None else self._given_world_size

    # --- steps

    def _take(self, batch_size: int, device: torch.device) -> Int64[Tensor, " batch"]:
        if self._handout is None:
            raise DataError(
                "reduce(losses) relies on the order in which this sampler handed out samples, but it handed out none: "
                "give the pruner to the loader, as DataLoader(data, sampler=pruner), or tell the samples with index="
            )
        return self._handout.take(batch_size, device)

    def _checked_index(self, index: Tensor, values: Tensor) -> Int64[Tensor, " batch"]:
        if index.shape != values.shape or index.dtype not in (torch.int64, torch.int32):
            raise DataError(
                f"index is {index.dtype} {tuple(index.shape)} for {values.shape[0]} losses; it has to hold one integer "
                "per sample"
            )
        if index.device.type == "cpu":
            lowest, highest = (int(bound) for bound in torch.aminmax(index))
            if lowest < 0 or highest >= self.num_samples:
                raise DataError(
                    f"index has values from {lowest} to {highest}, but the data set has {self.num_samples} samples"
                )
        if self._handout is not None:
            self._handout.take_explicit(index.shape[0])
        return index.to(device=values.device, dtype=torch.int64, non_blocking=True)

    def _weights_by_sample(self, plan: "_Plan", device: torch.device) -> Float[Tensor, " samples"]:
        """Weights where the losses are; NaN for samples that the epoch leaves out, so that a mistake is seen."""
        if self._weights is None or self._weights.device != device:
            assert plan.visits.weights is not None
            weights = torch.full((self.num_samples,), torch.nan)
            weights[plan.visits.indices] = plan.visits.weights
            self._weights = weights.to(device)
        return self._weights

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "seed": self.seed,
            "rule": _description(self.rule),
            "num_epochs": float(self.schedule.num_epochs),
            "first_pruned": self.schedule.first_pruned,
            "end_pruned": self.schedule.end_pruned,
        }


class InfoBatch(SamplePruner):
    """The method of the InfoBatch paper, in three lines of anybody's loop: SamplePruner with the rule MeanThreshold.

    ::

        pruner = scrimp.InfoBatch(len(train_set), num_epochs=200)
        loader = DataLoader(train_set, batch_size=128, sampler=pruner)
        loss = pruner.reduce(losses)                          # in the loop; losses: one value per sample

    Args: prune_ratio - fraction of the samples below the mean loss that an epoch leaves out. Everything else, and what
        may go wrong, is described at SamplePruner.
    Source: InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning (ICLR 2024, arXiv 2303.04947).
    """

    def __init__(
        self,
        num_samples: int,
        num_epochs: float,
        *,
        prune_ratio: float = 0.5,
        anneal: float = 0.125,
        seed: int = 0,
        scale: Literal["sum", "constant"] = "sum",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(
            num_samples,
            num_epochs,
            MeanThreshold(prune_ratio),
            anneal=anneal,
            seed=seed,
            scale=scale,
            rank=rank,
            world_size=world_size,
        )


@dataclass(frozen=True)
class _Plan:
    visits: Visits
    num_visits: int
    factor: float
    seconds: float

    def digest(self) -> str:
        """A checksum of indices and weights."""
        digest = hashlib.blake2b(self.visits.indices.numpy().tobytes(), digest_size=16)
        if self.visits.weights is not None:
            digest.update(self.visits.weights.numpy().tobytes())
        return digest.hexdigest()


def _is_spent(handout: Handout) -> bool:
    return handout.num_handed == len(handout.order)


def _refuse_data_set(num_samples: object) -> None:
    if isinstance(num_samples, IterableDataset):
        raise ConfigError(
            "an IterableDataset decides for itself what it gives, so samples cannot be left out by index; use a data "
            "set with __getitem__ and __len__"
        )
    if not isinstance(num_samples, int) and hasattr(num_samples, "__len__"):
        raise ConfigError(f"a {type(num_samples).__name__} was given for num_samples; give its length: len(...)")


def _checked_scores(scores: Tensor, values: Tensor) -> Tensor:
    if scores.shape != values.shape:
        raise DataError(f"scores have shape {tuple(scores.shape)}; each of {values.shape[0]} samples needs one")
    return scores.detach().to(values.device)


def _description(value: Any) -> Any:
    """A rule as JSON values, so that a state can say what it belongs to."""
    if isinstance(value, Rule):
        names: list[str] = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        return {"name": type(value).__name__, **{name: _description(getattr(value, name)) for name in names}}
    if isinstance(value, tuple | list):
        return [_description(item) for item in value]
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value
