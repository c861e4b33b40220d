"""The mean over a square around each pixel."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def box_filter(images: Tensor, radius: int) -> Tensor:
    """Means over squares of 2 x radius + 1 pixels a side around each pixel of (B, C, H, W); the border repeats.

    Sums of shifted copies, rows first: on CPUs several times faster than `avg_pool2d`, which shares work by channel.
    """
    side, (height, width) = 2 * radius + 1, images.shape[-2:]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = reduce(torch.add, [padded[..., i : i + height, :] for i in range(side)])
    return reduce(torch.add, [rows[..., i : i + width] for i in range(side)]) / side**2
