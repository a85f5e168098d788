"""Ghost batch norm: batch statistics of small groups of a large batch, for their noise."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp.errors import ConfigError, DataError, NoEffectWarning


def ghost_batch_norm_(model: nn.Module, group_size: int = 32) -> int:
    """Let every batch norm of ``model`` normalise groups of ``group_size`` samples by themselves.

    A large batch then regularises like a small one. The modules stay the same objects with the same parameters,
    buffers, hooks and names; only their class changes, so an optimizer made before stays right.

    Args: model - changed in place. group_size - samples. Called again, it sets a new size.
    Returns: how many batch norms the model has. Raises: ConfigError - the size is no positive integer, or a norm is
        lazy or synchronises ranks; nothing is changed then. Warns: NoEffectWarning - no batch norm.
    Cost: see ``GhostBatchNorm2d``.
    Source: Hoffer, Hubara, Soudry, arXiv 1705.08741; group size 32 is D. Page's ("Bag of Tricks").
    """
    _check_group_size(group_size)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, norm in norms.items():
        if _ghost_class(norm) is None:
            raise ConfigError(
                f"ghost_batch_norm_: {name or 'the model'} is a {type(norm).__name__}; ghost batch norm takes the "
                "place of BatchNorm1d, 2d and 3d (run a lazy one once first; synchronised statistics are its opposite)"
            )
    for norm in norms.values():
        kind = _ghost_class(norm)
        assert kind is not None
        norm.__class__ = kind
        norm.group_size = group_size  # type: ignore[assignment]
    if not norms:
        warnings.warn(f"ghost_batch_norm_ found no batch norm in {type(model).__name__}", NoEffectWarning, stacklevel=2)
    return len(norms)


class _GhostBatchNorm(_BatchNorm):
    group_size: int = 32
    _has_trained: bool = False

    def forward(self, input: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:  # noqa: A002
        """``input`` normalised, in its shape, dtype and memory format."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        self._check_first_batch(input)
        num_groups = len(input) // self.group_size
        if num_groups < 2:
            return super().forward(input)
        # What does not fill a group joins the last one: no group is smaller than the size that was asked for.
        last = len(input) - (num_groups - 1) * self.group_size
        if input.device.type == "cpu" and not torch.compiler.is_compiling():
            # A kernel per group: six times faster here than pointwise operations on all groups. Parts by split and not
            # by slices, whose backward passes would each fill a whole batch.
            parts = input.split([self.group_size] * (num_groups - 1) + [last])
            done = [self._by_kernel(part) for part in parts]
        elif last == self.group_size:
            done = [self._pointwise(input, num_groups)]
        else:
            full, rest = input.split([len(input) - last, last])
            done = [self._pointwise(full, num_groups - 1), self._pointwise(rest, 1)]
        self._track([stats for _, stats in done], input.numel() // input.shape[1])
        return done[0][0] if len(done) == 1 else torch.cat([out for out, _ in done])

    def _check_first_batch(self, inputs: Tensor) -> None:
        if torch.compiler.is_compiling() or self._has_trained:
            return
        self._has_trained = True
        if self.group_size == 1 and inputs.numel() == inputs.shape[0] * inputs.shape[1]:
            raise DataError(
                "ghost batch norm with groups of 1 sample and one value per channel would make every output 0; "
                "use a larger group_size"
            )
        if len(inputs) < self.group_size:
            warnings.warn(
                f"ghost batch norm: the batch has {len(inputs)} samples, fewer than one group of {self.group_size}; it "
                "is normalised as a whole, like by BatchNorm. Use a smaller group_size or a larger batch",
                NoEffectWarning,
                stacklevel=2,
            )

    def _by_kernel(self, group: Tensor) -> tuple[Tensor, tuple[int, Tensor, Tensor]]:
        """One group normalised; how many values a channel has in it, their mean and variance."""
        count = group.numel() // group.shape[1]
        like = self.weight if self.running_mean is None else self.running_mean
        dtype = torch.promote_types(group.dtype, torch.float32) if like is None else like.dtype
        mean, variance = (torch.zeros(group.shape[1], dtype=dtype, device=group.device) for _ in range(2))
        # with a momentum of 1 the running statistics become those of the group
        out = functional.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        return out, (count, mean[None], variance[None] * ((count - 1) / count))

    def _pointwise(self, part: Tensor, num_groups: int) -> tuple[Tensor, tuple[int, Tensor, Tensor]]:
        """All groups of ``part`` normalised; how many values a channel has in each, their means and variances."""
        # Splitting the batch axis is a view in every memory format.
        groups = part.unflatten(0, (num_groups, -1))
        dims = [1, *range(3, groups.dim())]
        wide = groups.float() if groups.dtype in (torch.float16, torch.bfloat16) else groups
        variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        channels = [1, 1, -1] + [1] * (groups.dim() - 3)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.view(channels)
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias.view(channels)
        out = (wide * scale + shift).to(part.dtype).flatten(0, 1)
        return out, (part.numel() // (part.shape[1] * num_groups), mean.flatten(1), variance.flatten(1))

    @torch.no_grad()
    def _track(self, stats: list[tuple[int, Tensor, Tensor]], count: int) -> None:
        """Running statistics of the whole batch, as BatchNorm has them: its mean, and its variance over all groups."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weights = [size / count for size, _, _ in stats]
        mean = sum(w * means.sum(0) for w, (_, means, _) in zip(weights, stats, strict=True))
        # the variance of all values is the mean variance within groups plus the variance of the groups' means
        variance = sum(
            w * (variances + (means - mean).square()).sum(0)
            for w, (_, means, variances) in zip(weights, stats, strict=True)
        )
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        factor = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), factor)

    def extra_repr(self) -> str:
        """As BatchNorm's, with the size of a group."""
        return f"{super().extra_repr()}, group_size={self.group_size}"  # type: ignore[no-untyped-call]


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """As ``GhostBatchNorm2d``, for inputs (batch, channels) or (batch, channels, length)."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Batch norm that in training normalises each ``group_size`` consecutive samples by their own statistics.

    Samples that fill no group join the last one; a batch that holds fewer than two groups is one, and the result is
    then that of BatchNorm, bit by bit. Running statistics are those that BatchNorm would have of the whole batch (its
    variance includes the one between groups), so evaluation is BatchNorm's. Statistics are computed in float32 at
    least, and a group is split off the batch axis alone, so that any memory format is kept.

    Args: num_features, and all other options of BatchNorm. group_size - samples; ``ghost_batch_norm_`` sets it.
    Raises: DataError - groups of one sample with one value per channel. Warns: NoEffectWarning - the first batch is
        smaller than a group.
    Cost: on a CPU, BatchNorm's kernel per group and one copy of the output. Elsewhere, and compiled, pointwise
        operations on all groups at once, which a compiler can fuse; uncompiled they keep float32 copies of
        half-precision inputs for the backward pass, and a batch with an unfilled group is copied once.
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """As ``GhostBatchNorm2d``, for inputs (batch, channels, depth, height, width)."""


def _ghost_class(norm: nn.Module) -> type[_GhostBatchNorm] | None:
    if isinstance(norm, _GhostBatchNorm):
        return type(norm)
    kinds: dict[type[nn.Module], type[_GhostBatchNorm]] = {
        nn.BatchNorm1d: GhostBatchNorm1d,
        nn.BatchNorm2d: GhostBatchNorm2d,
        nn.BatchNorm3d: GhostBatchNorm3d,
    }
    return kinds.get(type(norm))


def _check_group_size(group_size: int) -> None:
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ConfigError(f"group_size is {group_size!r}; it has to be a positive number of samples")
