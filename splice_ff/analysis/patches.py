"""Images on their way into the ViT, and features of the patches on their way out of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from splice_ff.images import check_images
from splice_ff.vit.features import Features, ViTFeatures
from splice_ff.vit.inputs import ViTInput
from splice_ff.vit.spec import VIT_SIZE


def prepare(backbone: ViTFeatures, images: Tensor, name: str, size: int = VIT_SIZE, *, square: bool = False) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as the backbone is given them: checked, on its device, resized.

    Args:
        backbone: the frozen ViT.
        images: from outside the library.
        name: what they are called in an error.
        size: shorter side in pixels.
        square: stretch them to squares.

    Raises:
        ImageError: another shape, or values that are not in [0, 1].
    """
    check_images(images, name)
    rule = ViTInput(size)
    resize = rule.resize_to_square if square else rule.resize
    return resize(images.to(backbone.mean.device, torch.float32), backbone.patch_size)


def patch_descriptors(features: Features, facet: str, layer: int) -> Tensor:
    """One facet of one layer as descriptors of the patches: (B, h * w, D), heads concatenated, no prefix tokens."""
    tensor: Tensor = getattr(features, facet)[layer]
    if tensor.ndim == 4:
        tensor = rearrange(tensor, "b heads t d -> b t (heads d)")
    height, width = features.grid
    return tensor[:, -height * width :].float()


def upsample_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values on the patch grid (C, h, w) at `size` pixels (C, H, W), bilinear: no value leaves the input's range."""
    return F.interpolate(values[None], size, mode="bilinear", antialias=False)[0]
