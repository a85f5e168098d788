"""The pruner: a sampler that leaves samples out, and the loss that makes up for it."""

import math
import warnings
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from scrimp._core import ranks
from scrimp.errors import ConfigError, DataError, NoEffectWarning
from scrimp.samples.handout import Handout, flattened
from scrimp.samples.loss_values import LossValues, loss_values, weighted_mean
from scrimp.samples.planner import EpochPlan
from scrimp.samples.positions import PositionSampler
from scrimp.samples.pruned_plan import PrunedPlan


class SamplePruner(PrunedPlan):
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
        rank, world_size - if not those of torch.distributed. shard_scores - for very many samples on several processes:
        each keeps the scores of its own block of samples and its own share of the plan. Plans are the same, to the bit.
        Then starting the first pass, ``set_epoch``, ``state_dict`` and ``load_state_dict`` take all ranks,
        ``epoch_indices`` and loaders that ask for it refuse, and states are those of a pruner without shards.
    Raises: ConfigError - an impossible value, a data set in the place of its length, or a schedule in which no epoch
        could be pruned.
    Cost: between epochs 4 bytes per sample (2 more for each further track of a rule); planning takes about 30 ns per
        sample on one core; ``reduce`` adds a gather, a product and an indexed copy, and no host sync.
    Source: InfoBatch (arXiv 2303.04947) for the scheme and the rule MeanThreshold.
    """

    @property
    def epoch_progress(self) -> float:
        """Epochs trained so far, with the part of the present one by its own number of visits.

        For schedules that should not jump where the number of steps per epoch changes: the learning rate as a function
        of ``pruner.epoch_progress / pruner.num_epochs``, asked for at every step.
        """
        if self._passes.is_resuming and not self._passes.is_over:
            present = self._planned()
            num_remaining = self._remaining().numel() if present.share is None else present.share.num_remaining
            return self._epoch + 1 - num_remaining / present.num_visits
        plan, is_over = self._planner.plan, self._passes.is_over
        if plan is None or is_over:
            return float(self._epoch + is_over)
        return self._epoch + min(1.0, self._passes.num_reduced * self._passes.num_processes / plan.num_visits)

    def restart_epoch(self) -> None:
        """Begin the present epoch again with the same plan, after a pass that was left early."""
        self._passes.restart()

    def __len__(self) -> int:
        """Visits of this rank in the present epoch (in the rest of it, after a resume)."""
        if self._passes.is_resuming:
            return self._own(self._planned()).numel()
        return self._planned().num_visits // self._passes.world_size

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
        valid_per_sample: float | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, weighted so that its expectation is that of the whole data set; and note the scores.

        Differentiable in every term; changes nothing in place. Returns float32 for losses in half precision, which are
        widened before they are weighted, else the dtype of the losses.

        Args: losses - one value per sample, unreduced: (batch,), or (batch, tokens) or (batch, height, width), averaged
            per sample, or a dict of such terms, which are added. index - the samples of the batch; if left out, the
            next ones that the sampler handed out. mask - of the shape of losses: the weighted sum over valid entries is
            divided by the weighted number of valid entries in the batch. Both stand for the whole data set, so the loss
            is consistent whatever lengths and losses have to do with each other; as any ratio over a batch, also
            without pruning, it is unbiased only up to 1 / batch size. valid_per_sample - the mean number of valid
            entries per sample of the data set: the denominator is then this times the batch size, and the loss unbiased
            exactly. scores - how hard each sample is, if not its loss.
        Raises: DataError - an already reduced loss, shapes that do not fit, more losses than samples are out, an index
            that is no index of the data set.
        Cost: a gather, a product and an indexed copy over the batch; no host sync, no collective.
        """
        of = loss_values(losses, mask)
        values = of.values
        if valid_per_sample is not None:
            _check_valid_per_sample(valid_per_sample, of)
        seen = of.scores if scores is None else _checked_scores(scores, values)
        planner, passes = self._planner, self._passes
        plan = planner.plan or self._planned()
        if index is None:
            index = passes.take(values.shape[0], values.device)
        else:
            index = _checked_index(index, values, self.num_samples)
            passes.take_explicit(values.shape[0])
        planner.scores.observe(index, self.rule.batch_scores(seen))
        passes.count(values.shape[0])
        loss = weighted_mean(of, planner.weights_of(plan, index), valid_per_sample)
        is_ratio = of.num_valid is not None and valid_per_sample is None
        factor = plan.factor_of_ratio if is_ratio else plan.factor
        return loss if factor == 1 else loss * factor

    def _begin_pass(self) -> Handout:
        if self._passes.end_last(self._epoch):
            self._go_to(self._epoch + 1)
        if self._epoch >= self.schedule.num_begun:
            warnings.warn(
                f"epoch {self._epoch} is beyond num_epochs={self.num_epochs:g} of this pruner (epochs count from 0): "
                "it visits every sample with weight 1, as the epochs before the end do. Train for as many epochs as "
                "the pruner was made for, or make it with more",
                NoEffectWarning,
                stacklevel=3,
            )
        plan = self._planned()
        if ranks.world_size() > 1:
            self._refuse_plans_that_differ(plan)
        own = self._own(plan)
        return self._passes.begin(own, self._epoch, plan.num_visits // self._passes.world_size)

    def _own(self, plan: EpochPlan) -> Int64[Tensor, " own"]:
        """What this rank's next pass hands out."""
        if plan.share is not None:
            return plan.share.remaining if self._passes.is_resuming else plan.visits.indices
        return self._passes.share(self._remaining() if self._passes.is_resuming else plan.visits.indices)

    def _refuse_plans_that_differ(self, plan: EpochPlan) -> None:
        try:
            ranks.assert_same_on_all_ranks(plan.digest(), f"the plan of epoch {self._epoch}")
        except ConfigError:
            self._planner.forget()
            raise

    def _remaining(self) -> Int64[Tensor, " visits"]:
        """Those visits of the plan that were not trained before the state was saved, over all ranks."""
        indices = self._planned().visits.indices
        visited = self._planner.scores.visited()
        return indices if visited is None else indices[~visited[indices]]


def _check_valid_per_sample(value: float, of: LossValues) -> None:
    if of.num_valid is None:
        raise DataError("valid_per_sample is the mean number of valid entries per sample; it goes with mask=")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(f"valid_per_sample is {value!r}; it has to be a positive number")


def _checked_scores(scores: Tensor, values: Tensor) -> Tensor:
    if scores.shape != values.shape:
        raise DataError(f"scores have shape {tuple(scores.shape)}; each of {values.shape[0]} samples needs one")
    return scores.detach().to(values.device)


def _checked_index(index: Tensor, values: Tensor, num_samples: int) -> Int64[Tensor, " batch"]:
    """``index`` on the device of the losses; its range is looked at where that needs no waiting for a device."""
    if index.shape != values.shape or index.dtype not in (torch.int64, torch.int32):
        raise DataError(
            f"index is {index.dtype} {tuple(index.shape)} for {values.shape[0]} losses; it has to hold one integer "
            f"per sample{flattened(values.shape[0], index.numel())}"
        )
    if index.device.type == "cpu":
        lowest, highest = (int(bound) for bound in torch.aminmax(index))
        if lowest < 0 or highest >= num_samples:
            raise DataError(f"index has values from {lowest} to {highest}, but the data set has {num_samples} samples")
    return index.to(device=values.device, dtype=torch.int64, non_blocking=True)
