"""Images cut into the backbone's patches, and patch coordinates back to pixels: shared by the analysis tools."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.vit.features import Features, ViTFeatures

VIT_SIZE, VIT_MAX_SIZE = 224, 480
"""Shorter and longest side, in pixels, of what the ViT sees, as published."""

FACETS = ("keys", "queries", "values", "tokens")
MAX_ASPECT = 4
"""A narrower image is seen smaller: its longer side is this many times the size asked for, not more."""


def resize_for_vit(images: Tensor, size: int = VIT_SIZE, max_size: int = VIT_MAX_SIZE) -> Tensor:
    """Resize (B, 3, H, W) so that the shorter side is `size`, unless the longer then exceeds `max_size`.

    Bilinear and antialiased, as in the published code.
    """
    return TF.resize(images, [size], max_size=max_size, antialias=True)


def resize_to_patches(images: Tensor, backbone: ViTFeatures, size: int = VIT_SIZE) -> Tensor:
    """Resize (B, 3, H, W) so that the shorter side is about `size` and both sides are whole patches (at least two).

    Of images narrower than `MAX_ASPECT` the longer side is bounded instead. The ViT would cut a remainder off; so
    the patch grid covers the whole image, which is stretched by less than half a patch.
    """
    factor = min(size / min(images.shape[-2:]), MAX_ASPECT * size / max(images.shape[-2:]))
    sides = [
        max(2, round(side * factor / patch)) * patch
        for side, patch in zip(images.shape[-2:], backbone.patch_size, strict=True)
    ]
    return TF.resize(images, sides, antialias=True)


def patch_descriptors(features: Features, facet: str, layer: int) -> Tensor:
    """One facet of one layer as descriptors of the patches: (B, h * w, D), heads concatenated, no prefix tokens."""
    tensor: Tensor = getattr(features, facet)[layer]
    if tensor.ndim == 4:
        tensor = rearrange(tensor, "b heads t d -> b t (heads d)")
    height, width = features.grid
    return tensor[:, -height * width :].float()


def enlarge_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values on the patch grid (C, h, w) at `size` pixels (C, H, W), bilinear: no value leaves the input's range."""
    return F.interpolate(values[None], size, mode="bilinear", antialias=False)[0]
