"""Factors on the loss weights for a new backbone, whose features have a scale of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.vit.features import ViTFeatures, self_similarity
from splice_ff.vit.spec import LossWeights

APPEARANCE = 0.57
IDENTITY = 1.1
"""What the distances of [CLS] and of keys between random images should be, in units of self-similarity's distance.

Measured on vit_mini with the scales in its config.json, 128 training images at 224 px: a new backbone's losses start
out as balanced as that one's. Nobody has tuned them further.
"""


@torch.inference_mode()
def loss_scales(backbone: ViTFeatures, images: Tensor) -> LossWeights:
    """Scales from images (B, 3, H, W) in [0, 1], each compared with the next; B at least 2."""
    found = backbone(images, cls=True, keys=[-1])
    (keys,) = found.keys.values()
    assert found.cls is not None

    def distance(features: Tensor) -> float:
        return F.mse_loss(features, features.roll(1, 0)).item()

    structure, appearance, identity = (distance(f) for f in (self_similarity(keys), found.cls[:, -1], keys))
    return LossWeights(
        1.0,
        _rounded(APPEARANCE * structure / max(appearance, 1e-12)),
        _rounded(IDENTITY * structure / max(identity, 1e-12)),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
