"""The distance of an output's local contrasts from its appearance image's, which Splice does not have (term `texture`).

A look is smooth or rough as well as brown or gray, and a [CLS] token says little of it:

    L_texture = sum over L*, a*, b*, mean over scales k, of  W_1 of  {B_k(G(s, a))(p)} and {B_k(a)(q)}

where B_k are the bands of a Laplacian pyramid (Burt and Adelson 1983), finest first: each scale without its own blurred
half. Colors count as lightness does: without contrasts of theirs, coats and rocks come out in washes of one tint. Where
contrasts are, and how they are arranged, does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.utils.color import rgb_to_lab

BANDS = 3


def texture_loss(outputs: Tensor, appearances: Tensor) -> Tensor:
    """Compare local contrasts.

    Args:
        outputs, appearances: (B, 3, H, W) and (B, 3, H', W') in [0, 1].

    Returns:
        The mean over the batch, a scalar, in Lab units.
    """
    with torch.autocast(outputs.device.type, enabled=False):  # half precision has coarser steps than fine contrasts
        ours, theirs = (_bands(rgb_to_lab(images.float())) for images in (outputs, appearances))
        distances = [_wasserstein(*bands) for bands in zip(ours, theirs, strict=True)]
        return torch.stack(distances).mean()


def _wasserstein(ours: Tensor, theirs: Tensor) -> Tensor:
    """W_1 of all values of two bands (every second place would draw a raster): mean over images, sum of channels."""
    first, second = (band.flatten(2).sort(-1).values for band in (ours, theirs))
    if first.shape != second.shape:  # quantiles at as many places
        second = F.interpolate(second, first.shape[-1], mode="linear", align_corners=True)
    return (first - second).abs().mean((0, 2)).sum()


def _bands(images: Tensor) -> list[Tensor]:
    """Bands of a Laplacian pyramid of (B, 3, H, W), at its size, half of it, ...."""
    bands = []
    for _ in range(BANDS):
        half = F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)
        bands.append(images - F.interpolate(half, images.shape[-2:], mode="bilinear", align_corners=False))
        images = half
    return bands
