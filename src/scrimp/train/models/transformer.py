"""The pre-norm transformer block that the GPT and the ViT share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrimp.errors import ConfigError


def rotary_table(length: int, head_width: int, base: float = 10_000.0) -> Float[Tensor, "2 length half"]:
    """Cosine and sine of the rotation angle of each position and pair of channels.

    Source: J. Su et al., "RoFormer" (arXiv 2104.09864), in the half-split layout.
    """
    frequency = base ** -torch.linspace(0, 1, head_width // 2 + 1, dtype=torch.float64)[:-1]
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(
    x: Float[Tensor, "batch head length width"], table: Float[Tensor, "2 length half"]
) -> Float[Tensor, "batch head length width"]:
    """Turn each pair (channel i, channel i + width / 2) by its position's angle; the same dtype as ``x``."""
    cos, sin = table
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1).to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, dropout: float) -> Tensor:
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # Forward and backward of torch's bfloat16 kernel take about three times as long as float32's here (torch 2.13).
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.float(), key.float(), value.float()
            return functional.scaled_dot_product_attention(query, key, value, is_causal=causal, dropout_p=dropout)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal, dropout_p=dropout)


class Attention(nn.Module):
    """Multi-head self-attention on torch's scaled_dot_product_attention; causal and rotary when asked."""

    def __init__(self, width: int, num_heads: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], table: Float[Tensor, "2 length half"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        """The same shape as ``x``; ``table`` is from :func:`rotary_table`, None for no rotation."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        mixed = _attend(query, key, value, causal=self.causal, dropout=self.dropout if self.training else 0.0)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``, with a GELU between two linear layers of ratio 4."""

    def __init__(self, width: int, num_heads: int, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, causal=causal, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length width"], table: Float[Tensor, "2 length half"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        """The same shape as ``x``; ``table`` as in :class:`Attention`."""
        x = x + self.dropout(self.attention(self.norm1(x), table))
        y: Tensor = x + self.dropout(self.down(self.act(self.up(self.norm2(x)))))
        return y


def blocks(depth: int, width: int, num_heads: int, *, causal: bool, dropout: float) -> nn.ModuleList:
    """``depth`` blocks; linear weights are drawn with deviation 0.02, and 0.02 / sqrt(2 * depth) where a branch ends.

    Raises ConfigError when the width cannot be split into ``num_heads`` heads of an even number of channels.
    """
    if depth < 1 or num_heads < 1 or width % (2 * num_heads):
        raise ConfigError(
            f"width {width} with {num_heads} heads and depth {depth}: depth and heads must be at least 1, "
            f"and width a multiple of twice the number of heads (rotary positions turn pairs of channels)."
        )
    layers = nn.ModuleList(Block(width, num_heads, causal=causal, dropout=dropout) for _ in range(depth))
    for name, weight in layers.named_parameters():
        if weight.dim() == 2:
            ends_branch = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if ends_branch else 0.02)
    return layers
