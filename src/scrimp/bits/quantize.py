"""The quantiser of self-compressing networks, 2^e * round(clamp(w / 2^e, low, high)), and its gradients."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scrimp.bits.fused import compiled_on_gpu

MOST_BITS = 16.0
"""More change nothing: 2^16 levels are beyond what float32 weights are trained to, and the cap keeps 2^b finite."""


def quantize(
    weight: Float[Tensor, "..."],
    bits: Float[Tensor, " channels"],
    exponent: Float[Tensor, " channels"],
    channel_dim: int = 0,
    *,
    symmetric: bool = False,
    fused: bool | None = None,
) -> Float[Tensor, "..."]:
    """``weight`` rounded to signed codes of ``bits`` bits times ``2**exponent``, one pair for each channel.

    Both are real numbers; ``bits`` count from 0 to 16. Codes lie between -2^(b-1) and 2^(b-1) - 1 before rounding, or
    as far on either side, ``symmetric``, between -(2^(b-1) - 1/2) and 2^(b-1) - 1/2: then up to 2 bits are -1, 0 and 1,
    where the first kind has -1 and 0 alone below 1.58 bits. A channel that is left with the one code 0, by zero bits
    or less, by one bit or less if symmetric, is exactly zero and gets no gradient at all, so it stays as it is. Ties
    are rounded to even, so that zero bits give zero and not -1.

    Gradients treat rounding as the identity (straight through): to a weight where it is not clipped; to the bits from
    clipped weights; to the exponent from the rounding error and from clipped weights.

    Computed in float32 at least, whatever autocast says; the result has the dtype of ``weight``.

    Args: fused - forward and backward as one compiled kernel each; by default on a GPU, if torch can compile there. The
        result is the same to the bit, gradients of bits and exponent to the order of their sums.
    Cost: about ten passes over the weights forward and fifteen backward, fused one each; the result is kept for the
    backward. No host sync. Source: Csefalvay and Imber, arXiv 2301.13142, eq. 1; symmetric codes are ours.
    """
    result: Tensor = _Quantize.apply(weight, bits, exponent, channel_dim, symmetric, fused)  # type: ignore[no-untyped-call]
    return result


def codes_and_scales(
    weight: Tensor, bits: Tensor, exponent: Tensor, channel_dim: int = 0, *, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """The whole numbers (as floats, like ``weight``) and the scale of each channel that ``quantize`` uses."""
    weight, bits, exponent = _in_working_dtype(weight, bits, exponent)
    lower, upper, scale = _bounds(bits, exponent, symmetric)
    shape = _broadcast_shape(weight, channel_dim)
    return _codes(weight, lower.view(shape), upper.view(shape), scale.reciprocal().view(shape)), scale


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        weight: Tensor, bits: Tensor, exponent: Tensor, channel_dim: int, symmetric: bool, fused: bool | None
    ) -> Tensor:
        wide, bits, exponent = _in_working_dtype(weight, bits, exponent)
        channels = [one.view(_broadcast_shape(weight, channel_dim)) for one in _bounds(bits, exponent, symmetric)]
        # powers and reciprocals are taken here, so that one kernel or several give the same numbers
        (result,) = _quantized(wide, *channels, channels[2].reciprocal(), fused=fused)
        return result.to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, bits, exponent, ctx.channel_dim, ctx.symmetric, ctx.fused = inputs
        ctx.save_for_backward(weight, bits, exponent, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        weight, bits, exponent, output = ctx.saved_tensors
        shape = _broadcast_shape(weight, ctx.channel_dim)
        wide, wide_bits, wide_exponent = _in_working_dtype(weight, bits, exponent)
        lower, upper, scale = _bounds(wide_bits, wide_exponent, ctx.symmetric)
        is_live = wide_bits > bits_of_nothing(symmetric=ctx.symmetric)
        rows = (lower.view(shape), upper.view(shape), scale.reciprocal().view(shape), is_live.view(shape))
        whole, side, error = _gradients(wide, grad.to(wide.dtype), output.to(wide.dtype), *rows, fused=ctx.fused)

        grad_weight = grad_bits = grad_exponent = None
        if ctx.needs_input_grad[0]:
            grad_weight = whole.to(weight.dtype)
        if ctx.needs_input_grad[1]:
            slope = math.log(2) * torch.exp2(wide_bits.clamp(0.0, MOST_BITS) - 1) * scale
            learns = is_live & (wide_bits < MOST_BITS)
            grad_bits = (side.view(-1) * slope * learns).to(bits.dtype)
        if ctx.needs_input_grad[2]:
            grad_exponent = (error.view(-1) * math.log(2)).to(exponent.dtype)
        return grad_weight, grad_bits, grad_exponent, None, None, None


def _codes(weight: Tensor, lower: Tensor, upper: Tensor, inverse: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(weight * inverse, lower), upper).round_()


@compiled_on_gpu
def _quantized(weight: Tensor, lower: Tensor, upper: Tensor, scale: Tensor, inverse: Tensor) -> Sequence[Tensor]:
    # adding zero turns -0.0 into 0.0, so that a zero here and one read from integer codes are the same bits
    return (_codes(weight, lower, upper, inverse).mul_(scale).add_(0.0),)


@compiled_on_gpu
def _gradients(
    weight: Tensor, grad: Tensor, output: Tensor, lower: Tensor, upper: Tensor, inverse: Tensor, is_live: Tensor
) -> Sequence[Tensor]:
    """The gradient of the weight; sums, for each channel, of clipped gradients by their side, and of the error's."""
    others = [dim for dim in range(weight.dim()) if lower.shape[dim] == 1]
    scaled = weight * inverse
    # compared, and not subtracted, which a compiler may fuse with the product; then floats in place, since on a
    # processor each use of a mask is another conversion
    side = (scaled > upper).to(grad.dtype).sub_((scaled < lower).to(grad.dtype))
    inside = (1 - side.abs()).mul_(is_live.to(grad.dtype))
    error = scaled.copy_(weight).mul_(inside).neg_().add_(output)
    by_side, by_error = side.mul_(grad).sum(others, keepdim=True), error.mul_(grad).sum(others, keepdim=True)
    return inside.mul_(grad), by_side, by_error


def bits_of_nothing(*, symmetric: bool) -> float:
    """The most bits with which a channel has no code but zero."""
    return 1.0 if symmetric else 0.0


def _bounds(bits: Tensor, exponent: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the greatest code before rounding, and the scale."""
    half = torch.exp2(bits.clamp(bits_of_nothing(symmetric=symmetric), MOST_BITS) - 1)
    if not symmetric:
        return -half, half - 1, torch.exp2(exponent)
    # a hair less than the half, which would be rounded to the even code: whole bits have one code less than 2^bits
    upper = torch.nextafter(half - 0.5, torch.zeros_like(half))
    return -upper, upper, torch.exp2(exponent)


def _in_working_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _broadcast_shape(weight: Tensor, channel_dim: int) -> list[int]:
    return [size if dim == channel_dim else 1 for dim, size in enumerate(weight.shape)]
