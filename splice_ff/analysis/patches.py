"""Features of the patches, without the prefix tokens, as descriptors and as maps."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from splice_ff.vit.features import Features


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
