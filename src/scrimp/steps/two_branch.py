"""Training on image and mirror image together: the test-time views, seen while training."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from scrimp.errors import DataError
from scrimp.steps.views import mirror


def two_branch(model: nn.Module, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
    """The mean of the model's outputs for the images and for their mirror images, with gradients.

    Stands where ``model(images)`` stood, in training and in evaluation: the loss is then that of the averaged
    prediction, which is what is judged at the end. The model runs once on both halves, so batch norm sees them as one
    batch; flipping images at random as well would do nothing.

    Raises: DataError - not images, or a model that returns more than one tensor.
    Cost: twice the work and memory per image, in training and at inference.
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", the last section, where a network of two branches with
        shared weights replaces flips as augmentation and at test time.
    """
    if images.ndim != 4:
        raise DataError(f"two_branch works on images (batch, channels, height, width); got {tuple(images.shape)}")
    outputs = model(torch.cat([images, mirror(images)]))
    if not isinstance(outputs, Tensor):
        raise DataError(f"two_branch: the model returns a {type(outputs).__name__}; it takes one tensor")
    first, second = outputs.chunk(2)
    return (first + second) / 2
