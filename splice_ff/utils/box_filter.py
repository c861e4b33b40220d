"""The mean over a square around each pixel, and what a filter sees beyond the border."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def box_filter(images: Tensor, radius: int) -> Tensor:
    """Means over squares of 2 x radius + 1 pixels a side around each pixel of (B, C, H, W); the border repeats.

    Sums of shifted copies, rows first: on CPUs a fraction of what `avg_pool2d` takes (docs/speed.md).
    """
    side, (height, width) = 2 * radius + 1, images.shape[-2:]
    padded = repeat_border(images, radius)
    rows = reduce(torch.add, [padded[..., i : i + height, :] for i in range(side)])
    return reduce(torch.add, [rows[..., i : i + width] for i in range(side)]) / side**2


def repeat_border(images: Tensor, pixels: int) -> Tensor:
    """Pad (B, C, H, W) by so many pixels on all four sides with the nearest of the border."""
    if torch.compiler.is_compiling():  # it takes a wrong layout for the gradient of replication padding
        images = torch.cat([images[..., :1]] * pixels + [images] + [images[..., -1:]] * pixels, -1)
        return torch.cat([images[..., :1, :]] * pixels + [images] + [images[..., -1:, :]] * pixels, -2)
    return F.pad(images, (pixels,) * 4, mode="replicate")
