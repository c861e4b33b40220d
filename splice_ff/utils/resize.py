"""Between an image's own size and the working size: down by antialiased bicubic, back up along its edges.

The way back is a fast guided filter (He and Sun, 2015, arXiv:1505.00996) with a color guide: around each pixel the
small output is written as an affine function of the small structure image's colors; the functions are enlarged, which
they bear well as they are smooth, and applied to the large structure image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splice_ff.utils.box_filter import box_filter

RADIUS = 2
"""Of the window, in pixels of the working size."""
REGULARIZATION = 1e-3
"""Variance of the guide below which a window counts as flat, colors in [0, 1]."""


def resize_shorter_side(image: Tensor, size: int) -> Tensor:
    """Resize `(B, C, H, W)` in [0, 1] so that its shorter side has `size` pixels, keeping the aspect ratio.

    Antialiased bicubic, clamped to [0, 1] because bicubic overshoots at edges. Smaller images are enlarged;
    one that fits is returned as it is.
    """
    if min(image.shape[-2:]) == size:
        return image
    h, w = image.shape[-2:]
    sides = [size, int(size * w / h)] if h <= w else [int(size * h / w), size]  # as torchvision rounds them
    return F.interpolate(image, sides, mode="bicubic", antialias=True).clamp(0, 1)


def reduce_shorter_side(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) with a shorter side of `size` pixels, antialiased bilinear, or as they are where they have less."""
    height, width = images.shape[-2:]
    if min(height, width) <= size:
        return images
    scale = size / min(height, width)
    size_now = (round(height * scale), round(width * scale))
    return F.interpolate(images, size_now, mode="bilinear", align_corners=False, antialias=True)


def to_full_size(image: Tensor, structure: Tensor, full_structure: Tensor) -> Tensor:
    """An image of the size of `structure` at the size of `full_structure`."""
    if image.shape[-2:] == full_structure.shape[-2:]:
        return image
    if image.shape[-1] > full_structure.shape[-1]:
        return downsample(image, full_structure).clamp(0, 1)
    return guided_upsample(image, structure, full_structure)


def downsample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B, 3, h, w) of any range at the smaller size of `like`, antialiased."""
    return F.interpolate(values, list(like.shape[-2:]), mode="bicubic", antialias=True)


def guided_upsample(output: Tensor, small_guide: Tensor, guide: Tensor) -> Tensor:
    """Enlarge an image along the edges of another.

    Args:
        output: (B, 3, h, w) in [0, 1].
        small_guide: the guide at the size of `output`.
        guide: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1]. What the affine functions cannot express is added by bicubic interpolation, so that
        reduced again it is close to `output`.
    """
    return enlarge_along_edges(output, small_guide, guide).clamp_(0, 1)


def enlarge_along_edges(values: Tensor, small_guide: Tensor, guide: Tensor) -> Tensor:
    """The same for values (B, 3, h, w) of any range, such as a change of colors."""
    h, w = guide.shape[-2:]
    matrix, offset = local_affine(values, small_guide)
    rest = values - (torch.einsum("bijhw,bihw->bjhw", matrix, small_guide) + offset)
    colors = []
    for j in range(3):  # one channel of one color at a time, in place: all of a large image would fill the memory
        color = F.interpolate(offset[:, j, None], (h, w), mode="bilinear")
        color += F.interpolate(rest[:, j, None], (h, w), mode="bicubic")
        for i in range(3):
            color.addcmul_(F.interpolate(matrix[:, i, j, None], (h, w), mode="bilinear"), guide[:, i, None])
        colors.append(color)
    return torch.cat(colors, 1)


def local_affine(output: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (B, 3 of the guide, 3 of the output, h, w) and offsets (B, 3, h, w), least squares in each window."""
    guide_mean, output_mean = box_filter(guide, RADIUS), box_filter(output, RADIUS)
    variance = _covariance(guide, guide, guide_mean, guide_mean)
    covariance = _covariance(guide, output, guide_mean, output_mean)
    ridge = REGULARIZATION * torch.eye(3, device=guide.device)
    matrix = _solve(variance + ridge, covariance).permute(0, 3, 4, 1, 2)
    offset = output_mean - torch.einsum("bijhw,bihw->bjhw", matrix, guide_mean)
    return box_filter(matrix.flatten(1, 2), RADIUS).unflatten(1, (3, 3)), box_filter(offset, RADIUS)


def _solve(matrix: Tensor, values: Tensor) -> Tensor:
    """X of `matrix @ X = values`, both (..., 3, 3), for symmetric positive definite matrices.

    L D L^T written out: torch.linalg.solve is slower on many matrices this small, and ONNX has no such operator.
    """
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(-1) for row in matrix.unbind(-2))
    ba, ca = b / a, c / a
    d = d - ba * b
    ed = (e - ca * b) / d
    f = f - ca * c - ed * ed * d
    x, y, z = values.unbind(-2)
    y = y - ba[..., None] * x
    z = (z - ca[..., None] * x - ed[..., None] * y) / f[..., None]
    y = y / d[..., None] - ed[..., None] * z
    x = x / a[..., None] - ba[..., None] * y - ca[..., None] * z
    return torch.stack([x, y, z], -2)


def _covariance(a: Tensor, b: Tensor, a_mean: Tensor, b_mean: Tensor) -> Tensor:
    """(B, h, w, 3, 3)."""
    products = torch.einsum("bihw,bjhw->bijhw", a, b).flatten(1, 2)
    means = torch.einsum("bihw,bjhw->bijhw", a_mean, b_mean).flatten(1, 2)
    return (box_filter(products, RADIUS) - means).unflatten(1, (3, 3)).permute(0, 3, 4, 1, 2)
