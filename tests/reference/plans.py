"""Plans as the slowest obvious thing: lists and loops."""

import torch

from scrimp._core.rng import generator


def shuffled(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch, one index at a time."""
    order = torch.randperm(num_samples, generator=generator(seed, "shuffle", epoch))
    return [int(order[position]) for position in range(num_samples)]


def rank_batches(
    order: list[int], batch_size: int, world_size: int, *, drop_last: bool = False
) -> list[list[list[int]]]:
    """``[step][rank]`` -> the samples of that rank in that step, by dealing out a global batch's visits in order."""
    steps = []
    while order:
        globally, order = order[: batch_size * world_size], order[batch_size * world_size :]
        if len(globally) < batch_size * world_size and (drop_last or len(globally) < world_size):
            break
        sizes = [0] * world_size
        for visit in range(len(globally)):
            sizes[visit % world_size] += 1
        parts = []
        for size in sizes:
            parts.append(globally[:size])
            globally = globally[size:]
        steps.append(parts)
    return steps
