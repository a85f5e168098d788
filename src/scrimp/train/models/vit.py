"""A small vision transformer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrimp.errors import ConfigError
from scrimp.train.models.transformer import blocks


class ViT(nn.Module):
    """Patches as tokens with learned positions, pre-norm blocks, the mean over patches, a linear head.

    ``image_size`` is a side or (height, width); each must be a multiple of ``patch_size``.

    Source: A. Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929). Differs: mean over patches in
    place of a class token, no biases in the blocks.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        patch_size: int = 4,
        depth: int = 6,
        width: int = 192,
        num_heads: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, breadth = (image_size, image_size) if isinstance(image_size, int) else image_size
        if patch_size < 1 or height % patch_size or breadth % patch_size:
            raise ConfigError(
                f"patch_size {patch_size} does not divide the image size {height}x{breadth}; choose one that does."
            )
        self.patch = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        num_patches = (height // patch_size) * (breadth // patch_size)
        self.position = nn.Parameter(torch.empty(1, num_patches, width))
        self.blocks = blocks(depth, width, num_heads, causal=False, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch num_classes"]:
        """Logits of the classes."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits
