"""Predictions averaged over several views of each image (test-time augmentation)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from scrimp.errors import ConfigError, DataError
from scrimp.steps.crop import RandomCrop
from scrimp.steps.module_tree import evaluating

View = Callable[[Tensor], Tensor]


def identity(images: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The images as they are."""
    return images


def mirror(
    images: Shaped[Tensor, "batch channels height width"],
) -> Shaped[Tensor, "batch channels height width"]:
    """The images with left and right exchanged. Raises: DataError - not a batch of images."""
    if images.ndim != 4:
        raise DataError(f"mirror works on images (batch, channels, height, width); got {tuple(images.shape)}")
    return images.flip(3)


def shift(rows: int, columns: int) -> View:
    """A view that moves images down by ``rows`` and right by ``columns`` (negative: up, left).

    What comes into view is the image reflected at its border, as ``RandomCrop`` pads. Images of any shape, as long as
    both sides are longer than the shift.
    """
    padding = max(abs(rows), abs(columns))
    if padding == 0:
        return identity
    crop = RandomCrop(padding)

    def shifted(images: Tensor) -> Tensor:
        corner = torch.tensor([[padding - rows, padding - columns]], device=images.device)
        return crop.apply(images, corner.expand(len(images), 2))

    return shifted


def shifted_views(pixels: int = 1) -> tuple[list[View], list[float]]:
    """Six views and their weights: image and mirror image count half, the other half goes to both shifted.

    Shifted by ``pixels`` up and left, and down and right. Source: K. Jordan's airbench94 (``tta_level=2``).
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
        raise ConfigError(f"shifted_views: pixels is {pixels!r}; it has to be a positive number")
    moves = [identity, shift(-pixels, -pixels), shift(pixels, pixels)]
    both = [*moves, *(_chain(mirror, move) for move in moves)]
    return both, [0.25, 0.125, 0.125] * 2


@torch.no_grad()
def predict_with_views(
    model: nn.Module,
    images: Shaped[Tensor, "batch channels height width"],
    views: Sequence[View] = (identity, mirror),
    weights: Sequence[float] | None = None,
) -> Float[Tensor, "batch ..."]:
    """The weighted mean of the model's outputs over ``views`` of the images; by default of image and mirror image.

    The model is in evaluation mode meanwhile, and every module in its own mode afterwards. No gradients.

    Args: model - returns one tensor with a row per image. views - functions of a batch, such as ``mirror`` and
        ``shift(1, 0)``; they may change the shape of images where the model takes that. weights - one per view; divided
        by their sum. By default all views count the same.
    Raises: ConfigError - no views, or weights of another number, negative or all zero. DataError - a view does not
        return one image per image; not square images are right for those here, but not for a rotation by 90 degrees
        when the model wants one shape. Cost: one forward pass per view, one after the other. The comparison with a
        model that predicts from one view has to say so.
    """
    views = list(views)
    shares = [1.0] * len(views) if weights is None else [float(weight) for weight in weights]
    if not views or len(shares) != len(views) or min(shares) < 0 or sum(shares) <= 0:
        raise ConfigError(
            f"predict_with_views: {len(views)} views with weights {shares}; give one non-negative weight per view, "
            "not all 0"
        )
    mean: Tensor | None = None
    with evaluating(model):
        for view, share in zip(views, shares, strict=True):
            seen = view(images)
            _check_view(view, images, seen)
            outputs = model(seen)
            if not isinstance(outputs, Tensor):
                raise DataError(
                    f"predict_with_views: the model returns a {type(outputs).__name__}; it takes one tensor"
                )
            wide = outputs if outputs.dtype == torch.float64 else outputs.float()
            part = wide * (share / sum(shares))
            mean = part if mean is None else mean + part
    assert mean is not None
    return mean


def _check_view(view: View, images: Tensor, seen: Tensor) -> None:
    name = getattr(view, "__name__", type(view).__name__)
    if not isinstance(seen, Tensor):
        raise DataError(f"predict_with_views: the view {name} returned a {type(seen).__name__}, not a tensor of images")
    if seen.ndim != images.ndim or seen.shape[:2] != images.shape[:2]:
        raise DataError(
            f"predict_with_views: the view {name} made {tuple(seen.shape)} of {tuple(images.shape)}; a view has to "
            "return the same number of images and channels"
        )
    if seen.shape != images.shape and images.shape[2] != images.shape[3]:
        raise DataError(
            f"predict_with_views: the view {name} turned images of {images.shape[2]} x {images.shape[3]} pixels into "
            f"{seen.shape[2]} x {seen.shape[3]}; on images that are not square use views that keep height and width, "
            "such as mirror and shift"
        )


def _chain(second: View, first: View) -> View:
    return lambda images: second(first(images))
