"""Color and texture of an image as a few numbers, and targets of many kinds brought to one scale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDS = 4
"""Scales of texture: details of 1, 2, 4 and 8 pixels."""
LEAST = 1e-3
"""Contrast, of pixels in [0, 1], under which texture counts as none."""


def appearance_statistics(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 6 + 3 * BANDS).

    Mean and spread of R, G and B; then for each octave of detail the logarithm of its spread in each channel.
    """
    spread, mean = torch.std_mean(images, (-2, -1), correction=0)
    found, level = [mean, spread], images
    for _ in range(BANDS):
        coarse = F.avg_pool2d(level, 2, ceil_mode=True)
        detail = level - F.interpolate(coarse, level.shape[-2:], mode="bilinear", align_corners=False)
        found.append((detail.std((-2, -1), correction=0) + LEAST).log())
        level = coarse
    return torch.cat(found, 1)


def pooled(feature_map: Tensor) -> Tensor:
    """Mean and spread over the places of a feature map: (B, C, h, w) to (B, 2 * C)."""
    spread, mean = torch.std_mean(feature_map, (-2, -1), correction=0)
    return torch.cat([mean, spread], 1)


class Standardize(nn.Module):
    """Brings every channel of a target to mean 0 and variance 1, as measured once on sample batches.

    The mean squared error of a standardized target is then the share of its variance that is not predicted: 1 for a
    guess that knows nothing but the mean.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Take mean and spread of targets (..., channels)."""
        rows = torch.cat([batch.detach().flatten(0, -2).float() for batch in batches])
        spread, mean = torch.std_mean(rows, 0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))  # a dead channel stays at 0

    def forward(self, target: Tensor) -> Tensor:
        """(..., channels) to the same, standardized."""
        return (target - self.mean) / self.scale
