"""The quantiser in plain autograd: rounding is the identity backward, everything else differentiates itself."""

import torch


def quantize_slow(weight, bits, exponent, channel_dim=0, *, symmetric=False):
    """One channel after another, with a straight-through rounding."""
    channels = []
    for row, b, e in zip(weight.movedim(channel_dim, 0), bits, exponent, strict=True):
        if b <= (1 if symmetric else 0):
            channels.append(torch.zeros_like(row) * row.detach())
            continue
        scaled = row / 2**e
        lower, upper = -(2 ** (b - 1)), 2 ** (b - 1) - 1
        if symmetric:
            upper = torch.nextafter(upper + 0.5, torch.zeros_like(upper))
            lower = -upper
        clipped = torch.where(scaled > upper, upper, torch.where(scaled < lower, lower, scaled))
        codes = clipped + (clipped.round() - clipped).detach()
        channels.append(codes * 2**e)
    return torch.stack(channels).movedim(0, channel_dim)


def num_levels_slow(bits, *, symmetric=False):
    """How many codes a depth of ``bits`` has, by counting those that a fine sweep of weights comes to."""
    sweep = torch.linspace(-600, 600, 240_001, dtype=torch.float64)[None]
    bits = torch.tensor([bits], dtype=torch.float64)
    return len(quantize_slow(sweep, bits, torch.zeros(1, dtype=torch.float64), symmetric=symmetric).unique())
