"""Contrasts of colors that small files have lost, given back.

JPEG (4:2:0) and WebP keep colors at half of an image's sides, and little of them. Photographs of 160 px that were saved
so, at a quality of 75, lose a quarter and more of the fine contrasts of a* and b*, and what learns from such images
paints no more of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from splice_ff.utils.color import LUMA

SIGMA = 1.4
"""Pixels, the deviation of a Gaussian; a pixel of halved colors is two wide."""


def sharpen_colors(image: Tensor, amount: float) -> Tensor:
    """An unsharp mask of an image's colors: contrasts come back, though not details.

    Luma stays, except where a color would leave [0, 255].

    Args:
        image: (3, H, W) uint8, at about the size at which it was saved.
        amount: of the mask; 0 returns the image, and about 1 gives back what WebP at quality 75 took.

    Returns:
        (3, H, W) uint8.
    """
    if not amount:
        return image
    pixels = image / 255
    detail = pixels - TF.gaussian_blur(pixels, [9, 9], [SIGMA, SIGMA])
    chroma = detail - torch.einsum("c,cyx->yx", torch.tensor(LUMA), detail)
    return ((pixels + amount * chroma).clamp(0, 1) * 255).round().to(torch.uint8)
