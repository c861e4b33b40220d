"""What the ViT is given to see: to which size images are brought, and how.

Training, one-shot inference, refining and the analysis tools share the rule; `paper` follows the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from splice_ff.vit.spec import VIT_SIZE

MAX_ASPECT = 480 / 224
"""Longest shape that is seen at full size, as published; of a longer one, the longer side is bounded instead."""


@dataclass(frozen=True)
class ViTInput:
    """How images become what the ViT sees; bilinear in any case."""

    size: int = VIT_SIZE
    """Shorter side in pixels; the longer is at most `MAX_ASPECT` times as long."""
    antialias: bool = True
    whole_patches: bool = True
    """Round both sides to whole patches, at least two, so that the patch grid covers the whole image, stretched by
    less than half a patch. Otherwise the ViT drops what no patch covers, at the right and at the bottom."""

    def resize(self, images: Tensor, patch_size: tuple[int, int]) -> Tensor:
        """Resize images (B, 3, H, W) for a ViT with patches of (down, across) pixels; aspect ratios are kept."""
        if not self.whole_patches:
            if min(images.shape[-2:]) == self.size:  # torchvision 0.10 returns these as they are, however long they are
                return images
            from torchvision.transforms.v2 import functional as TF  # here: recipes, as data, are read without torch

            return TF.resize(images, [self.size], max_size=round(MAX_ASPECT * self.size), antialias=self.antialias)
        sides = images.shape[-2:]
        factor = min(self.size / min(sides), MAX_ASPECT * self.size / max(sides))
        return self._resize(images, (sides[0] * factor, sides[1] * factor), patch_size)

    def resize_to_square(self, images: Tensor, patch_size: tuple[int, int]) -> Tensor:
        """Stretch images (B, 3, H, W) to squares: all have the same patches, whatever their shapes."""
        return self._resize(images, (self.size, self.size), patch_size)

    def _resize(self, images: Tensor, sides: tuple[float, float], patch_size: tuple[int, int]) -> Tensor:
        whole = [max(2, round(side / patch)) * patch for side, patch in zip(sides, patch_size, strict=True)]
        if list(images.shape[-2:]) == whole:
            return images
        import torch.nn.functional as F

        return F.interpolate(images, whole, mode="bilinear", antialias=self.antialias)


PUBLISHED = ViTInput(antialias=False, whole_patches=False)
"""As the authors' code: torchvision 0.10, to which it is pinned, resizes tensors without antialiasing."""
