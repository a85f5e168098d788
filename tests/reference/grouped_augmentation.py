"""Page's grouped augmentation: a choice per group of samples, as cifar10-fast makes it. Only to compare with."""

import torch
from torch import Tensor


def grouped_crop(images: Tensor, padding: int, generator: torch.Generator, max_options: int = 200) -> Tensor:
    """Shuffle samples and options, give each even share of the samples one crop; back in the samples' order."""
    padded = torch.nn.functional.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    height, width = images.shape[2:]
    options = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    options = [options[i] for i in torch.randperm(len(options), generator=generator)][:max_options]
    order = torch.randperm(len(images), generator=generator)
    result = torch.empty_like(images)
    for share, (y, x) in zip(order.tensor_split(len(options)), options, strict=True):
        result[share] = padded[share, :, y : y + height, x : x + width]
    return result
