"""What images are compared by when pairs are mined: their looks, or their layouts.

The paper's descriptors (section 3): the deepest [CLS] token stands for appearance, the self-similarity of the deepest
keys for structure, here of means over a coarse grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from splice_ff.vit.features import ViTFeatures

GRID = 6
"""Places down and across between which similarities are taken: 630 numbers an image."""


def describe_appearance(backbone: ViTFeatures, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] to their deepest [CLS] tokens, (B, D)."""
    cls = backbone(images, cls=True).cls
    assert cls is not None
    return cls[:, -1].float()


def describe_structure(backbone: ViTFeatures, images: Tensor) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] to the cosines between places of their deepest keys, (B, n (n - 1) / 2).

    Keys are taken relative to the image's mean key, which says what it shows rather than where.
    """
    features = backbone(images, keys=[-1])
    keys = features.keys[backbone.depth - 1][:, :, backbone.prefix_tokens :].float()
    maps = rearrange(keys, "b heads (h w) d -> b (heads d) h w", h=features.grid[0])
    places = F.adaptive_avg_pool2d(F.normalize(maps, dim=1), GRID).flatten(2)
    places = F.normalize(places - places.mean(2, keepdim=True), dim=1)
    one, other = torch.triu_indices(GRID**2, GRID**2, 1)
    return (places.mT @ places)[:, one, other]


DESCRIBE: Mapping[str, Callable[[ViTFeatures, Tensor], Tensor]] = {
    "appearance": describe_appearance,
    "structure": describe_structure,
}
