"""The parametrization on the weight of a compressed layer: a bit depth and an exponent for each output channel."""

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrimp.bits.quantize import MOST_BITS, bits_of_nothing, codes_and_scales, quantize

if TYPE_CHECKING:
    from scrimp.bits.size_plan import Objective
    from scrimp.bits.wiring import Wiring


@dataclass(frozen=True)
class LayerFacts:
    """What a quantiser remembers of its layer as it was before anything was removed.

    ``num_weights`` of the layer and ``num_all_weights`` of all quantised layers; ``num_channels`` of its output;
    ``num_positions`` at which one sample applies the weights (pixels or tokens); ``order`` in which layers are called;
    ``num_all_operations`` and ``num_all_activations``: weights and channels of all layers, each times its positions.
    """

    num_weights: int
    num_all_weights: int
    num_channels: int
    num_positions: int
    order: int
    num_all_operations: int
    num_all_activations: int


class Quantizer(nn.Module, abc.ABC):
    """Quantises a weight as ``torch.nn.utils.parametrize`` asks for.

    The kinds are ``BitsRange``, ``BitsExponent`` and ``StepRange``.

    Its parameters have one value for each output channel, the slices of dimension ``channel_dim`` of the weight.
    ``least_bits`` above zero keeps the channels of a layer (a model's output) from vanishing. The codes of a
    ``symmetric`` kind reach as far below zero as above, and a channel of one bit is nothing but zeros.
    """

    symmetric: ClassVar[bool] = False

    def __init__(
        self,
        bits: Float[Tensor, " channels"],
        exponent: Float[Tensor, " channels"],
        *,
        channel_dim: int = 0,
        least_bits: float = 0.0,
        integer_exponent: bool = False,
        facts: LayerFacts,
    ) -> None:
        super().__init__()
        self.channel_dim, self.least_bits, self.facts = channel_dim, least_bits, facts
        self.integer_exponent = integer_exponent
        self.name = ""
        self.wiring: Wiring | None = None
        self.slopes: dict[Objective, float] = {}
        self.usual_slopes: dict[Objective, float] = {}
        self.start(bits, exponent)

    @abc.abstractmethod
    def start(self, bits: Float[Tensor, " channels"], exponent: Float[Tensor, " channels"]) -> None:
        """Make the parameters."""

    @abc.abstractmethod
    def learned(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Bits and exponent as the parameters say, before any limit; differentiable."""

    @abc.abstractmethod
    @torch.no_grad()
    def set_(self, bits: Float[Tensor, " channels"], exponent: Float[Tensor, " channels"]) -> None:
        """Make the parameters say this."""

    @abc.abstractmethod
    def rate_scale(self, name: str) -> float | None:
        """The share of the rate of bits that the parameter ``name`` moves them with; None if it does not."""

    def used(self) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Bits and exponent that the weight is quantised with; differentiable.

        Bits below ``least_bits`` count as these, and an integer exponent is the nearest; gradients pass through both.
        """
        bits, exponent = self.learned()
        if self.least_bits > 0:
            bits = bits + (bits.clamp(min=self.least_bits) - bits).detach()
        if self.integer_exponent:
            exponent = exponent + (exponent.round() - exponent).detach()
        return bits, exponent

    def bits(self) -> Float[Tensor, " channels"]:
        """The bits of each channel, from 0 to 16; no gradient."""
        with torch.no_grad():
            bits = self.used()[0].clamp(0.0, MOST_BITS)
            return torch.where(bits > self.bits_of_nothing, bits, 0.0)

    @property
    def bits_of_nothing(self) -> float:
        """The most bits with which a channel has no code but zero; ``bits`` tells these as none."""
        return bits_of_nothing(symmetric=self.symmetric)

    def dead(self) -> Bool[Tensor, " channels"]:
        """The channels of zero bits: their weights are zero and will stay zero, because no gradient reaches them."""
        return self.bits() <= 0

    @torch.no_grad()
    def codes_and_scales(self, weight: Tensor) -> tuple[Tensor, Float[Tensor, " channels"]]:
        """The codes of the raw ``weight`` (whole numbers as floats) and the scale of each channel."""
        return codes_and_scales(weight, *self.used(), self.channel_dim, symmetric=self.symmetric)

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight."""
        return quantize(weight, *self.used(), self.channel_dim, symmetric=self.symmetric)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the layer's weight is the raw weight."""
        return weight


class BitsExponent(Quantizer):
    """The paper's parameters: bit depth ``depth`` and ``exponent``, both real."""

    def start(self, bits: Tensor, exponent: Tensor) -> None:
        """Make the parameters."""
        self.depth, self.exponent = nn.Parameter(bits), nn.Parameter(exponent)

    def rate_scale(self, name: str) -> float | None:
        """All of it for the depth."""
        return 1.0 if name == "depth" else None

    def learned(self) -> tuple[Tensor, Tensor]:
        """The parameters themselves."""
        return self.depth, self.exponent

    @torch.no_grad()
    def set_(self, bits: Tensor, exponent: Tensor) -> None:
        """Set the parameters."""
        self.depth.copy_(bits)
        self.exponent.copy_(exponent)


class BitsRange(Quantizer):
    """Bit depth ``depth`` and the logarithm (base 2) of the span from least to greatest code, ``log_span``.

    The exponent follows, ``log_span - depth``: fewer bits are coarser codes. With the paper's parameters a channel that
    loses a bit loses half of its range, and the weights beyond it are clipped and stop learning until the exponent has
    caught up, which takes longer than bits take to fall. Here weights stay within the range, and what a bit is worth
    to the task shows in the rounding error at once. Codes are symmetric: of the paper's codes a channel below 1.58 bits
    has -1 and 0 alone, where it can only take away; here it has -1, 0 and 1 down to one bit, fewer and fewer of them
    other than 0. ``docs/bits.md`` has both beside each other.
    """

    symmetric = True

    def start(self, bits: Tensor, exponent: Tensor) -> None:
        """Make the parameters."""
        self.depth, self.log_span = nn.Parameter(bits), nn.Parameter(bits + exponent)

    def rate_scale(self, name: str) -> float | None:
        """All of it for the depth."""
        return 1.0 if name == "depth" else None

    def learned(self) -> tuple[Tensor, Tensor]:
        """The span is 2^bits steps, where bits count from the least that the layer keeps to 16."""
        return self.depth, self.log_span - self.depth.clamp(self.least_bits, MOST_BITS)

    @torch.no_grad()
    def set_(self, bits: Tensor, exponent: Tensor) -> None:
        """Set the parameters; a span below 1 gives the exponent back to the last digit, the bits almost."""
        counted = bits.clamp(self.least_bits, MOST_BITS)
        self.log_span.copy_(counted + exponent)
        near = self.log_span - exponent
        stays = (near > self.bits_of_nothing) == (bits > self.bits_of_nothing)
        self.depth.copy_(torch.where((bits == counted) & stays, near, bits))


class StepRange(Quantizer):
    """Logarithms (base 2) of the step between codes and of the range that they span; the bits follow from them.

    Clipped weights then move the range alone, and rounding errors the step; a smaller size pulls both together.
    Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization" (arXiv 1905.11452).
    """

    def start(self, bits: Tensor, exponent: Tensor) -> None:
        """Make the parameters."""
        self.log_step, self.log_range = nn.Parameter(exponent), nn.Parameter(bits + exponent - 1)

    def rate_scale(self, name: str) -> float | None:
        """Half for each, since both move the bits."""
        return 0.5 if name in ("log_step", "log_range") else None

    def learned(self) -> tuple[Tensor, Tensor]:
        """The greatest magnitude is 2^(bits - 1) steps."""
        return self.log_range - self.log_step + 1, self.log_step

    @torch.no_grad()
    def set_(self, bits: Tensor, exponent: Tensor) -> None:
        """Set the parameters; no bits become less than none, lest rounding makes them a few."""
        self.log_step.copy_(exponent)
        self.log_range.copy_(torch.where(bits > 0, bits, bits - 1) + exponent - 1)
